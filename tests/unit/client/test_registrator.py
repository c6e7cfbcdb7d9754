"""Which files a dataset is made of, in which order, and what is wrong with those that cannot be registered."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import os
import random
import resource
import shutil
import tempfile
import threading
import tracemalloc
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List

import pytest

from client import daqnames, journal, registrator
from client.registrator import Found, Options, find, natural, register
from copytools import checksum
from protocol import spd
from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, FileSpec
from protocol.messages.views import DatasetView


class Server:
    """What the registrator asks of a session, kept in a dictionary."""

    def __init__(self) -> None:
        self.files: Dict[str, List[FileSpec]] = {}
        self.states: Dict[str, str] = {}
        self.requests = 0
        self.fail_at = 0
        self.asked: List[str] = []

    def _count(self) -> None:
        self.requests += 1
        if self.requests == self.fail_at:
            raise PilotageError("SERVER_UNREACHABLE", "gone")

    def _view(self, name: str) -> DatasetView:
        files = self.files[name]
        return DatasetView(name, name, self.states[name], len(files), sum(file.size for file in files), "now")

    def dataset(self, name: str) -> DatasetView:
        self.asked.append(name)
        if name not in self.files:
            raise PilotageError("NOT_FOUND", f"no dataset {name}")
        return self._view(name)

    def create_dataset(self, spec: DatasetSpec) -> DatasetView:
        self._count()
        self.files[spec.name], self.states[spec.name] = list(spec.files), "closed" if spec.close else "open"
        return self._view(spec.name)

    def send_files(
        self, name: str, files: Iterable[FileSpec], *, close: bool, sent: Callable[[int], None]
    ) -> DatasetView:
        rest, n_known = iter(files), 0
        while part := list(islice(rest, 3)):
            self._count()
            there = {file.lfn: file for file in self.files[name]}
            for file in part:
                if there.get(file.lfn, file) != file:
                    raise PilotageError("ALREADY_EXISTS", f"dataset {name} has a file {file.lfn} already")
            self.files[name] += [file for file in part if file.lfn not in there]
            n_known += sum(file.lfn in there for file in part)
            sent(len(part))
        self.states[name] = "closed" if close else "open"
        return dataclasses.replace(self._view(name), n_known=n_known)


QUIET = Options(quiet=True, algorithms=("adler32", "md5"))


def quiet(**options: Any) -> Options:
    return Options(**{"quiet": True, "algorithms": ("adler32", "md5"), **options})


def go(server: Server, name: str, *paths: object, options: Options = QUIET) -> DatasetView:
    return register(server, name, [str(path) for path in paths], options)  # type: ignore[arg-type]


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")
    return folder


def first(path: object) -> Found:
    return next(iter(find([str(path)])))


def lfns(*paths: object) -> List[str]:
    return [found.lfn for found in find([str(path) for path in paths])]


# -- what a path stands for ---------------------------------------------------------------------------------------


def test_files_directories_and_globs_are_taken(tmp_path: Path) -> None:
    make(tmp_path, "a.spd", "sub/b.spd", "sub/deep/c.spd", "d1.txt", "d2.txt", "other")
    assert lfns(tmp_path / "a.spd", tmp_path / "sub", f"{tmp_path}/d*.txt") == [
        "a.spd", "b.spd", "c.spd", "d1.txt", "d2.txt"
    ]  # fmt: skip


def test_a_file_that_is_named_twice_is_taken_once(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    assert lfns(tmp_path, tmp_path / "a", f"{tmp_path}/*") == ["a", "b"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "a[1].spd", "a1.spd")
    assert lfns(tmp_path / "a[1].spd") == ["a[1].spd"]


def test_builder_directories_of_a_run_make_one_dataset_in_the_order_of_chunk_and_builder(
    tmp_path: Path,
) -> None:
    names = [
        f"builder-{b:02d}/run-000042-{chunk:05d}-{b:02d}.spd"
        for b in (0, 1)
        for chunk in (9, 10, 99_999, 100_000)
    ]
    make(tmp_path, *names)
    server = Server()
    go(server, "run-42", tmp_path / "builder-01", tmp_path / "builder-00")
    assert [file.lfn for file in server.files["run-42"]] == [
        f"run-000042-{chunk:05d}-{b:02d}.spd" for chunk in (9, 10, 99_999, 100_000) for b in (0, 1)
    ]


def test_numbers_in_names_count_as_numbers() -> None:
    """The fifth digit of the chunk number is not the last: %05u widens at chunk 100000."""
    names = [
        "run-000001-99999-00.spd",
        "run-000001-100000-00.spd",
        "run-000001-100000-02.spd",
        "run-000002-00000-00.spd",
    ]
    shuffled = random.Random(1).sample(names, len(names))
    assert sorted(shuffled, key=natural) == names
    assert sorted(["x²", "x10", "x9", "1", "a", ""], key=natural) == ["", "1", "a", "x9", "x10", "x²"]


def test_hidden_files_of_a_directory_are_left_out_since_they_are_unfinished(tmp_path: Path) -> None:
    make(tmp_path, "a.spd", ".b.spd.123.part", ".hidden/c.spd")
    assert lfns(tmp_path) == ["a.spd"]


def test_a_link_to_a_file_is_that_file_under_its_own_name(tmp_path: Path) -> None:
    make(tmp_path / "real", "a.spd")
    (tmp_path / "link.spd").symlink_to(tmp_path / "real" / "a.spd")
    found = first(tmp_path / "link.spd")
    assert (found.lfn, found.url) == ("link.spd", f"file://{tmp_path}/real/a.spd")
    server = Server()
    go(server, "d", tmp_path / "link.spd")
    assert server.files["d"][0].size == (tmp_path / "real" / "a.spd").stat().st_size


def test_a_link_has_no_place_below_a_prefix(tmp_path: Path) -> None:
    make(tmp_path / "real", "a.spd")
    (tmp_path / "link.spd").symlink_to(tmp_path / "real" / "a.spd")
    with pytest.raises(PilotageError, match="is a link, which --url-prefix cannot follow"):
        find([tmp_path / "link.spd"], "root://eos//daq")


def test_a_list_is_taken_as_it_is_line_by_line_or_with_nul_between(tmp_path: Path) -> None:
    make(tmp_path, "b[1].spd", "b1.spd", "sub/c d.spd", "sub/e.spd")
    for end in ("\n", "\0"):
        listed = f"{tmp_path}/b[1].spd{end}{end}{tmp_path}/sub".encode()
        found = find([], listed=registrator.lines_of(io.BytesIO(listed)))
        assert [each.lfn for each in found] == ["b[1].spd", "c d.spd", "e.spd"]


def test_names_with_line_breaks_and_no_utf_8_pass_through_a_list_with_nul() -> None:
    data = b"a\nb\0" + b"\xff" * 10 + b"\0x"
    assert [os.fsencode(line) for line in registrator.lines_of(io.BytesIO(data))] == data.split(b"\0")[:3]


def test_what_is_no_list_of_paths_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="is it a list of paths"):
        list(registrator.lines_of(io.BytesIO(bytes(range(1, 10)) * 2**20)))
    with pytest.raises(PilotageError, match=r"\*.spd: No such file"):
        find([], listed=[f"{tmp_path}/*.spd"])
    with pytest.raises(PilotageError, match="no NUL"):
        find([], listed=["a\0b"])


def test_the_common_parent_of_a_list_is_that_of_all_its_paths(tmp_path: Path) -> None:
    make(tmp_path, "b0/x-1.spd", "b1/deep/x-2.spd", "b1/x-3.spd")
    listed = [f"{tmp_path}/b1/deep/x-2.spd", f"{tmp_path}/b1/x-3.spd", f"{tmp_path}/b0"]
    assert [each.url for each in find([], "root://eos//daq", listed)] == [
        "root://eos//daq/b0/x-1.spd", "root://eos//daq/b1/deep/x-2.spd", "root://eos//daq/b1/x-3.spd"
    ]  # fmt: skip


# -- files that are still being written -----------------------------------------------------------------------------


def spd_file(path: Path, closed: bool = True) -> Path:
    """A real .spd file without frames."""
    header = spd.FileHeader(spd.Kind.RAW, 1, 2, 3, 10_000, 100, (spd.Source(1, spd.Role.DETECTOR, 8),))
    with open(path, "wb") as stream:
        writer = spd.Writer(stream, header)
        if closed:
            writer.close()
    return path


def cut(path: Path) -> Path:
    os.truncate(path, path.stat().st_size - 1)
    return path


def without_end(path: Path) -> Path:
    with open(path, "r+b") as stream:
        stream.seek(-spd.FILE_TRAILER_BYTES, os.SEEK_END)
        stream.write(bytes(8))
    return path


UNFINISHED: Dict[str, Callable[[Path], Path]] = {
    "its name says so": lambda folder: make(folder, "a.spd.part") / "a.spd.part",
    "has no header yet": lambda folder: Path(shutil.copy(os.devnull, folder / "a.spd")),
    "end mark is missing": lambda folder: spd_file(folder / "a.spd", closed=False),
    "it has [0-9]+ of [0-9]+ bytes": lambda folder: cut(spd_file(folder / "a.spd")),
    "its end mark is": lambda folder: without_end(spd_file(folder / "a.spd")),
    "it changed [0-9] s ago": lambda folder: make(folder, "a.txt") / "a.txt",
}


@pytest.mark.parametrize("words", list(UNFINISHED))
def test_an_unfinished_file_refuses_the_dataset_or_is_left_out_and_the_dataset_stays_open(
    tmp_path: Path, words: str
) -> None:
    os.utime(spd_file(tmp_path / "whole.spd"), (1, 1))
    bad = UNFINISHED[words](tmp_path)
    min_age = 3600.0 if words.startswith("it changed") else 0.0
    server = Server()
    with pytest.raises(PilotageError, match=words) as caught:
        go(server, "d", tmp_path, options=quiet(min_age=min_age))
    assert (caught.value.name, server.requests) == ("FILE_UNFINISHED", 0)
    told: List[str] = []
    wish = quiet(min_age=min_age, skip_unfinished=True)
    view = register(server, "d", [tmp_path], wish, say=told.append)  # type: ignore[arg-type]
    assert ([file.lfn for file in server.files["d"]], view.state) == (["whole.spd"], "open")
    assert bad.name in told[0] and "dataset d stays open" in told[-1]


def test_a_file_of_another_layout_is_not_judged_by_its_end(tmp_path: Path) -> None:
    make(tmp_path, "a.spd")
    newer = spd_file(tmp_path / "b.spd")
    newer.write_bytes(newer.read_bytes()[:8] + b"\2\0" + b"x")
    assert go(Server(), "d", tmp_path).state == "closed"


def test_a_file_that_grows_while_it_is_read_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.spd", "b.spd")
    really = checksum.of

    def of(path: str, *rest: Any) -> Dict[str, str]:
        found = really(path, *rest)
        if path.endswith("a.spd"):
            with open(path, "a") as file:
                file.write("more")
        return found

    monkeypatch.setattr(registrator.checksum, "of", of)
    server = Server()
    view = go(server, "d", tmp_path, options=quiet(skip_unfinished=True))
    assert ([file.lfn for file in server.files["d"]], view.state) == (["b.spd"], "open")


def test_chunks_that_a_builder_lacks_are_told(tmp_path: Path) -> None:
    make(tmp_path, *(f"b{b}/run-000007-{chunk:05d}-{b:02d}.spd" for chunk in (3, 4, 5) for b in (0, 1)))
    (tmp_path / "b1/run-000007-00004-01.spd").unlink()
    told: List[str] = []
    register(Server(), "d", [tmp_path], QUIET, say=told.append)  # type: ignore[arg-type]
    assert told == ["warning: run 7, builder 1: 2 of the 3 chunks from 3 to 5"]


def test_189_the_three_numbers_of_a_daq_name_are_read_as_numbers() -> None:
    assert daqnames.parse("run-000001-100000-02.spd") == (1, 100_000, 2)
    names = ["run-000001-100000-00.spd", "run-000001-99999-01.spd", "run-000001-99999-00.spd"]
    assert sorted(names, key=lambda name: daqnames.parse(name) or ()) == names[::-1]
    for other in ("run-000001-00001.spd", "run-1-2-3-4.spd", "run-1-2-3.txt", "", "run--1-2-3.spd.x"):
        assert daqnames.parse(other) is None


# -- going on after a break -----------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = journal.place("http://server", "d")
    assert place is not None
    return place


def count_reads(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    read: List[str] = []
    really = checksum.of
    monkeypatch.setattr(
        registrator.checksum,
        "of",
        lambda path, *rest: read.append(os.path.basename(path)) or really(path, *rest),
    )
    return read


def test_after_a_break_no_large_file_is_read_again_but_one_that_changed(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    make(folder, "small")
    for name in ("a", "b"):
        (folder / name).write_bytes(name.encode() * journal.WORTH_BYTES)
    read = count_reads(monkeypatch)
    server = Server()
    server.fail_at = 1
    with pytest.raises(PilotageError, match="gone"):
        go(server, "d", folder, options=quiet(journal=notes))
    assert sorted(read) == ["a", "b", "small"]
    assert notes.stat().st_mode & 0o077 == 0
    with open(notes, "a") as torn:
        torn.write('["/x", [1,')
    read.clear()
    (folder / "b").write_bytes(b"c" * journal.WORTH_BYTES)
    go(server, "d", folder, options=quiet(journal=notes))
    assert sorted(read) == ["b", "small"]
    assert [file.checksums["md5"] for file in server.files["d"]][:2] == [
        hashlib.md5(letter * journal.WORTH_BYTES).hexdigest() for letter in (b"a", b"c")
    ]
    assert not notes.exists(), "what is registered need not be remembered"


def test_another_checksum_than_was_learned_is_calculated(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(journal.WORTH_BYTES))
    server = Server()
    server.fail_at = 1
    with pytest.raises(PilotageError, match="gone"):
        go(server, "d", tmp_path / "a", options=quiet(journal=notes, algorithms=("md5",)))
    read = count_reads(monkeypatch)
    go(server, "d", tmp_path / "a", options=quiet(journal=notes))
    assert read == ["a"]
    assert server.files["d"][0].checksums.keys() == {"adler32", "md5"}


def test_notes_that_cannot_be_kept_or_are_foreign_change_nothing(tmp_path: Path, notes: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(journal.WORTH_BYTES))
    notes.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b'\xff{}\n[1]\n["a", 1, {"md5": "x"}]\n')
    notes.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert go(Server(), "d", tmp_path / "a", options=quiet(journal=notes)).state == "closed"
    assert elsewhere.read_bytes() == before, "no link is followed to write"


def test_a_user_without_a_home_has_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert journal.place("http://server", "d") is None


def test_old_notes_are_cleared_away(notes: Path) -> None:
    notes.parent.mkdir(parents=True)
    old = notes.with_name("old.jsonl")
    for path in (old, notes):
        path.write_text("")
    os.utime(old, (1, 1))
    journal.Journal(notes)
    assert not old.exists() and notes.exists()


# -- addresses ----------------------------------------------------------------------------------------------------


def test_an_address_is_the_absolute_path_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a b#1.spd")
    monkeypatch.chdir(tmp_path)
    assert first("a b#1.spd").url == f"file://{tmp_path}/a%20b%231.spd"


@pytest.mark.parametrize("prefix", ["root://eos//daq", "root://eos//daq/"])
def test_a_prefix_stands_for_the_common_parent_of_the_paths(tmp_path: Path, prefix: str) -> None:
    make(tmp_path, "b0/x-1.spd", "b1/x-2.spd")
    both = find([tmp_path / "b0", tmp_path / "b1"], prefix)
    assert [found.url for found in both] == ["root://eos//daq/b0/x-1.spd", "root://eos//daq/b1/x-2.spd"]
    one = find([tmp_path / "b0" / "x-1.spd"], prefix)
    assert [found.url for found in one] == ["root://eos//daq/x-1.spd"]


# -- what is wrong ------------------------------------------------------------------------------------------------


def spoil(kind: str, folder: Path) -> object:
    """Something that cannot be registered; its path."""
    path = folder / "bad"
    if kind == "missing":
        return path
    if kind == "glob":
        return folder / "*.nothing"
    if kind == "empty directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "broken link":
        path.symlink_to(folder / "nowhere")
    elif kind == "linked directory":
        make(path, "inside")
        (path / "link").symlink_to(folder)
    elif kind in ("newline", "dash", "escape"):
        path = folder / {"newline": "a\nb", "dash": "-rf", "escape": "a\x1b[31mb"}[kind]
        path.write_text("x")
    elif kind == "bytes":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/a\xff"))
        path.write_text("x")
    elif kind == "long":
        path = folder / ("x" * 240)
        path.write_text("x")
    return path


WRONG = {
    "missing": ("BAD_PATH", "bad does not exist"),
    "glob": ("BAD_PATH", r"\*\.nothing matches no file"),
    "empty directory": ("BAD_PATH", "bad holds no file"),
    "pipe": ("BAD_PATH", "bad: is not a regular file"),
    "broken link": ("BAD_PATH", "bad: is a link that leads nowhere"),
    "linked directory": ("BAD_PATH", "link is a link to a directory"),
    "newline": ("BAD_LFN", r"control character U\+000A"),
    "dash": ("BAD_LFN", "begins with a dash"),
    "escape": ("BAD_LFN", r"control character U\+001B"),
    "bytes": ("BAD_PATH", "is not UTF-8"),
    "long": ("BAD_LFN", "has 240 bytes"),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_what_cannot_be_registered_is_named_and_nothing_is_registered(tmp_path: Path, kind: str) -> None:
    good = make(tmp_path / "good", "fine.spd")
    bad = spoil(kind, tmp_path)
    server = Server()
    name, words = WRONG[kind]
    with pytest.raises(PilotageError, match=words) as caught:
        go(server, "d", good, bad)
    assert caught.value.name == name
    assert server.requests == 0


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    make(tmp_path, "a\nb", "-c", "fine")
    with pytest.raises(PilotageError, match="3 problems with 3 files; nothing was registered") as caught:
        find([tmp_path, tmp_path / "missing"])
    problems = caught.value.fields["problems"]
    assert len(problems) == 3
    assert all(any(word in problem for problem in problems) for word in ("missing", "U+000A", "dash"))


def test_the_same_name_in_two_directories_is_refused_with_both_paths(tmp_path: Path) -> None:
    make(tmp_path, "b0/x.spd", "b1/x.spd")
    with pytest.raises(PilotageError, match="b1/x.spd: has the same name as .*b0/x.spd") as caught:
        find([tmp_path])
    assert caught.value.name == "ALREADY_EXISTS"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so give its rights away for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("moment", ["at once", "when it is opened"])
def test_an_unreadable_file_is_named(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    server = Server()
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), "x.spd", "y.spd")
        Path(name).chmod(0o755)
        Path(name, "x.spd").chmod(0)
        if moment == "when it is opened":
            monkeypatch.setattr("os.access", lambda path, mode: True)
        with (
            as_nobody(),
            pytest.raises(PilotageError, match="x.spd: (may not|cannot) be read.*Permission denied"),
        ):
            go(server, "d", name)
    assert server.requests == 0


@pytest.mark.parametrize("moment", ["while it is read", "after it was read"])
def test_a_file_that_is_still_being_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    make(tmp_path, "a.spd", "b.spd")
    grow = threading.Event()
    really = registrator._stamp

    def stamp(path: str) -> Any:
        """Called once when the files are looked for, once after each was read, and once before they are sent."""
        name = os.path.basename(path)
        calls[name] = calls.get(name, 0) + 1
        if name == "a.spd" and calls["a.spd"] == (2 if moment == "while it is read" else 3):
            with open(path, "a") as file:
                file.write("more")
            grow.set()
        return really(path)

    calls: Dict[str, int] = {}
    monkeypatch.setattr(registrator, "_stamp", stamp)
    server = Server()
    with pytest.raises(PilotageError, match="a.spd:? changed while it was read: is it still being written"):
        go(server, "d", tmp_path)
    assert grow.is_set()
    assert server.requests == 0


def test_a_file_that_shrank_is_no_file_to_register(tmp_path: Path) -> None:
    make(tmp_path, "a.spd")
    found = first(tmp_path)
    (tmp_path / "a.spd").write_text("")
    with pytest.raises(PilotageError, match="changed while it was read"):
        registrator._hash(found, ("md5",), lambda more: None, threading.Event())


# -- checksums ----------------------------------------------------------------------------------------------------


def test_each_file_is_read_once_for_all_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"Pilotage" * 300_000)
    read: List[int] = []
    spec = registrator._hash(
        first(tmp_path / "a"), ("adler32", "md5", "blake3"), read.append, threading.Event()
    )
    assert sum(read) == spec.size == 2_400_000
    assert spec.checksums == {
        "adler32": "a46b19a2",
        "md5": "3b65094448d289506e9029ac02052d8c",
        "blake3": "1adb2d9f58a45c4742385bbcd3db909cfd4837ed70612db5af9a5cb5f22b0159",
    }


def test_by_default_all_checksums_that_this_machine_can_are_registered(tmp_path: Path) -> None:
    make(tmp_path, "a")
    server = Server()
    go(server, "d", tmp_path, options=Options(quiet=True))
    assert {"adler32", "md5"} <= server.files["d"][0].checksums.keys()


def test_ctrl_c_ends_the_reading_at_the_next_block(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 * checksum.BLOCK))
    stop = threading.Event()
    read: List[int] = []

    def advance(more: int) -> None:
        read.append(more)
        stop.set()

    with pytest.raises(registrator._Stopped):
        registrator._hash(first(tmp_path / "a"), ("adler32",), advance, stop)
    assert len(read) == 1


# -- telling the server -------------------------------------------------------------------------------------------


def test_a_small_dataset_comes_into_being_whole_and_closed_by_one_request(tmp_path: Path) -> None:
    make(tmp_path, "a", "b")
    server = Server()
    view = go(server, "d", tmp_path)
    assert (server.requests, view.state, view.n_files) == (1, "closed", 2)


def test_no_close_leaves_it_open(tmp_path: Path) -> None:
    make(tmp_path, "a")
    assert go(Server(), "d", tmp_path, options=quiet(close=False)).state == "open"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrator, "BATCH", 3)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("count", [1, 3, 4, 6, 7])
def test_a_small_one_goes_at_once_and_a_large_one_in_a_stream(tmp_path: Path, count: int) -> None:
    make(tmp_path, *(f"f{number}" for number in range(count)))
    server = Server()
    view = go(server, "d", tmp_path)
    requests = 1 if count <= 3 else 1 + -(-count // 3)
    assert (view.state, view.n_files, server.requests) == ("closed", count, requests)
    assert [file.lfn for file in server.files["d"]] == [f"f{number}" for number in range(count)]


def test_a_taken_name_is_told_before_a_byte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a")
    server = Server()
    go(server, "d", tmp_path)
    monkeypatch.setattr(registrator, "_hashed", lambda *args: pytest.fail("files were read"))
    with pytest.raises(PilotageError, match="there is a dataset d already") as caught:
        go(server, "d", tmp_path)
    assert caught.value.name == "ALREADY_EXISTS"


@pytest.mark.usefixtures("small_batches")
def test_a_registration_that_broke_off_is_completed_by_the_same_command_with_add(tmp_path: Path) -> None:
    make(tmp_path, *(f"f{number}" for number in range(8)))
    server = Server()
    server.fail_at = 3
    with pytest.raises(PilotageError, match="dataset d is open with at least 3 of 8 files") as caught:
        go(server, "d", tmp_path)
    assert "--add" in caught.value.fields["advice"]
    view = go(server, "d", tmp_path, options=quiet(add=True))
    assert (view.state, view.n_files, view.n_known) == ("closed", 8, 3)


def test_add_refuses_another_content_under_a_name_that_is_there(tmp_path: Path) -> None:
    make(tmp_path, "a")
    server = Server()
    go(server, "d", tmp_path, options=quiet(close=False))
    (tmp_path / "a").write_text("something else\n")
    with pytest.raises(PilotageError, match="dataset d has a file a already"):
        go(server, "d", tmp_path, options=quiet(add=True))


def test_without_checksums_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a", "b")
    monkeypatch.setattr(registrator.checksum, "of", lambda *args: pytest.fail("a file was read"))
    server = Server()
    go(server, "d", tmp_path, options=quiet(algorithms=("none",)))
    assert [(file.lfn, file.size, file.checksums) for file in server.files["d"]] == [
        ("a", len("content of a\n"), {}),
        ("b", len("content of b\n"), {}),
    ]


@pytest.mark.parametrize(("prepare", "name"), [(lambda server, path: None, "NOT_FOUND"),
                                               (lambda server, path: go(server, "d", path), "WRONG_STATE")])  # fmt: skip
def test_add_needs_an_open_dataset(
    tmp_path: Path, prepare: Callable[[Server, Path], object], name: str
) -> None:
    make(tmp_path, "a")
    server = Server()
    prepare(server, tmp_path)
    with pytest.raises(PilotageError) as caught:
        go(server, "d", tmp_path, options=quiet(add=True))
    assert caught.value.name == name


def test_what_is_found_of_many_files_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A dataset of a million files is registered from a login node: 1.5 GB would be too much of it."""
    inventory = registrator.Inventory()
    n_files = 20_000
    tracemalloc.start()
    try:
        for nr in range(n_files):
            lfn = f"run-000001-{nr:05d}-00.spd"
            inventory.add(Found(lfn, f"/daq/{lfn}", f"file:///daq/{lfn}", (nr, nr, nr)))
        assert sum(1 for each in inventory if each.size >= 0) == len(inventory) == n_files
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * n_files


def test_a_file_whose_times_and_number_are_larger_than_a_database_takes_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE file systems use all 64 bits of an inode number."""
    make(tmp_path, "a.spd")
    really = registrator._stamp
    monkeypatch.setattr(registrator, "_stamp", lambda path: (really(path)[0], 2**63, 2**64 - 1))
    server = Server()
    go(server, "d", tmp_path)
    assert [file.lfn for file in server.files["d"]] == ["a.spd"]


def test_a_directory_that_is_not_utf_8_may_hold_files_behind_a_prefix(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xfcn")
    make(folder, "a.spd")
    (found,) = find([folder], "root://eos//daq")
    assert (found.path, found.url) == (str(folder / "a.spd"), "root://eos//daq/a.spd")


def test_a_full_disk_of_temporary_files_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrator, "SPOOL_BYTES", 64 * 1024)
    inventory = registrator.Inventory()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, hard))
    try:
        with pytest.raises(OSError, match="is the disk full") as caught:
            for nr in range(10_000):
                inventory.add(Found(f"{nr}", f"/daq/{nr}", f"file:///daq/{nr}", (nr, nr, nr)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == tempfile.gettempdir()


def test_an_empty_directory_is_named_beside_other_problems(tmp_path: Path) -> None:
    make(tmp_path, "x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PilotageError) as caught:
        find([tmp_path / "link", tmp_path / "empty"])
    told = " ".join(caught.value.fields["problems"])
    assert "leads nowhere" in told and "empty holds no file" in told


def test_what_was_found_may_go_in_another_thread(tmp_path: Path) -> None:
    """Wherever the garbage is collected."""
    left = [registrator.Inventory()]
    thread = threading.Thread(target=left.clear)
    thread.start()
    thread.join()
    gc.collect()
