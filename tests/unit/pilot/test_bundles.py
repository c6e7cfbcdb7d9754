"""What jobs bring with them: fetched once by all pilots of a node, verified each time."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import threading
from pathlib import Path
from typing import Dict, List

import pytest
from filelock import FileLock

from pilot.bundles import Cache, Mismatch
from protocol.errors import PilotageError
from protocol.messages.pilots import BundleRef
from tests.unit.pilot.test_archives import tar


class Server:
    def __init__(self, *contents: bytes) -> None:
        self.contents: Dict[str, bytes] = {
            hashlib.sha256(content).hexdigest(): content for content in contents
        }
        self.asked: List[str] = []

    def fetch(self, digest: str, to: Path, largest: int) -> str:
        self.asked.append(digest)
        data = self.contents[digest]
        assert len(data) <= largest
        with open(to, "xb") as file:
            file.write(data)
        return hashlib.sha256(data).hexdigest()

    def ref(self, number: int = 0) -> BundleRef:
        digest = list(self.contents)[number]
        return BundleRef(digest, len(self.contents[digest]))


def test_a_bundle_is_fetched_once_and_unpacked_for_each_job(tmp_path: Path) -> None:
    server = Server(tar(("bin", None), ("bin/tool", b"#!/bin/sh\n"), mode=0o755))
    cache = Cache(tmp_path / "cache", server.fetch, 100)
    for name in ("a", "b"):
        cache.unpack(server.ref(), tmp_path / name)
        assert (tmp_path / name / "bin" / "tool").read_bytes() == b"#!/bin/sh\n"
        assert os.access(tmp_path / name / "bin" / "tool", os.X_OK)
    assert len(server.asked) == 1


def test_a_bundle_that_was_changed_in_the_cache_is_fetched_anew(tmp_path: Path) -> None:
    server = Server(tar(("tool", b"good")))
    cache = Cache(tmp_path / "cache", server.fetch, 100)
    cache.unpack(server.ref(), tmp_path / "a")
    next((tmp_path / "cache").glob("sha256-*")).write_bytes(tar(("tool", b"evil")))
    cache.unpack(server.ref(), tmp_path / "b")
    assert (tmp_path / "b" / "tool").read_bytes() == b"good"
    assert len(server.asked) == 2


def test_a_bundle_that_arrives_changed_is_refused_and_not_kept(tmp_path: Path) -> None:
    server = Server(tar(("tool", b"good")))
    ref = server.ref()
    server.contents[ref.digest] = tar(("tool", b"evil"))
    with pytest.raises(PilotageError, match="arrived with the SHA-256") as caught:
        Cache(tmp_path / "cache", server.fetch, 100).unpack(BundleRef(ref.digest, 10**6), tmp_path / "a")
    assert caught.value.name == "BUNDLE_FAILED"
    assert not list((tmp_path / "cache").glob("sha256-*")) and not (tmp_path / "a").exists()


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    server = Server(*(tar((f"file{number}", os.urandom(600_000))) for number in range(3)))
    cache = Cache(tmp_path / "cache", server.fetch, 1)
    for number in range(3):
        cache.unpack(server.ref(number), tmp_path / str(number))
        os.utime(tmp_path / "cache" / f"sha256-{server.ref(number).digest}", (number, number))
    assert [path.name for path in (tmp_path / "cache").glob("sha256-*")] == [f"sha256-{server.ref(2).digest}"]


@pytest.mark.parametrize("digest", ["../../etc", "A" * 64, ""])
def test_a_digest_that_is_none_never_becomes_a_path(digest: str, tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="is no digest"):
        Cache(tmp_path, Server().fetch, 1).unpack(BundleRef(digest, 1), tmp_path / "a")


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip at all", gzip.compress(b"no tar" * 1000), tar(("x", b"1" * 9999))[:80]],
    ids=["empty", "no gzip", "no tar", "half a tar"],
)
def test_what_is_no_archive_is_refused_as_such(damage: bytes, tmp_path: Path) -> None:
    server = Server(damage)
    with pytest.raises(PilotageError) as caught:
        Cache(tmp_path / "cache", server.fetch, 100).unpack(server.ref(), tmp_path / "a")
    assert caught.value.name == "BUNDLE_FAILED"


def test_f21_a_job_that_is_cancelled_ends_the_unpacking_of_its_bundle(tmp_path: Path) -> None:
    class Over(Exception):
        pass

    def check() -> None:
        if (tmp_path / "a" / "one").exists():
            raise Over

    server = Server(tar(("one", b"1"), ("two", b"2")))
    with pytest.raises(Over):
        Cache(tmp_path / "cache", server.fetch, 100).unpack(server.ref(), tmp_path / "a", check)
    assert not (tmp_path / "a" / "two").exists()


# -- several pilots, one cache ------------------------------------------------------------------------------------------------


def test_what_is_here_is_fetched_by_one_of_those_who_want_it_at_once(tmp_path: Path) -> None:
    data, fetched, opened = b"software", [], []
    wanted = f"sha256:{hashlib.sha256(data).hexdigest()}"

    def fetch(path: Path) -> None:
        fetched.append(path)
        path.write_bytes(data)

    def open_it() -> None:
        with Cache(tmp_path / "cache", Server().fetch, 1).open(wanted, fetch) as file:
            opened.append(file.read())

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [data] * 8
    assert len(fetched) == 1


def test_the_log_says_what_was_fetched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, server = Cache(tmp_path / "cache", Server().fetch, 1), Server(tar(("tool", b"x")))
    wanted = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            cache.open(wanted, lambda path: path.write_bytes(b"x"), what="software").close()  # type: ignore[arg-type]
        Cache(tmp_path / "other", server.fetch, 1).unpack(server.ref(), tmp_path / "a")
    assert caplog.messages == ["software is fetched", "bundle is fetched"]


def test_who_waits_for_another_pilot_does_so_no_longer_than_it_may(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    looks = []
    with FileLock(tmp_path / "cache" / f".sha256-{'0' * 64}.lock"), pytest.raises(TimeoutError):
        cache = Cache(tmp_path / "cache", Server().fetch, 1)
        cache.open(f"sha256:{'0' * 64}", lambda path: None, 0.6, lambda: looks.append(1))
    assert len(looks) >= 2


def test_what_arrives_wrong_is_neither_kept_nor_left_half(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Server().fetch, 1)
    with pytest.raises(Mismatch, match="SHA-256 b5c1fb2e"):
        cache.open(f"sha256:{'0' * 64}", lambda path: path.write_bytes(b"evil") and None)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_blake3_is_verified_too(tmp_path: Path) -> None:
    blake3 = pytest.importorskip("blake3")
    wanted = f"blake3:{blake3.blake3(b'software').hexdigest()}"
    cache = Cache(tmp_path / "cache", Server().fetch, 1)
    with cache.open(wanted, lambda path: path.write_bytes(b"software") and None) as file:
        assert file.read() == b"software"


def test_what_is_open_can_be_read_on_when_the_cache_forgets_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Server().fetch, 0)
    first, second = b"1" * 10, b"2" * 10
    names = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (first, second)]
    with cache.open(names[0], lambda path: path.write_bytes(first) and None) as file:
        cache.open(names[1], lambda path: path.write_bytes(second) and None).close()
        assert len(list((tmp_path / "cache").glob("sha256-*"))) == 1
        assert file.read() == first


def test_what_killed_pilots_left_half_fetched_is_removed_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path, Server().fetch, 1)
    old, new = tmp_path / ".sha256-a.1.part", tmp_path / ".sha256-a.2.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    wanted = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    cache.open(wanted, lambda path: path.write_bytes(b"x") and None).close()
    assert (old.exists(), new.exists()) == (False, True)
