"""Requests and answers as files in a shared directory: for nodes that do not reach the server, and the bridge that speaks for them.

    DIRECTORY/requests/CLIENT.NUMBER     a request, written under a hidden name and then renamed
    DIRECTORY/answers/CLIENT/NUMBER      its answer, written in the same way
    DIRECTORY/bridge.lock                held by the bridge that works

A file is one line of JSON and then the body. A request stays until its answer lies there, so no bridge that dies takes one with
it; what is passed on twice is a repetition, which the server takes as such. Who gives up takes its request back: a question for
a job must not reach the server when nobody waits for the job any more.

A directory is opened anew for each look, which makes NFS ask its server what is in it. Directories are mode 0700 and files 0600;
nothing is read or written through a link, or in a directory that somebody else could write to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from protocol.errors import PilotageError

logger = logging.getLogger(__name__)

REQUESTS, ANSWERS, LOCK = "requests", "answers", "bridge.lock"
LARGEST_HEAD = 4096
LARGEST_REQUEST = 16 * 1024 * 1024 + LARGEST_HEAD
LARGEST_ANSWER = 64 * 1024 * 1024 + LARGEST_HEAD
"""Bytes of a file: as much as a server takes, and as a pilot takes from it."""
WARN_SECONDS = 5.0
"""After so long without an answer it is told that one is awaited, once for each request; after half of its time if that is sooner."""
FIRST_LOOK_SECONDS = 0.02
"""After a request; each further look comes twice as late, up to `directory_poll_seconds`."""

NAME = re.compile(r"([0-9a-f]{16})\.([0-9]{1,12})")
CLIENT = re.compile(r"[0-9a-f]{16}")
HIDDEN = "."

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Letter(NamedTuple):
    """The content of a file, and when it was written by the clock of the file system."""

    head: Mapping[str, Any]
    body: bytes
    written: float = 0.0


class NoLetter(Exception):
    """A file that nobody of us has written; in words why."""


# -- directories and files --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Union[Path, str], within: Optional[int] = None) -> Iterator[int]:
    """The number of an open directory that is ours alone; OSError if there is none, BAD_SETTINGS if others can enter it."""
    number = os.open(path, _DIRECTORY, dir_fd=within)
    try:
        status = os.fstat(number)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PilotageError(
                "BAD_SETTINGS",
                f"{path} must belong to this account, and nobody else may enter it (chmod 700)",
            )
        yield number
    finally:
        os.close(number)


def make(name: Union[Path, str], within: Optional[int] = None) -> None:
    """A directory for us alone, if it is not there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=within)


def write(directory: int, name: str, letter: Letter) -> None:
    """Nobody sees the file before it is whole. No fsync: what is lost with its machine is asked for again."""
    part = f"{HIDDEN}{name}.{secrets.token_hex(4)}.part"
    number = os.open(part, _WRITE, 0o600, dir_fd=directory)
    try:
        with open(number, "wb") as file:
            file.write(json.dumps(letter.head).encode() + b"\n" + letter.body)
        os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        remove(directory, part)
        raise


def read(directory: int, name: str, largest: int) -> Letter:
    """FileNotFoundError if it is not there (any more), NoLetter if it is none."""
    try:
        number = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NoLetter(f"it cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise NoLetter("it is no plain file of this account")
        if status.st_size > largest:
            raise NoLetter(f"it has {status.st_size} bytes; at most {largest} are taken")
        with open(number, "rb", closefd=False) as file:
            first, _, body = file.read(largest).partition(b"\n")
    finally:
        os.close(number)
    try:
        head = json.loads(first[:LARGEST_HEAD])
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise NoLetter("its first line is no JSON object")
    return Letter(head, body, status.st_mtime)


def remove(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


# -- the pilot's end --------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Letterbox:
    """Asks, and waits for the answer; for all threads of a pilot."""

    def __init__(self, directory: Path, poll_seconds: float) -> None:
        """BAD_SETTINGS if the directory is not there or others can enter it."""
        self._directory = directory
        self._poll_seconds = poll_seconds
        self._client = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        try:
            with opened(directory):
                pass
        except OSError as error:
            raise PilotageError(
                "BAD_SETTINGS",
                f"BRIDGE_DIRECTORY {directory} cannot be used: {error.strerror}; is it mounted here, and was the bridge started?",
            ) from None

    def ask(self, method: str, path: str, body: bytes, seconds: float) -> Answer:
        """BRIDGE_SILENT if no answer came within `seconds`, or the directory cannot be used."""
        number = str(next(self._numbers))
        name = f"{self._client}.{number}"
        head = {"method": method, "path": path, "seconds": seconds}
        try:
            with opened(self._directory) as root, opened(REQUESTS, root) as requests:
                with opened(ANSWERS, root) as answers:
                    make(self._client, answers)  # a bridge that was away for long may have tidied it away
                write(requests, name, Letter(head, body))
                try:
                    return self._await(root, number, seconds)
                finally:
                    remove(requests, name)
                    self._remove_answer(root, number)
        except TimeoutError:
            raise self._silent(f"no answer within {seconds:g} s; does a bridge run?") from None
        except NoLetter as error:
            raise self._silent(f"what lies there is no answer: {error}") from None
        except OSError as error:
            raise self._silent(error.strerror or str(error)) from None

    def close(self) -> None:
        with contextlib.suppress(OSError, PilotageError):
            with opened(self._directory) as root, opened(ANSWERS, root) as answers:
                os.rmdir(self._client, dir_fd=answers)

    def _await(self, root: int, number: str, seconds: float) -> Answer:
        began, pause = time.monotonic(), FIRST_LOOK_SECONDS
        deadline, warn_at = began + seconds, began + min(WARN_SECONDS, seconds / 2)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            time.sleep(min(pause, left))
            if time.monotonic() >= warn_at:
                warn_at = math.inf
                logger.warning(
                    "no bridge has answered yet; does one run?",
                    extra={"directory": str(self._directory), "asks_again_in": round(left, 1)},
                )
            with contextlib.suppress(FileNotFoundError), self._answers(root) as answers:
                return _answer(read(answers, number, LARGEST_ANSWER))
            pause = min(2 * pause, self._poll_seconds)

    @contextlib.contextmanager
    def _answers(self, root: int) -> Iterator[int]:
        with opened(ANSWERS, root) as all_answers, opened(self._client, all_answers) as answers:
            yield answers

    def _remove_answer(self, root: int, number: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._answers(root) as answers:
            remove(answers, number)

    def _silent(self, why: str) -> PilotageError:
        return PilotageError("BRIDGE_SILENT", f"{self._directory}: {why}")


def _answer(letter: Letter) -> Answer:
    status, headers = letter.head.get("status"), letter.head.get("headers")
    if not isinstance(status, int) or not isinstance(headers, dict):
        raise NoLetter("it has no status")
    return Answer(status, {str(name): str(text) for name, text in headers.items()}, letter.body)
