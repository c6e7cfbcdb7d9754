"""What the watcher of an input buffer registers, in which order, when it waits, and when it ends."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List

import pytest

from client import registrator
from client.watcher import Buffer, Watcher, Wish
from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, FileSpec
from protocol.messages.views import DatasetView, FileView

NAME = "run-000007-{:05d}-{:02d}.spd"


class Clock:
    """Time passes only where the watcher waits; `then` says what happens at each wait."""

    def __init__(self, *then: Callable[[], object], ticks: int = 20) -> None:
        self.now = 0.0
        self.waits: List[float] = []
        self._then = list(then)
        self._left = ticks

    def __call__(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return self._left <= 0

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        self._left -= 1
        if self._then:
            self._then.pop(0)()
        return self.is_set()


class Server:
    """What the watcher asks of a session."""

    def __init__(self) -> None:
        self.files: List[FileSpec] = []
        self.state = ""
        self.n_waiting = 0
        self.failures: List[str] = []
        self.others: Dict[str, FileSpec] = {}

    def _answer(self) -> DatasetView:
        return DatasetView("d", "d", self.state, len(self.files), 0, "now", n_waiting=self.n_waiting)

    def _may_fail(self) -> None:
        if self.failures:
            raise PilotageError(self.failures.pop(0), "a test says so")

    def dataset(self, name: str) -> DatasetView:
        self._may_fail()
        if not self.state:
            raise PilotageError("NOT_FOUND", "no dataset d")
        return self._answer()

    def create_dataset(self, spec: DatasetSpec) -> DatasetView:
        self.state = "open"
        return self._answer()

    def dataset_files(self, name: str) -> Iterable[FileView]:
        return [
            FileView(each.lfn, "d", "d", each.size, each.checksums, each.url, "available")
            for each in self.files
        ]

    def send_files(self, name: str, files: Iterable[FileSpec]) -> DatasetView:
        self._may_fail()
        sent = list(files)
        there = {**self.others, **{file.lfn: file for file in self.files}}
        for file in sent:
            if there.get(file.lfn, file) != file:
                raise PilotageError(
                    "ALREADY_EXISTS", f"dataset d has a file {file.lfn} already, with 1 bytes"
                )
        new = [file for file in sent if file.lfn not in there]
        self.files += new
        self.n_waiting += len(new)
        return dataclasses.replace(self._answer(), n_added=len(new))

    def close_dataset(self, name: str) -> DatasetView:
        self._may_fail()
        self.state = "closed"
        return self._answer()

    @property
    def lfns(self) -> List[str]:
        return [file.lfn for file in self.files]


class Case:
    """A buffer, a server and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.said: List[str] = []

    def make(self, *names: str, text: str = "content") -> None:
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def watch(self, clock: Clock, **wish: Any) -> bool:
        options = Wish(**{"algorithms": ("md5",), "threads": 2, **wish})
        buffer = Buffer([self.folder], options, self.said.append, clock)
        watcher = Watcher(self.server, "d", buffer, options, self.said.append, clock)  # type: ignore[arg-type]
        return watcher.run()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "buffer").mkdir()
    return Case(tmp_path / "buffer")


def test_files_are_registered_as_they_come_in_the_order_of_run_chunk_and_builder(case: Case) -> None:
    names = [NAME.format(chunk, builder) for chunk in (99_999, 100_000) for builder in (0, 1)]
    case.make(*(f"b{name[-6:-4]}/{name}" for name in reversed(names)))
    clock = Clock(*[lambda: None] * 3, lambda: case.make("b00/run-000008-00000-00.spd"))
    assert not case.watch(clock)
    assert case.server.lfns == [*names, "run-000008-00000-00.spd"]
    assert case.server.state == "open"
    assert case.server.files[0].checksums.keys() == {"md5"}
    assert {path.read_text() for path in case.folder.rglob("*.spd")} == {"content"}


def test_a_file_that_still_changes_or_bears_a_sign_is_not_registered(case: Case) -> None:
    case.make("growing.dat", "a.dat.part", ".hidden.dat", "whole.dat")
    grown = 0

    def grow() -> None:
        nonlocal grown
        grown += 1
        case.make("growing.dat", text="x" * grown)

    case.watch(Clock(*[grow] * 8, ticks=8))
    assert case.server.lfns == ["whole.dat"]
    assert grown == 8


def test_others_of_its_run_wait_for_an_unfinished_file_and_not_for_ever(case: Case) -> None:
    first, second = NAME.format(5, 0), NAME.format(6, 0)
    case.make(second, "calibration.txt", "run-000008-00000-00.spd")
    (case.folder / first).write_bytes(b"")
    case.watch(Clock(ticks=10), hold=120)
    assert case.server.lfns == ["calibration.txt", "run-000008-00000-00.spd"], "those of its run wait"
    case.watch(Clock(ticks=60), hold=120)
    assert case.server.lfns[-1] == second
    assert any(f"{first}: it has no header yet" in words for words in case.said)
    case.make(first)
    case.watch(Clock(), hold=120)
    assert case.server.lfns[-1] == first, "better late than never"


def test_a_watcher_that_is_started_again_reads_nothing_twice(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.make("a.dat", "b.dat")
    case.watch(Clock())
    case.make("c.dat")
    read: List[str] = []
    really = registrator.checksum.of
    monkeypatch.setattr(
        registrator.checksum,
        "of",
        lambda path, *rest: read.append(os.path.basename(path)) or really(path, *rest),
    )
    case.watch(Clock())
    assert (case.server.lfns, read) == (["a.dat", "b.dat", "c.dat"], ["c.dat"])


def test_no_more_is_registered_than_may_wait_to_be_processed(case: Case) -> None:
    case.make(*(f"{nr}.dat" for nr in range(9)))

    def process() -> None:
        case.server.n_waiting -= 2

    case.watch(Clock(*[lambda: None] * 4, process, ticks=5), max_waiting=3)
    assert case.server.lfns == ["0.dat", "1.dat", "2.dat"]
    case.watch(Clock(*[lambda: None] * 2, ticks=4), max_waiting=3)
    assert len(case.server.files) == 5
    assert sum("wait to be processed" in words for words in case.said) >= 1
    case.watch(Clock(), max_waiting=0)
    assert len(case.server.files) == 9


@pytest.mark.parametrize("error", ["SERVER_UNREACHABLE", "SERVER_UNAVAILABLE", "TOO_MANY_REQUESTS"])
def test_a_server_that_is_away_is_waited_for(case: Case, error: str) -> None:
    case.make("a.dat")
    case.server.failures = [error] * 12
    clock = Clock(ticks=30)
    case.watch(clock)
    assert case.server.lfns == ["a.dat"]
    assert max(clock.waits) <= 60
    assert sum("trying again" in words for words in case.said) == 1, "told once"


@pytest.mark.parametrize("error", ["FORBIDDEN", "UNAUTHENTICATED", "WRONG_STATE"])
def test_what_waiting_does_not_mend_ends_it(case: Case, error: str) -> None:
    case.server.failures = [error]
    with pytest.raises(PilotageError) as caught:
        case.watch(Clock())
    assert caught.value.name == error


def test_a_closed_dataset_is_refused_before_anything_is_read(case: Case) -> None:
    case.server.state = "closed"
    with pytest.raises(PilotageError, match="dataset d is closed"):
        case.watch(Clock())


def test_a_file_that_cannot_be_registered_is_told_and_holds_up_no_other(case: Case) -> None:
    case.make("a.dat", "b.dat", "c.dat", "sub/c.dat", "bad\nname.dat")
    case.server.others["b.dat"] = FileSpec("b.dat", 1, "file:///elsewhere")
    os.mkfifo(case.folder / "pipe.dat")
    with pytest.raises(PilotageError, match="complete but for 4 files") as caught:
        case.watch(Clock(ticks=400), close_after=40)
    assert case.server.lfns == ["a.dat", "c.dat"]
    assert case.server.state == "open", "nobody finds out later that files are missing"
    told = " ".join(caught.value.fields["problems"])
    assert all(name in told for name in ("b.dat", "sub/c.dat", "name.dat", "pipe.dat"))
    assert sum("b.dat already" in words for words in case.said) == 1
    (case.folder / "pipe.dat").unlink()
    (case.folder / "bad\nname.dat").unlink()
    (case.folder / "sub/c.dat").unlink()
    del case.server.others["b.dat"]
    assert case.watch(Clock(ticks=400), close_after=40)
    assert (case.server.lfns[2:], case.server.state) == (["b.dat"], "closed")


def test_an_unreadable_file_is_tried_again_later(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.make("a.dat", "b.dat")
    really, broken = registrator.checksum.of, [True] * 2

    def of(path: str, *rest: Any) -> Dict[str, str]:
        if path.endswith("a.dat") and broken:
            broken.pop()
            raise PilotageError("CHECKSUM_FAILED", "a.dat: Input/output error") from OSError(
                5, "Input/output error"
            )
        return really(path, *rest)

    monkeypatch.setattr(registrator.checksum, "of", of)
    case.watch(Clock(ticks=100))
    assert case.server.lfns == ["b.dat", "a.dat"]
    assert any("Input/output error" in words for words in case.said)


def test_the_dataset_is_closed_when_nothing_has_come_for_long_enough(case: Case) -> None:
    case.make("a.dat")
    clock = Clock(*[lambda: None] * 10, lambda: case.make("b.dat"), ticks=100)
    assert case.watch(clock, close_after=60)
    assert (case.server.lfns, case.server.state) == (["a.dat", "b.dat"], "closed")
    assert 110 < clock.now < 150


def test_a_dataset_is_not_closed_without_a_file_that_was_never_finished(case: Case) -> None:
    case.make("a.dat", NAME.format(1, 0))
    (case.folder / NAME.format(2, 0)).write_bytes(b"")
    with pytest.raises(PilotageError, match="complete but for 1 file") as caught:
        case.watch(Clock(ticks=200), close_after=30, hold=60)
    assert NAME.format(2, 0) in caught.value.fields["problems"][0]
    assert (len(case.server.files), case.server.state) == (2, "open")


def test_a_run_ends_when_the_next_one_has_begun_and_its_last_file_is_in(case: Case) -> None:
    case.make(NAME.format(1, 0), "run-000006-00001-00.spd", "notes.txt")
    later = [lambda: case.make("run-000008-00000-00.spd"), lambda: case.make(NAME.format(2, 0))]
    clock = Clock(*[lambda: None] * 40, *later, ticks=200)
    assert case.watch(clock, run=7, hold=30)
    assert case.server.lfns == [NAME.format(1, 0), NAME.format(2, 0)]
    assert case.server.state == "closed"
    assert clock.now > 40 * 5, "it waits for the next run"


def test_it_ends_in_order_when_told_to_while_a_file_is_read(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.make("a.dat")
    clock = Clock(ticks=1000)
    monkeypatch.setattr(registrator.checksum, "of", lambda *rest: setattr(clock, "_left", 0) or {})
    assert not case.watch(clock)
    assert case.server.files == [] or case.server.lfns == ["a.dat"]
    assert case.server.state == "open"


def test_a_buffer_that_vanishes_for_a_while_is_told_and_nothing_is_forgotten(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.make("a.dat")
    away = case.folder.with_name("away")
    steps = [lambda: None] * 4 + [lambda: case.folder.rename(away)] + [lambda: None] * 3  # type: ignore[list-item]
    back = [lambda: away.rename(case.folder), lambda: case.make("b.dat")]
    read: List[str] = []
    really = registrator.checksum.of
    monkeypatch.setattr(
        registrator.checksum, "of", lambda path, *rest: read.append(path) or really(path, *rest)
    )
    case.watch(Clock(*steps, *back, ticks=30))
    assert case.server.lfns == ["a.dat", "b.dat"] and len(read) == 2
    assert any("cannot be looked into" in words for words in case.said)


def _unmounted(case: Case) -> None:
    """The empty directory under the mount comes to light."""
    case.folder.rename(case.folder.with_name("away"))
    case.folder.mkdir()


def _mounted(case: Case) -> None:
    case.folder.rmdir()
    case.folder.with_name("away").rename(case.folder)


@pytest.mark.parametrize("wish", [{"close_after": 30}, {"run": 7, "hold": 30}])
@pytest.mark.parametrize("is_left_empty", [True, False])
def test_a_dataset_is_not_closed_while_its_buffer_is_away(
    case: Case, wish: Dict[str, Any], is_left_empty: bool
) -> None:
    case.make(NAME.format(0, 0), "run-000008-00000-00.spd")

    def leave() -> None:
        _unmounted(case)
        if not is_left_empty:
            case.folder.rmdir()

    def come_back() -> None:
        assert case.server.state == "open"
        case.folder.mkdir(exist_ok=True)
        _mounted(case)
        case.make(NAME.format(1, 0))

    clock = Clock(*[lambda: None] * 4, leave, *[lambda: None] * 60, come_back, ticks=200)
    assert case.watch(clock, match="run-000007-*" if "run" not in wish else "*", **wish)
    assert case.server.lfns == [NAME.format(0, 0), NAME.format(1, 0)]
    assert clock.now > 65 * 5 + 30, "what could not be seen may have come until then"


def test_a_file_that_was_seen_keeps_the_dataset_open_while_nothing_is_there(case: Case) -> None:
    case.make("a.dat")
    clock = Clock(lambda: (case.folder / "a.dat").rename(case.folder.with_name("a.dat")), ticks=60)
    assert not case.watch(clock, close_after=30)
    assert case.server.state == "open"


def test_a_folder_of_the_buffer_that_cannot_be_read_keeps_the_dataset_open(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.make("a.dat", "sub/b.dat", "lost+found/c.dat")
    really, stale = os.scandir, True

    def scandir(path: str) -> Any:
        if stale and os.path.basename(path) == "sub":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert not case.watch(Clock(ticks=60), close_after=30)
    assert (case.server.lfns, case.server.state) == (["a.dat"], "open")
    stale = False
    assert case.watch(Clock(ticks=60), close_after=30)
    assert (case.server.lfns, case.server.state) == (["a.dat", "b.dat"], "closed")


def test_a_buffer_that_was_cleared_is_no_unmounted_one(case: Case) -> None:
    case.make("a.dat")
    clock = Clock(*[lambda: None] * 4, lambda: (case.folder / "a.dat").unlink(), ticks=60)
    assert case.watch(clock, close_after=30)


def test_a_link_that_was_planted_in_the_buffer_is_not_registered(case: Case, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    case.make("a.dat")
    (case.folder / "b.dat").symlink_to(tmp_path / "secret")
    (case.folder / "deep").symlink_to(tmp_path)
    case.watch(Clock())
    assert case.server.lfns == ["a.dat"]
    assert any("b.dat: is a link" in words for words in case.said)


def test_a_directory_that_is_none_is_refused_at_once(case: Case) -> None:
    (case.folder / "file").write_text("")
    for path in (case.folder / "file", case.folder / "missing"):
        with pytest.raises(PilotageError, match="is no directory"):
            Buffer([path], Wish(), case.said.append)


def test_a_prefix_stands_for_the_common_parent_of_the_directories(case: Case) -> None:
    case.make("b0/x-1.dat", "b1/x-2.dat")
    case.watch(Clock(), url_prefix="root://eos//daq", match="x-?.dat")
    assert [file.url for file in case.server.files] == [
        "root://eos//daq/b0/x-1.dat",
        "root://eos//daq/b1/x-2.dat",
    ]
