"""Archives that somebody else made: what is unpacked stays inside, and within its bounds."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Tuple

import pytest

from pilot import archives
from pilot.archives import BadArchive, Bounds

WIDE = Bounds(10**9, 50_000)


def unpack(data: bytes, to: Path, bounds: Bounds = WIDE, **more: Any) -> None:
    archives.extract(io.BytesIO(data), to, bounds, **more)


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


def packed_zip(*members: Tuple[str, bytes, int], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A .zip of names, contents and modes; a name that ends with / is a directory."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", how) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, how
            archive.writestr(info, content)
    return packed.getvalue()


BAD = {
    "parent": tar(("../x", b"")),
    "absolute": tar(("/tmp/x", b"")),
    "device": tar(("x", device)),
    "link out": tar(("x", link("../../etc/passwd"))),
    "absolute link": tar(("x", link("/etc/passwd"))),
    "hard link out": tar(("x", link("../secret", tarfile.LNKTYPE))),
    "through a link": tar(("a", None), ("a/up", link("..")), ("a/up/up", link("..")), ("a/up/up/x", b"")),
    "link chain": tar(("a", link(".")), ("b", link("a/..")), ("b/x", b"")),
    "link to nothing": tar(("x", link("nothing", tarfile.LNKTYPE))),
    "link to itself": tar(("x", link("x", tarfile.LNKTYPE))),
    "file as directory": tar(("a", b""), ("a/b", b"")),
    "endless name": tar(("x" * 300, b"")),
    "zip parent": packed_zip(("../x", b"", 0o644)),
    "zip absolute": packed_zip(("/tmp/x", b"", 0o644)),
    "zip link": packed_zip(("x", b"/etc/passwd", 0o120777)),
    "zip device": packed_zip(("x", b"", 0o020644)),
    "zip twice": packed_zip(("a", b"", 0o644), ("a/b", b"", 0o644)),
    "zip of another kind": packed_zip(("x", b"x", 0o644), how=zipfile.ZIP_LZMA),
    "half a zip": packed_zip(("x", b"x" * 99, 0o644))[:80],
    "nothing": b"",
}


@pytest.mark.parametrize("what", BAD)
def test_b6_an_archive_that_leads_out_or_is_none_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(BadArchive):
        unpack(BAD[what], tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "secret"]


def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    unpack(tar(("lib", None), ("lib/v1", b"one"), ("lib/now", link("v1"))), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "lib" / "now").read_bytes() == b"one"


def test_hard_links_become_files_of_their_own_within_the_bounds(tmp_path: Path) -> None:
    linked = tar(("one", b"x" * 600), ("two", link("one", tarfile.LNKTYPE)), mode=0o755)
    unpack(linked, tmp_path / "to", Bounds(1200, 5))
    assert (tmp_path / "to" / "two").read_bytes() == b"x" * 600
    assert (tmp_path / "to" / "two").stat().st_nlink == 1
    assert os.access(tmp_path / "to" / "two", os.X_OK)
    with pytest.raises(BadArchive, match="bytes unpacked"):
        unpack(linked, tmp_path / "again", Bounds(1000, 5))


def test_rights_beyond_the_owners_are_dropped(tmp_path: Path) -> None:
    unpack(tar(("tool", b"x"), mode=0o6777), tmp_path / "tar")
    unpack(packed_zip(("tool", b"x", 0o106777)), tmp_path / "zip")
    for kind in ("tar", "zip"):
        assert (tmp_path / kind / "tool").stat().st_mode & 0o7777 == 0o700


def test_a_zip_is_unpacked_with_its_directories_and_programs(tmp_path: Path) -> None:
    unpack(
        packed_zip(("soft/", b"", 0o40755), ("soft/bin/tool", b"run", 0o755), ("soft/readme", b"text", 0)),
        tmp_path / "to",
    )
    assert os.access(tmp_path / "to/soft/bin/tool", os.X_OK)
    assert (tmp_path / "to/soft/readme").read_bytes() == b"text"
    assert not os.access(tmp_path / "to/soft/readme", os.X_OK)


@pytest.mark.parametrize(
    "bomb",
    [tar(("zeros", bytes(5_000_000))), packed_zip(("zeros", bytes(5_000_000), 0o644))],
    ids=["tar", "zip"],
)
def test_b6_a_bomb_is_refused_before_it_fills_the_disk(bomb: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="bytes unpacked"):
        unpack(bomb, tmp_path / "bundle", Bounds(1_000_000, 50))
    assert sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir()) <= 1_000_000


def test_b6_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    honest = packed_zip(("zeros", bytes(5_000_000), 0o644))
    lying = honest.replace((5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != honest
    with pytest.raises(BadArchive):
        unpack(lying, tmp_path / "bundle", Bounds(1_000_000, 50))


def test_b6_a_bomb_in_a_header_is_refused(tmp_path: Path) -> None:
    def long_name(info: tarfile.TarInfo) -> None:
        info.pax_headers = {"comment": "x" * 5_000_000}

    with pytest.raises(BadArchive, match="bytes unpacked"):
        unpack(tar(("x", long_name)), tmp_path / "bundle", Bounds(1_000_000, 50))


def test_b6_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Bounds(10**6, 5)
    with pytest.raises(BadArchive, match="members"):
        unpack(tar(*((f"f{number}", b"") for number in range(6))), tmp_path / "tar", few)
    many = packed_zip(*((f"f{number}", b"", 0o644) for number in range(6)))
    with pytest.raises(BadArchive, match="members"):
        unpack(many, tmp_path / "zip", few)
    monkeypatch.setattr(archives, "LARGEST_DIRECTORY", 100)  # the list itself would fill the memory
    with pytest.raises(BadArchive, match="members"):
        unpack(many, tmp_path / "again")


def test_b6_directories_that_names_only_imply_are_counted(tmp_path: Path) -> None:
    names = [f"{number}/" + "d/" * 60 + "x" for number in range(5)]
    few = Bounds(10**6, 20)
    for kind, data in (
        ("tar", tar(*((name, b"") for name in names))),
        ("links", tar(("to", b""), *((name, link("to", tarfile.LNKTYPE)) for name in names))),
        ("zip", packed_zip(*((name, b"", 0o644) for name in names))),
    ):
        with pytest.raises(BadArchive, match="members"):
            unpack(data, tmp_path / kind, few)
        assert len(list((tmp_path / kind).rglob("*"))) <= 20
    # Those that are named, or are there, count once.
    unpack(
        tar(("a", None), ("a/b", None), ("a/b/1", b""), ("a/b/2", b"")), tmp_path / "honest", Bounds(10, 4)
    )


def test_b6_directories_are_made_no_deeper_than_anybody_needs(tmp_path: Path) -> None:
    unpack(tar(("d/" * 64 + "x", b"")), tmp_path / "fits")
    for number, data in enumerate((tar(("d/" * 65 + "x", b"")), packed_zip(("d/" * 65 + "x", b"", 0o644)))):
        with pytest.raises(BadArchive, match="deeper than 64"):
            unpack(data, tmp_path / str(number))


def test_who_wants_it_no_more_ends_the_work(tmp_path: Path) -> None:
    class Over(Exception):
        pass

    def check() -> None:
        raise Over

    for number, data in enumerate((tar(("a", b"")), packed_zip(("a", b"", 0o644)))):
        with pytest.raises(Over):
            unpack(data, tmp_path / str(number), check=check)


def test_without_the_standard_librarys_filter_the_own_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    for number, data in enumerate(BAD.values()):
        with pytest.raises(BadArchive):
            unpack(data, tmp_path / str(number))
    unpack(tar(("tool", b"x")), tmp_path / "good")
    assert (tmp_path / "good" / "tool").read_bytes() == b"x"
