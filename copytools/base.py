"""What a copytool is: two verbs over one file at a time, and the options an ini section may give it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar

from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import is_plain_url, local_path
from protocol.redaction import one_line, redact
from protocol.values import Bounds, Places, Type, Value, as_text, nearest, parse

Checksums = Dict[str, str]
"""Algorithm → hexadecimal digits."""

T = TypeVar("T", bound="CopyTool")


class Stored(NamedTuple):
    """What a storage tells of a file that it has."""

    size: int
    checksums: Checksums
    """Calculated by the storage from its own bytes; empty if it tells none."""


class Learned(NamedTuple):
    """What a tool learned of a file on the way."""

    size: int
    checksums: Checksums


class Option(NamedTuple):
    """One key that the section [copytool:NAME] may hold; `default` as it would be written there."""

    kind: Type
    default: str
    help: str
    bounds: Bounds = Bounds()


Moved = Callable[[int], None]
"""So many bytes more were copied; for progress alone, so a tool need not tell each of them."""


class Deadline:
    """The end of one call: its timeout, or the word that nobody wants the file any more. It also hears how far the call is."""

    def __init__(
        self,
        timeout: float,
        asked_to_stop: Callable[[], bool] = lambda: False,
        moved: Moved = lambda n_bytes: None,
    ) -> None:
        self._end = time.monotonic() + timeout
        self._timeout = timeout
        self._asked_to_stop = asked_to_stop
        self.moved = moved

    def left(self) -> float:
        """Seconds; never below zero."""
        return max(0.0, self._end - time.monotonic())

    def is_over(self) -> bool:
        return self.left() <= 0 or self._asked_to_stop()

    def check(self) -> None:
        """Called between blocks: an OSError, which the caller translates like any other, if it is time to end."""
        if self._asked_to_stop():
            raise OSError(errno.ECANCELED, "stopped, nobody waits for it any more")
        if time.monotonic() >= self._end:
            raise TimeoutError(errno.ETIMEDOUT, f"not done within {self._timeout:g} s")

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than there is time, and look a few times a second whether to stop."""
        until = time.monotonic() + seconds
        while True:
            self.check()
            rest = min(until - time.monotonic(), self.left(), 0.2)
            if rest <= 0:
                break
            time.sleep(rest)
        self.check()


class CopyTool:
    """Copies one file per call, or raises an error of the catalogue.

    It does not retry jobs, verify against the catalogue or touch job states: who calls it does that once for all tools.
    One instance serves all jobs of a pilot, so a call may keep nothing in it; calls come from several threads.
    """

    schemes: Tuple[str, ...] = ()
    """URLs it understands, e.g. ("file",) or ("root",)."""

    if_named: bool = False
    """It is used only where a queue or a user names it: another tool is better for most addresses of the same schemes."""

    OPTIONS: Mapping[str, Option] = {
        "data_root": Option(
            Type.PATH, "", "the node's data root (SCRIPT_PREFIX), for URLs such as file:data/a"
        ),
        "checksums": Option(
            Type.LIST, "", "algorithms learned while copying; default: blake3, where it is not installed md5"
        ),
    }
    """A subclass names only what it adds."""

    def __init__(self, options: Mapping[str, object]) -> None:
        """`options`: the section [copytool:NAME] and what the program adds; an unknown key raises BAD_SETTINGS."""
        self.options = _parsed(type(self), options)
        self._asked_to_stop: Callable[[], bool] = lambda: False
        self._moved: Moved = lambda n_bytes: None
        wanted = self.options["checksums"]
        assert isinstance(wanted, tuple)
        self.algorithms: Tuple[str, ...] = checksum.supported(wanted or (checksum.preferred(),))
        """What is learned on the way; who has a tool for one job by `until` may set it for one file."""

    @property
    def name(self) -> str:
        """That of its module, as settings have it."""
        return _name(type(self))

    def unusable(self) -> Optional[str]:
        """None, or in words why not on this node ("xrdcp is not on PATH")."""
        return None

    def copy_in(self, source: str, to: Path, timeout: float) -> Optional[Checksums]:
        """Copy the file at the URL `source` to the path `to`, which must not exist, within `timeout` seconds.

        The answer: checksums of the bytes that now lie at `to`, as far as they were learned on the way. When it raises,
        nothing lies at `to`, nor after the process was killed.
        """
        raise NotImplementedError

    def copy_in_small(self, files: Sequence[Tuple[str, Path]]) -> List[Optional[Learned]]:
        """Copy many files of some KiB (`copying.TINY` at most) at once, for tools to which one by one costs more.

        None for each that was not copied, for whatever reason: nothing lies there then, and `copy_in`, which is tried
        next, tells why.
        """
        return [None] * len(files)

    def copy_out(self, path: Path, target: str, timeout: float) -> Optional[Checksums]:
        """Copy the plain file at `path` to the URL `target`, a name that nobody else ever writes.

        The answer: checksums of the bytes that now lie at `target`. A target that has the same bytes already is a success
        (an earlier try whose answer got lost), one with other bytes is OUTPUT_EXISTS. When it raises, nothing that it
        made lies at `target`, and the file is at `path` still; a tool that moves takes it away at the end.
        """
        raise NotImplementedError

    def look(self, url: str, timeout: float) -> Stored:
        """What lies at the URL, if it can be read: for a file that stays where it is. Raises as `copy_in` does."""
        raise PilotageError("UNKNOWN_COPYTOOL", f"{self.name} cannot look at a file without copying it")

    def until(self: T, asked_to_stop: Callable[[], bool], moved: Moved = lambda n_bytes: None) -> T:
        """The same tool for one job: its calls raise soon after `asked_to_stop` has answered yes, and tell `moved` how far they are."""
        for_one_job = type(self).__new__(type(self))  # as copy.copy does, in a tenth of the time
        for_one_job.__dict__.update(self.__dict__)
        for_one_job._asked_to_stop = asked_to_stop
        for_one_job._moved = moved
        return for_one_job

    def deadline(self, timeout: float) -> Deadline:
        """For a call that begins now."""
        return Deadline(timeout, self._asked_to_stop, self._moved)


class FileTool(CopyTool):
    """What tools for mounted file systems share: the path that a `file:` URL means on this node."""

    schemes: Tuple[str, ...] = ("file",)

    OPTIONS = {
        "directories": Option(
            Type.LIST, "", "the only directories whose files may be read or written; default: all"
        ),
    }

    not_for_jobs: Tuple[str, ...] = ()
    """How paths begin, with / at their end, that are the pilot's own: neither inputs nor places for outputs."""

    storage: str = ""
    """The URL of the storage for outputs. Its directory has to be there: what is made in its place lies on the node's own disk."""

    def __init__(self, options: Mapping[str, object]) -> None:
        super().__init__(options)
        directories = self.options["directories"]
        assert isinstance(directories, tuple)
        self.directories: Tuple[str, ...] = directories
        for directory in directories:
            if not directory.startswith("/"):
                where = f"[copytool:{_name(type(self))}] directories"
                raise PilotageError(
                    "BAD_SETTINGS", f"{where} must hold absolute paths, not {shown(directory)}"
                )

    def path_of(self, url: str) -> Path:
        """The path of a URL; BAD_PATH where it lies outside the option `directories`."""
        path = Path(local_path(url, as_text(self.options["data_root"])))
        if self.directories and not _lies_in_one(path, self.directories):
            allowed = ", ".join(self.directories)
            raise PilotageError("BAD_PATH", f"{shown(path)} is in none of the allowed directories: {allowed}")
        if self.not_for_jobs:
            led_to = os.path.join(os.path.realpath(path.parent), path.name, "")
            if led_to.startswith(self.not_for_jobs):
                raise PilotageError("BAD_PATH", f"{shown(path)} is the pilot's own")
        missing = self.missing_storage()
        if missing is not None and missing in path.parents:
            raise PilotageError("NODE_MOUNT_MISSING", f"there is no directory {shown(missing)} on this node")
        return path

    def look(self, url: str, timeout: float) -> Stored:
        from copytools.failures import End, Stage, translated  # late: it imports this

        path = self.path_of(url)
        with translated(Stage.IN, End.SOURCE, path):
            descriptor = checksum.open_plain(path)
            try:
                return Stored(os.fstat(descriptor).st_size, {})
            finally:
                os.close(descriptor)

    def paths_of(self, urls: Sequence[str]) -> List[Optional[str]]:
        """The paths of many URLs as `path_of` has them; what is refused for one of a directory is looked at once. None: refused."""
        allowed: Dict[str, bool] = {}
        return [self._path_in(url, allowed) for url in urls]

    def _path_in(self, url: str, allowed: Dict[str, bool]) -> Optional[str]:
        directory, _, name = url.rpartition("/")
        # Single files may be the pilot's own.
        if self.not_for_jobs or directory not in allowed or not is_plain_url(url) or name in ("", "."):
            try:
                path = str(self.path_of(url))
            except PilotageError:
                return None
            allowed[directory] = is_plain_url(url)
            return path
        return url[len("file://") :]

    def missing_storage(self) -> Optional[Path]:
        """The directory of the storage if it is not there."""
        if not self.storage:
            return None
        try:
            directory = Path(local_path(self.storage, as_text(self.options["data_root"])))
        except PilotageError:
            return None  # an address that says nothing here: so will each file's
        return None if directory.is_dir() else directory


def shown(what: object) -> str:
    """A path or URL as a message shows it: one line, without passwords."""
    return one_line(redact(str(what)))


def _lies_in_one(path: Path, directories: Tuple[str, ...]) -> bool:
    """Links among the directories count as what they lead to; the file itself is opened without following one."""
    parent = os.path.realpath(path.parent)
    places = [os.path.realpath(directory) for directory in directories]
    return any(os.path.commonpath((parent, place)) == place for place in places)


def _parsed(tool: type, options: Mapping[str, object]) -> Dict[str, Value]:
    known: Dict[str, Option] = {}
    for each in reversed(tool.__mro__):
        known.update(vars(each).get("OPTIONS", {}))
    for key in options:
        if key not in known:
            near = nearest(key, tuple(known))
            hint = f"; did you mean {near}?" if near else ""
            raise PilotageError("BAD_SETTINGS", f"copytool {_name(tool)} has no option {shown(key)}{hint}")
    return {key: _value(tool, key, option, options.get(key, option.default)) for key, option in known.items()}


def _value(tool: type, key: str, option: Option, given: object) -> Value:
    try:
        return parse(option.kind, as_text(given), option.bounds, Places(None, None))
    except ValueError as error:
        raise PilotageError("BAD_SETTINGS", f"[copytool:{_name(tool)}] {key} {error}") from None


def _name(tool: type) -> str:
    return tool.__module__.rpartition(".")[2]
