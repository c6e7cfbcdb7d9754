"""The bridge: on a machine that reaches the server, it passes on what pilots ask in a shared directory, and the answers back.

It knows no job and keeps nothing: what it can lose is time. It is trusted with the token, which therefore lies on no node; in
return it takes nothing from the directory on trust but what a pilot may ask, and goes to no server but its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Optional

from pilot import building, letterbox
from pilot.letterbox import Answer, Letter, NoLetter
from pilot.server_client import ServerClient
from protocol.errors import PilotageError, PilotExit
from protocol.redaction import Secrets, one_line
from protocol.settings import Settings

logger = logging.getLogger(__name__)

VERBS = re.compile(
    r"POST /v1/(registerPilot|getJob|updateJob|updateJobs|heartbeat|endPilot)|GET /v1/bundles/[0-9a-f]{64}"
)
"""What a pilot may ask. Nothing else is passed on, whatever lies in the directory."""
HANDED_BACK = ("Date", "Retry-After", "Content-Type")
THREADS = 16
"""Requests on their way to the server at the same time."""
LONGEST_PATIENCE = 600.0
"""Seconds: no pilot waits longer for an answer."""
FIRST_LOOK_SECONDS = 0.02
STANDBY_SECONDS = 2.0
RETRY_SECONDS = 1.0
TIDY_SECONDS = 60.0
HALF_WRITTEN_SECONDS = 3600.0
FORGOTTEN_SECONDS = 86_400.0
"""A pilot has answers far more often: what is older was left by one that was killed."""


def run(settings: Settings, environ: Mapping[str, str], secrets: Secrets) -> PilotExit:
    """Until SIGTERM or SIGINT; what was taken in hand then is answered."""
    path = settings.optional_path("node_settings", "bridge_directory")
    if path is None:
        raise PilotageError("BAD_SETTINGS", "no directory: name one that the nodes see too, with --directory")
    client = building.server_client(settings, environ, secrets, connections=THREADS)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # a signal handler writes to it

    def handle(number: int, frame: Optional[FrameType]) -> None:
        signals.put(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    bridge = Bridge(path, client, settings.number("connection", "directory_poll_seconds"))
    logger.info("bridge begins", extra={"directory": str(path), "server": client.url})
    lock = _lock_file(path)
    try:
        if _await_lock(lock, signals):
            bridge.work(lock, signals)
    finally:
        os.close(lock)
    client.close()
    logger.info("bridge ends", extra=bridge.counts)
    return PilotExit.DONE


def _lock_file(path: Path) -> int:
    """The number of the open file; the directory is made if need be."""
    if not path.exists():
        logger.warning(
            "there was no such directory: pilots name the same one", extra={"directory": str(path)}
        )
    try:
        letterbox.make(path)
        with letterbox.opened(path) as root:
            for name in (letterbox.REQUESTS, letterbox.ANSWERS):
                letterbox.make(name, root)
            return os.open(
                letterbox.LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root
            )
    except OSError as error:
        raise PilotageError("BAD_SETTINGS", f"{path} cannot be used: {error.strerror}") from None


def _await_lock(lock: int, signals: queue.SimpleQueue[int]) -> bool:
    """Stand by while another bridge works here; False if told to end before it has."""
    is_told = False
    while not _is_locked(lock):
        if not is_told:
            logger.info("another bridge works here; this one takes over when that one ends")
            is_told = True
        if _is_signalled(signals, STANDBY_SECONDS):
            return False
    return True


def _is_locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning(
            "this file system has no locks: a second bridge would pass everything on once more, which harms no job",
            extra={"reason": error.strerror},
        )
    return True


def _is_signalled(signals: queue.SimpleQueue[int], seconds: float) -> bool:
    try:
        signals.get(timeout=seconds)
    except queue.Empty:
        return False
    return True


class Bridge:
    def __init__(self, path: Path, client: ServerClient, poll_seconds: float) -> None:
        self._path = path
        self._client = client
        self._poll_seconds = poll_seconds
        self._guard = threading.Lock()
        self._in_hand: set[str] = set()
        self._immovable: set[str] = set()
        """What could not be removed when it was done with: it is not looked at again."""
        self._server_answers = True
        self.counts = {"passed_on": 0, "refused": 0, "too_late": 0}

    def work(self, lock: int, signals: queue.SimpleQueue[int]) -> None:
        """Look, sooner after there was something and later after there was nothing, until a signal comes."""
        pause, tidied = FIRST_LOOK_SECONDS, -TIDY_SECONDS
        pool = ThreadPoolExecutor(THREADS, "pass-on")
        is_troubled = False
        try:
            while not _is_signalled(signals, pause):
                try:
                    found = self._look(lock, pool)
                    if time.monotonic() - tidied >= TIDY_SECONDS:
                        self._tidy(_now(lock))
                        tidied = time.monotonic()
                    is_troubled = False
                except OSError as error:
                    found = 0
                    if not is_troubled:
                        logger.warning("the directory cannot be read", extra={"reason": one_line(str(error))})
                    is_troubled = True
                pause = FIRST_LOOK_SECONDS if found else min(2 * pause, self._poll_seconds)
        finally:
            # What no thread has begun with stays where it is, for the next bridge.
            pool.shutdown(cancel_futures=True)

    def _look(self, lock: int, pool: ThreadPoolExecutor) -> int:
        """Take all requests in hand that are there; how many are new."""
        with letterbox.opened(self._path) as root, letterbox.opened(letterbox.REQUESTS, root) as requests:
            there = [name for name in os.listdir(requests) if not name.startswith(letterbox.HIDDEN)]
            with self._guard:
                new = [name for name in there if name not in self._in_hand | self._immovable]
            for name in new:
                if not letterbox.NAME.fullmatch(name):
                    self._refuse(requests, name, "no pilot names a request so")
            fresh = [name for name in new if letterbox.NAME.fullmatch(name)]
        now = _now(lock) if fresh else 0.0
        for name in fresh:
            with self._guard:
                self._in_hand.add(name)
            pool.submit(self._handle, name, now)
        return len(fresh)

    def _handle(self, name: str, now: float) -> None:
        """From the request to its answer. What fails here is left for a later look."""
        try:
            with letterbox.opened(self._path) as root, letterbox.opened(letterbox.REQUESTS, root) as requests:
                answer = self._answer_to(requests, name, now)
                if answer is not None:
                    self._hand_back(root, name, answer)
                self._remove(requests, name)
        except FileNotFoundError:
            pass  # taken back
        except Exception as error:  # noqa: BLE001  a thread's top: one bad request must not be lost in silence
            logger.warning("a request has to wait", extra={"file": name, "reason": one_line(repr(error))})
            time.sleep(RETRY_SECONDS)
        finally:
            with self._guard:
                self._in_hand.discard(name)

    def _answer_to(self, requests: int, name: str, now: float) -> Optional[Answer]:
        """None if nobody waits for it any more: a question for a job that is passed on late takes one that nobody runs."""
        try:
            letter = letterbox.read(requests, name, letterbox.LARGEST_REQUEST)
            verb, patience = _checked(letter)
        except NoLetter as error:
            self._refuse(requests, name, str(error))
            return _failure(400, "BAD_REQUEST", f"the bridge does not pass it on: {error}")
        if now - letter.written > patience:
            self._count("too_late")
            return None
        self._count("passed_on")
        return self._ask(verb, letter.body)

    def _ask(self, verb: str, body: bytes) -> Answer:
        method, _, path = verb.partition(" ")
        try:
            status, headers, data = self._client.pass_on(method, path, body)
        except PilotageError as error:
            if self._server_answers:
                logger.warning("the server does not answer", extra={"detail": error.detail})
            self._server_answers = False
            return _failure(503, "SERVER_UNREACHABLE", f"says the bridge: {error.detail}")
        if not self._server_answers:
            logger.info("the server answers again")
        self._server_answers = True
        handed = {key: headers[key] for key in HANDED_BACK if headers.get(key)}
        return Answer(status, handed, data)

    def _hand_back(self, root: int, name: str, answer: Answer) -> None:
        """Nothing happens if its pilot is gone."""
        client, _, number = name.partition(".")
        head = {"status": answer.status, "headers": dict(answer.headers)}
        with contextlib.suppress(FileNotFoundError), letterbox.opened(letterbox.ANSWERS, root) as answers:
            with letterbox.opened(client, answers) as own:
                letterbox.write(own, number, Letter(head, answer.body))

    def _refuse(self, requests: int, name: str, why: str) -> None:
        self._count("refused")
        logger.warning("a file is refused", extra={"file": ascii(name[:100]), "reason": why})
        self._remove(requests, name)

    def _remove(self, requests: int, name: str) -> None:
        try:
            letterbox.remove(requests, name)
        except OSError:
            with self._guard:
                self._immovable.add(name)

    def _count(self, what: str) -> None:
        with self._guard:
            self.counts[what] += 1

    # -- tidying ------------------------------------------------------------------------------------------------------------

    def _tidy(self, now: float) -> None:
        """Remove what killed pilots left: halves of requests, and answers that nobody has taken."""
        with letterbox.opened(self._path) as root:
            with letterbox.opened(letterbox.REQUESTS, root) as requests:
                _remove_old(requests, now - HALF_WRITTEN_SECONDS, letterbox.HIDDEN)
            with letterbox.opened(letterbox.ANSWERS, root) as answers:
                for client in filter(letterbox.CLIENT.fullmatch, os.listdir(answers)):
                    with contextlib.suppress(OSError, PilotageError):
                        self._tidy_away(answers, client, now - FORGOTTEN_SECONDS)

    def _tidy_away(self, answers: int, client: str, before: float) -> None:
        with letterbox.opened(client, answers) as own:
            if os.fstat(own).st_mtime >= before:
                return
            _remove_old(own, before)
        os.rmdir(client, dir_fd=answers)


def _checked(letter: Letter) -> tuple[str, float]:
    """Verb and patience (seconds) of a request; NoLetter if it is none that a pilot makes."""
    verb = f"{letter.head.get('method')} {letter.head.get('path')}"
    if not VERBS.fullmatch(verb):
        raise NoLetter(f"{ascii(verb[:100])} is nothing that a pilot asks")
    patience: Any = letter.head.get("seconds")
    if not isinstance(patience, (int, float)) or not 0 < patience <= LONGEST_PATIENCE:
        raise NoLetter("it does not say for how long its pilot waits")
    return verb, float(patience)


def _failure(status: int, name: str, detail: str) -> Answer:
    """In the one shape that failures have on the native door."""
    return Answer(status, {}, json.dumps({"error": name, "detail": detail}).encode())


def _now(lock: int) -> float:
    """The time by the clock that dates the files, which may be a file server's."""
    os.utime(lock)
    return os.fstat(lock).st_mtime


def _remove_old(directory: int, before: float, beginning: str = "") -> None:
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            changed = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
            if name.startswith(beginning) and changed < before:
                os.unlink(name, dir_fd=directory)
