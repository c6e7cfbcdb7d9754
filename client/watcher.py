"""The watcher of an input buffer: what the DAQ has closed is registered into an open dataset, in the order of run, chunk and builder.

The directories are looked at again and again: that holds on every file system, NFS too, where no event tells of files that
another host writes. It keeps nothing by itself: what is registered the server knows, so it may be ended and started at any
time. It never changes a file, and waits while the server is away or the tasks have enough to do.
"""

from __future__ import annotations

import fnmatch
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from client import daqnames, registrator, tables, unfinished
from client.journal import Journal
from client.registrator import NO_CHECKSUM, THREADS, Found, Inventory, Options, Say, Stamp
from client.session import Session
from client.watch import AWAY
from protocol.errors import PilotageError
from protocol.files import check_name
from protocol.messages.requests import DatasetSpec, FileSpec
from protocol.redaction import one_line
from protocol.states import DatasetState

T = TypeVar("T")

BATCH = 1000
"""Most files registered at a time, where none is read."""
READ_TOGETHER = 4
"""Files read before they are registered, per thread."""
LONGEST_PAUSE = 60.0
"""Most seconds between two tries to reach a server that is away."""
ASIDE_SECONDS = (60.0, 3600.0)
"""When a file that could not be registered is tried again: for the first time, and at the latest."""
LOST_AND_FOUND = "lost+found"
"""What lies at the root of many file systems, for nobody but root to read."""
REFUSED = ("ALREADY_EXISTS", "BAD_PATH", "BAD_LFN")
"""What the server says of a file that is as it must not be; the others are registered without it."""


@dataclass(frozen=True)
class Wish:
    """What is watched, and how; times in seconds. The defaults are those of the command."""

    scope: str = ""
    algorithms: tuple[str, ...] = ()
    url_prefix: str = ""
    """What stands for the common parent of the directories in the addresses that nodes use."""
    threads: int = THREADS
    match: str = "*"
    """The names that are registered, as a shell matches them."""
    run: int | None = None
    """This run alone; and the dataset is closed when the next one has begun."""
    interval: float = 5.0
    settle: float = 10.0
    """A file is whole when it has not changed for so long, and bears no sign of being unfinished."""
    hold: float = 120.0
    """How long others wait for a file of their run that comes before them and is unfinished."""
    max_waiting: int = 10_000
    """Files that may wait to be processed by the slowest task over the dataset; 0: any number."""
    close_after: float = 0.0
    """Close the dataset when no file has come for so long; 0: never."""


class _Seen(NamedTuple):
    """A file that is not registered yet: how it was found last, since when it is so, and when it was found first."""

    stamp: Stamp
    since: float
    first: float


@dataclass
class Look:
    """What lies in the buffer at one moment and is not registered."""

    whole: list[Found] = field(default_factory=list)
    """In their order, up to the first that has to wait."""
    n_pending: int = 0
    """Files that are, or may yet become, whole."""
    given_up: list[str] = field(default_factory=list)
    """Files that are unfinished for so long that nobody waits for them any more."""
    is_blind: bool = False
    """Whether there may be more than was seen: a directory could not be read, or is unmounted."""


class Buffer:
    """The directories that the DAQ fills, and what is known of their files."""

    def __init__(
        self,
        directories: Sequence[str | Path],
        wish: Wish,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """BAD_PATH if one of the directories is none. Whether a file has changed is told by this host's clock, not by the file's times."""
        self._directories = [str(path) for path in directories]
        self._wish, self._say, self._clock = wish, say, clock
        self.has_later_run = False
        """Whether a run after the one that is wished for has begun."""
        self._done: set[str] = set()
        self._seen: dict[str, _Seen] = {}
        self._told: dict[str, str] = {}
        """What was said of a path, or of a directory: once is enough."""
        self.set_aside: dict[str, tuple[float, float]] = {}
        """Files that could not be registered: when each is tried again, and the pause before that."""
        self._last_change = clock()
        self._is_blind = False
        self._places: dict[str, tuple[int, int]] = {}
        """Device and inode of the folders that were not empty: under an unmounted one another comes to light."""
        for path in self._directories:
            if not os.path.isdir(path):
                raise PilotageError("BAD_PATH", f"{one_line(path)} is no directory")
        self._root = os.path.commonpath([os.path.abspath(path) for path in self._directories])

    def inventory(self) -> Inventory:
        """An empty one for files of this buffer."""
        found = Inventory(self._wish.url_prefix)
        found.root = self._root
        return found

    def examined(self, path: str) -> Found:
        """What is known of a file; raises if it cannot be registered."""
        return registrator.examined(path, self._root, self._wish.url_prefix)

    def paths(self) -> Iterator[str]:
        """All files with a name to be registered; hidden ones, and directories that are links, are passed over."""
        self._is_blind = False
        for directory in self._directories:
            for folder, folders, names in os.walk(directory, onerror=self._unreadable):
                self._check_mount(folder, is_empty=not (folders or names))
                folders[:] = [name for name in folders if not name.startswith(".") and name != LOST_AND_FOUND]
                for name in names:
                    if not name.startswith(".") and fnmatch.fnmatchcase(name, self._wish.match):
                        yield os.path.join(folder, name)

    def _check_mount(self, folder: str, is_empty: bool) -> None:
        try:
            status = os.stat(folder)
        except OSError as error:
            self._unreadable(error)
            return
        place = status.st_dev, status.st_ino
        if not is_empty:
            self._places[folder] = place
        elif self._places.get(folder, place) != place:
            self._is_blind = True
            self.tell(
                folder, f"warning: {one_line(folder)} is another directory than before, and empty: unmounted?"
            )

    def _unreadable(self, error: OSError) -> None:
        self._is_blind = True
        self.tell(
            error.filename, f"warning: {one_line(error.filename)} cannot be looked into: {error.strerror}"
        )

    def tell(self, path: str, words: str) -> None:
        if self._told.get(path) != words:
            self._told[path] = words
            self._say(words)

    def quiet_seconds(self) -> float:
        """Since a file came, changed or was registered, or might have come unseen."""
        return self._clock() - self._last_change

    def registered(self, path: str) -> None:
        self._done.add(path)
        self._seen.pop(path, None)
        self.set_aside.pop(path, None)
        self._last_change = self._clock()

    def put_aside(self, path: str, why: str) -> None:
        """It is tried again later; the others go on."""
        first, longest = ASIDE_SECONDS
        pause = min(2 * self.set_aside[path][1], longest) if path in self.set_aside else first
        self.set_aside[path] = self._clock() + pause, pause
        self.tell(path, f"warning: not registered: {one_line(path)}: {why}")

    def look(self) -> Look:
        """What is new; whoever registers a file says so."""
        now, look = self._clock(), Look()
        new: list[tuple[Found, str]] = []
        there: set[str] = set()
        for path in self.paths():
            there.add(path)
            if self._is_of_another_run(path, now):
                continue
            if path not in self._done and now >= self.set_aside.get(path, (now, 0))[0]:
                new += self._examined(path, now)
        look.is_blind = self._is_blind or (not there and bool(self._seen or self.set_aside))
        if look.is_blind:
            self._last_change = now
        elif there:
            self._done &= there
            self._places = {path: place for path, place in self._places.items() if os.path.isdir(path)}
            self._seen = {path: seen for path, seen in self._seen.items() if path in there}
            self.set_aside = {path: pause for path, pause in self.set_aside.items() if path in there}
        new.sort(key=lambda each: (registrator.natural(each[0].lfn), each[0].path))
        self._sort_out(new, now, look)
        look.n_pending += len(self._seen.keys() - self.set_aside.keys() - {found.path for found, _ in new})
        return look

    def _is_of_another_run(self, path: str, now: float) -> bool:
        if self._wish.run is None:
            return False
        name = daqnames.parse(os.path.basename(path))
        if name is not None and name.run > self._wish.run and not self.has_later_run:
            self.has_later_run, self._last_change = True, now
        return name is None or name.run != self._wish.run

    def _examined(self, path: str, now: float) -> Iterator[tuple[Found, str]]:
        """The file, and why it is unfinished; nothing where it cannot be registered or has just gone."""
        if os.path.islink(path):
            # Whoever may write into the buffer would else have any file registered that this process may read.
            self.put_aside(path, "is a link; of a buffer only its own files are registered")
            return
        try:
            found = self.examined(path)
        except PilotageError as error:
            try:
                os.lstat(path)
                self.put_aside(path, error.detail)
            except FileNotFoundError:
                pass
            except OSError as unseen:
                self._unreadable(unseen)
            return
        before = self._seen.get(path)
        if before is None or before.stamp != found.stamp:
            before = _Seen(found.stamp, now, before.first if before else now)
            self._seen[path] = before
            self._last_change = now
        if now - before.since < self._wish.settle:
            yield found, f"it has changed in the last {self._wish.settle:g} s"
        else:
            yield found, unfinished.by_name(path) or unfinished.by_content(path)

    def _sort_out(self, new: Sequence[tuple[Found, str]], now: float, look: Look) -> None:
        """Whole files up to the first one that waits for another of its run; other names wait for nobody."""
        held: set[int] = set()
        for found, why in new:
            name = daqnames.parse(found.lfn)
            late = now - self._seen[found.path].first > self._wish.hold + self._wish.settle
            if not why and not (name and name.run in held):
                look.whole.append(found)
            elif why and late:
                self.tell(
                    found.path,
                    f"warning: unfinished for long, others go first: {one_line(found.path)}: {why}",
                )
                look.given_up.append(found.path)
                continue
            elif why and name:
                held.add(name.run)
            look.n_pending += 1


class Watcher:
    """Registers what a buffer brings into one dataset."""

    def __init__(
        self, session: Session, name: str, buffer: Buffer, wish: Wish, say: Say, stop: threading.Event
    ) -> None:
        self._session, self._name, self._buffer, self._wish = (
            session,
            check_name(name, "dataset"),
            buffer,
            wish,
        )
        self._say, self._stop = say, stop
        self._told = ""
        self.n_registered = 0

    def run(self) -> bool:
        """Until it is stopped, or the end that was wished for has come; whether the dataset was closed then.

        Raises what neither waiting nor another file can mend: WRONG_STATE if somebody has closed the dataset, FORBIDDEN, ….
        """
        try:
            self._begin()
            while True:
                look = self._buffer.look()
                rest = look.whole
                while rest and (room := self._room()):
                    self._register(rest[:room])
                    rest = rest[room:]
                if not look.whole and self._is_over(look):
                    return self._close(look)
                self._wait(self._wish.interval)
        except _Stopped:
            return False

    # -- the server ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The dataset, which is made if there is none; files that it has are not read again."""
        try:
            view = self._asked(lambda: self._session.dataset(self._name))
        except PilotageError as error:
            if error.name != "NOT_FOUND":
                raise
            self._asked(lambda: self._session.create_dataset(DatasetSpec(self._name, self._wish.scope)))
            return
        if view.state != DatasetState.OPEN.value or view.task_id is not None:
            whose = f"filled by task {view.task_id}" if view.task_id is not None else view.state
            raise PilotageError(
                "WRONG_STATE",
                f"dataset {self._name} is {whose}; files can be added to an open one of your own only",
            )
        here = {os.path.basename(path): path for path in self._buffer.paths()}
        if view.n_files:
            for lfn, place in self._asked(lambda: self._known(here.keys())):
                try:
                    found = self._buffer.examined(here[lfn])
                except PilotageError:
                    continue
                if (found.url, found.size) == place:
                    self._buffer.registered(found.path)

    def _known(self, names: object) -> list[tuple[str, tuple[str, int]]]:
        """Address and size of those of these files that the dataset has."""
        files = self._session.dataset_files(self._name)
        return [(file.lfn, (file.url, file.size)) for file in files if file.lfn in names]  # type: ignore[operator]

    def _room(self) -> int:
        """How many files may be registered now."""
        reading = NO_CHECKSUM not in self._wish.algorithms
        most = READ_TOGETHER * self._wish.threads if reading else BATCH
        if not self._wish.max_waiting:
            return most
        waiting = self._asked(lambda: self._session.dataset(self._name)).n_waiting or 0
        if waiting >= self._wish.max_waiting:
            self._tell(
                f"{waiting} files of {self._name} wait to be processed; no more are registered until there are fewer"
            )
        return max(0, min(most, self._wish.max_waiting - waiting))

    def _register(self, batch: Sequence[Found]) -> None:
        """Of two files with one name the first is sent; the second is refused after the next look."""
        by_lfn: dict[str, Found] = {}
        for found in batch:
            by_lfn.setdefault(found.lfn, found)
        specs = self._specs(list(by_lfn.values()))
        try:
            self._send(specs)
        except PilotageError as error:
            if error.name not in REFUSED:
                raise
            for spec in specs:
                self._send_alone(spec, by_lfn[spec.lfn].path)
        else:
            for spec in specs:
                self._buffer.registered(by_lfn[spec.lfn].path)

    def _specs(self, batch: Sequence[Found]) -> list[FileSpec]:
        """Those that could be read; one that has changed is looked at again."""
        inventory = self._buffer.inventory()
        for found in batch:
            inventory.add(found)
        options = Options(
            algorithms=self._wish.algorithms, threads=self._wish.threads, quiet=True, skip_unfinished=True
        )
        specs: list[FileSpec] = []
        try:
            specs.extend(registrator.specs(inventory, options, self._check, Journal(None)))
        except PilotageError as error:
            changed = {found.lfn for found in batch if registrator.is_changed(found)}
            read = {spec.lfn for spec in specs}
            for found in batch:
                if found.lfn not in read | changed:
                    self._buffer.put_aside(found.path, error.detail)
            specs = [spec for spec in specs if spec.lfn not in changed]
        return specs

    def _send(self, specs: Sequence[FileSpec]) -> None:
        if specs:
            view = self._asked(lambda: self._session.send_files(self._name, specs))
            self.n_registered += view.n_added or 0
            self._tell(
                f"{tables.some(len(specs), 'file')} registered, the last one {one_line(specs[-1].lfn)}"
            )

    def _send_alone(self, spec: FileSpec, path: str) -> None:
        try:
            self._send([spec])
            self._buffer.registered(path)
        except PilotageError as error:
            if error.name not in REFUSED:
                raise
            self._buffer.put_aside(path, error.detail)

    def _asked(self, question: Callable[[], T]) -> T:
        """The server's answer, however long it is away: what is asked may be asked again."""
        pause = 1.0
        while True:
            self._check()
            try:
                return question()
            except PilotageError as error:
                if error.name not in AWAY:
                    raise
                self._tell(f"warning: {error}; trying again")
                self._wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)

    # -- the end --------------------------------------------------------------------------------------------------

    def _is_over(self, look: Look) -> bool:
        idle = self._buffer.quiet_seconds()
        if look.n_pending or look.is_blind:
            return False
        if self._wish.run is not None and self._buffer.has_later_run and idle > self._wish.hold:
            return True
        return bool(self._wish.close_after) and idle > self._wish.close_after

    def _close(self, look: Look) -> bool:
        """WRONG_STATE if files that lie there are not registered: nobody would find out later."""
        missing = [*self._buffer.set_aside, *look.given_up]
        if missing:
            raise PilotageError(
                "WRONG_STATE",
                f"dataset {self._name} is complete but for {tables.some(len(missing), 'file')} that could not be"
                " registered, so it stays open",
                problems=[one_line(path) for path in sorted(missing)[: registrator.TOLD]],
                advice=f"mend or remove them and start again, or close it: pilotage dataset close {self._name}",
            )
        self._asked(lambda: self._session.close_dataset(self._name))
        return True

    def _tell(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._say(words)

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """It was told to end."""
