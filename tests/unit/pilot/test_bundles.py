"""Bundles: what is fetched is verified, what is unpacked stays inside."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from pilot import bundles
from pilot.bundles import Cache, extract
from protocol.errors import PilotageError
from protocol.messages import BundleRef


def tar(*members: Tuple[str, Any], mode: int = 0o644) -> bytes:
    """A .tar.gz; bytes make a file, None a directory, a function changes the entry itself."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif callable(content):
                content(info)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, target

    return change


def device(info: tarfile.TarInfo) -> None:
    info.type = tarfile.CHRTYPE


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
    next((tmp_path / "cache").glob("*.tar.gz")).write_bytes(tar(("tool", b"evil")))
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
    assert not list((tmp_path / "cache").glob("*.tar.gz")) and not (tmp_path / "a").exists()


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    server = Server(*(tar((f"file{number}", os.urandom(600_000))) for number in range(3)))
    cache = Cache(tmp_path / "cache", server.fetch, 1)
    for number in range(3):
        cache.unpack(server.ref(number), tmp_path / str(number))
        os.utime(tmp_path / "cache" / f"{server.ref(number).digest}.tar.gz", (number, number))
    assert [path.name for path in (tmp_path / "cache").glob("*.tar.gz")] == [f"{server.ref(2).digest}.tar.gz"]


@pytest.mark.parametrize("digest", ["../../etc", "A" * 64, ""])
def test_a_digest_that_is_none_never_becomes_a_path(digest: str, tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="is no digest"):
        Cache(tmp_path, Server().fetch, 1).unpack(BundleRef(digest, 1), tmp_path / "a")


BAD = {
    "parent": tar(("../x", b"")),
    "absolute": tar(("/tmp/x", b"")),
    "device": tar(("x", device)),
    "link out": tar(("x", link("../../etc/passwd"))),
    "absolute link": tar(("x", link("/etc/passwd"))),
    "hard link out": tar(("x", link("../secret", tarfile.LNKTYPE))),
    "through a link": tar(("a", None), ("a/up", link("..")), ("a/up/up", link("..")), ("a/up/up/x", b"")),
    "link chain": tar(("a", link(".")), ("b", link("a/..")), ("b/x", b"")),
}


@pytest.mark.parametrize("what", BAD)
def test_b6_an_archive_that_leads_out_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(PilotageError) as caught:
        extract(io.BytesIO(BAD[what]), tmp_path / "bundle")
    assert caught.value.name == "BUNDLE_FAILED"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "secret"]


def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    extract(io.BytesIO(tar(("lib", None), ("lib/v1", b"one"), ("lib/now", link("v1")))), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "lib" / "now").read_bytes() == b"one"


def test_rights_beyond_the_owners_are_dropped(tmp_path: Path) -> None:
    extract(io.BytesIO(tar(("tool", b"x"), mode=0o6777)), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "tool").stat().st_mode & 0o7777 == 0o700


def test_b6_a_bomb_is_refused_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "LARGEST_UNPACKED", 1_000_000)
    with pytest.raises(PilotageError, match="bytes unpacked"):
        extract(io.BytesIO(tar(("zeros", bytes(5_000_000)))), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "zeros").exists()


def test_b6_a_bomb_in_a_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles._Bounded, "LARGEST", 1_000_000)

    def long_name(info: tarfile.TarInfo) -> None:
        info.pax_headers = {"comment": "x" * 5_000_000}

    with pytest.raises(PilotageError, match="bytes unpacked"):
        extract(io.BytesIO(tar(("x", long_name))), tmp_path / "bundle")


def test_b6_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MOST_MEMBERS", 5)
    with pytest.raises(PilotageError, match="members"):
        extract(io.BytesIO(tar(*((f"f{number}", b"") for number in range(6)))), tmp_path / "bundle")


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


def test_without_the_standard_librarys_filter_the_own_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    for number, data in enumerate(BAD.values()):
        with pytest.raises(PilotageError):
            extract(io.BytesIO(data), tmp_path / str(number))
    extract(io.BytesIO(tar(("tool", b"x"))), tmp_path / "good")
    assert (tmp_path / "good" / "tool").read_bytes() == b"x"
