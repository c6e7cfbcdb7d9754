from __future__ import annotations

import hashlib
import os
import sys
import threading
import zlib
from pathlib import Path
from typing import Dict, List

import pytest

from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import ALGORITHMS, check_checksums

KNOWN: Dict[str, Dict[bytes, str]] = {
    "adler32": {b"": "00000001", b"a": "00620062", b"Wikipedia": "11e60398"},
    "md5": {
        b"": "d41d8cd98f00b204e9800998ecf8427e",
        b"a": "0cc175b9c0f1b6a831c399e269772661",
        b"message digest": "f96b697d7cb7938d525a2f31aaf161d0",
    },
    "blake3": {
        b"": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        b"abc": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    },
}
VECTORS = [(algorithm, data, digits) for algorithm, known in KNOWN.items() for data, digits in known.items()]

needs_blake3 = pytest.mark.component("blake3")


@pytest.fixture
def no_blake3(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without the package: importing it fails."""
    monkeypatch.setitem(sys.modules, "blake3", None)


def refused(name: str, action: object, *arguments: object) -> str:
    assert callable(action)
    with pytest.raises(PilotageError) as caught:
        action(*arguments)
    assert caught.value.name == name
    return caught.value.detail


def test_every_algorithm_of_the_protocol_has_known_vectors() -> None:
    assert set(KNOWN) == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("algorithm", "data", "digits"),
    [pytest.param(*each, marks=needs_blake3 if each[0] == "blake3" else ()) for each in VECTORS],
)
def test_known_vectors(tmp_path: Path, algorithm: str, data: bytes, digits: str) -> None:
    (tmp_path / "a").write_bytes(data)
    assert checksum.of(tmp_path / "a", [algorithm]) == {algorithm: digits}


@needs_blake3
@pytest.mark.parametrize(
    "size", [0, 1, checksum.WORTH_A_THREAD, checksum.BLOCK, checksum.BLOCK + 1, 3_000_001]
)
def test_all_algorithms_are_found_in_one_pass(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import blake3

    data = bytes(number * 31 % 251 for number in range(1009)) * (size // 1009 + 1)
    (tmp_path / "a").write_bytes(data[:size])
    opened: List[object] = []
    really_open = os.open
    monkeypatch.setattr(os, "open", lambda *args, **more: opened.append(args) or really_open(*args, **more))
    read = 0

    def note(n_bytes: int) -> None:
        nonlocal read
        read += n_bytes

    found = checksum.of(tmp_path / "a", ["blake3", "md5", "adler32"], note)
    assert found == {
        "blake3": blake3.blake3(data[:size]).hexdigest(),
        "md5": hashlib.md5(data[:size]).hexdigest(),
        "adler32": f"{zlib.adler32(data[:size]):08x}",
    }
    assert check_checksums(found) == found, "the digits are those that the wire takes"
    assert (len(opened), read) == (1, size)


def test_md5_works_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    class Spy:
        def update(self, block: memoryview) -> None:
            threads.add(threading.current_thread())

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr(checksum, "_new", lambda algorithm: Spy())
    with checksum.Hasher(["md5", "adler32"]) as hasher:
        hasher.update(memoryview(bytes(checksum.WORTH_A_THREAD)))
    assert len(threads) == 2
    threads.clear()
    with checksum.Hasher(["md5"]) as hasher:
        hasher.update(memoryview(bytes(checksum.WORTH_A_THREAD)))
    assert threads == {threading.current_thread()}, "alone it needs no thread"


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with checksum.Hasher(["md5", "adler32"]) as hasher:
        hasher.update(memoryview(bytes(checksum.BLOCK)))
    assert threading.active_count() == before


def test_an_algorithm_named_twice_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    assert checksum.of(tmp_path / "a", ["md5", "md5"]) == {"md5": KNOWN["md5"][b"a"]}


def test_the_caller_of_a_progress_bar_may_end_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 * checksum.BLOCK))
    told: List[int] = []

    def stop(n_bytes: int) -> None:
        told.append(n_bytes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checksum.of(tmp_path / "a", ["md5", "adler32"], stop)
    assert told == [checksum.BLOCK]


# -- which there are ------------------------------------------------------------------------------------------------


@needs_blake3
def test_blake3_is_preferred_where_it_is_installed() -> None:
    assert checksum.preferred() == "blake3"
    assert checksum.available() == ("blake3", "md5", "adler32")


def test_without_blake3_md5_is_preferred(no_blake3: None) -> None:
    assert checksum.preferred() == "md5"
    assert checksum.available() == ("md5", "adler32")


def test_without_blake3_asking_for_it_tells_what_to_do(no_blake3: None, tmp_path: Path) -> None:
    detail = refused("CHECKSUM_NOT_SUPPORTED", checksum.of, tmp_path / "a", ["md5", "blake3"])
    assert "pip install blake3" in detail
    assert "md5 or adler32" in detail


def test_without_blake3_the_others_work(no_blake3: None, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    assert checksum.of(tmp_path / "a", checksum.available()) == {
        "md5": KNOWN["md5"][b"a"],
        "adler32": "00620062",
    }


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    assert "adler32, md5, blake3" in refused("CHECKSUM_NOT_SUPPORTED", checksum.supported, ["crc32"])


def test_md5_works_where_the_system_forbids_it_for_security(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """FIPS mode, as on some EL 9 nodes."""
    really = hashlib.md5

    def fips(data: bytes = b"", *, usedforsecurity: bool = True) -> object:
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return really(data)

    monkeypatch.setattr(hashlib, "md5", fips)
    (tmp_path / "a").write_bytes(b"a")
    assert checksum.of(tmp_path / "a", ["md5"]) == {"md5": KNOWN["md5"][b"a"]}


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_missing_file_is_told_so(tmp_path: Path) -> None:
    detail = refused("CHECKSUM_FAILED", checksum.of, tmp_path / "a\nb", ["md5"])
    assert "No such file" in detail
    assert "\n" not in detail


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["symbolic link", "directory", "FIFO"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "symbolic link":
        (tmp_path / "b").write_bytes(b"")
        path.symlink_to(tmp_path / "b")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert f"is a {kind}, not a plain file" in refused("CHECKSUM_FAILED", checksum.of, path, ["md5"])


def test_an_error_in_the_middle_is_told_and_the_file_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * checksum.BLOCK))
    before = len(os.listdir("/proc/self/fd"))
    really = os.preadv

    def fail(descriptor: int, buffers: List[memoryview], offset: int) -> int:
        if offset:
            raise OSError(5, "Input/output error")
        return really(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    assert "Input/output error" in refused("CHECKSUM_FAILED", checksum.of, tmp_path / "a", ["md5"])
    assert len(os.listdir("/proc/self/fd")) == before
