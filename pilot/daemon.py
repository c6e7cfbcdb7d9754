"""The daemon of a node without batch system: it starts pilots again and again, and ends them in order when it has to go."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Optional, Union

from protocol.errors import PILOT_EXIT_TEXT, PilotageError, PilotExit
from protocol.redaction import one_line
from protocol.settings import Settings

logger = logging.getLogger(__name__)

END_SECONDS = 12.0
"""What pilots get after SIGTERM: they need at most 10."""


class _Ended:
    """A pilot has ended."""

    def __init__(self, pilot: subprocess.Popen[bytes]) -> None:
        self.pilot = pilot


def run(settings: Settings, pilot_options: Sequence[str]) -> PilotExit:
    """Keep `pilots` of them running; one that has ended is followed by another after SCRIPT_DELAY seconds."""
    command = [*_program(settings), *_config(settings), *pilot_options]
    # SimpleQueue: a signal handler writes to it.
    events: queue.SimpleQueue[Union[int, _Ended]] = queue.SimpleQueue()

    def handle(number: int, frame: Optional[FrameType]) -> None:
        events.put(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return _Daemon(settings, command, events).live()


class _Daemon:
    def __init__(
        self, settings: Settings, command: Sequence[str], events: queue.SimpleQueue[Union[int, _Ended]]
    ) -> None:
        self._delay = settings.number("node_settings", "script_delay")
        self._wanted = settings.integer("daemon", "pilots")
        self._command = list(command)
        self._events = events
        self._running: list[subprocess.Popen[bytes]] = []
        self._next_start = time.monotonic()

    def live(self) -> PilotExit:
        while True:
            missing = len(self._running) < self._wanted
            if missing and time.monotonic() >= self._next_start:
                self._start()
                continue
            event = self._next_event(self._next_start if missing else None)
            if isinstance(event, _Ended):
                self._note_end(event.pilot)
            elif event is not None:
                return self._end(event)

    def _start(self) -> None:
        # Its own session: Ctrl-C at a terminal is ours to hand on, once.
        pilot = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._running.append(pilot)
        self._next_start = time.monotonic() + self._delay
        threading.Thread(target=self._await, args=(pilot,), name=f"await-{pilot.pid}", daemon=True).start()
        logger.info("pilot is started", extra={"pilot": pilot.pid})

    def _await(self, pilot: subprocess.Popen[bytes]) -> None:
        pilot.wait()
        self._events.put(_Ended(pilot))

    def _note_end(self, pilot: subprocess.Popen[bytes]) -> None:
        self._running.remove(pilot)
        code = pilot.returncode
        now = time.monotonic()
        # One that is to be replaced leaves its place to another at once.
        self._next_start = now if code == PilotExit.UPDATE else max(self._next_start, now + self._delay)
        meaning = PILOT_EXIT_TEXT[PilotExit(code)] if code in set(PilotExit) else "no exit code of a pilot"
        logger.info("pilot has ended", extra={"pilot": pilot.pid, "exit_code": code, "meaning": meaning})

    def _next_event(self, until: Optional[float]) -> Union[int, _Ended, None]:
        try:
            return self._events.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _end(self, number: int) -> PilotExit:
        logger.info(
            "the daemon ends, and its pilots before it",
            extra={"signal": number, "running": len(self._running)},
        )
        for pilot in self._running:
            pilot.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while self._running and time.monotonic() < deadline:
            event = self._next_event(deadline)
            if isinstance(event, _Ended):
                self._note_end(event.pilot)
        for pilot in self._running:
            logger.error("a pilot does not end and is killed", extra={"pilot": pilot.pid})
            pilot.kill()
        return PilotExit.INTERRUPTED if number == signal.SIGINT else PilotExit.TERMINATED


def own_command() -> list[str]:
    """How the program that runs here is started again: from its zip file, or from the tree or installation it lies in."""
    home = Path(__file__).resolve().parent
    if home.parent.is_file():  # pilot.pyz/pilot/daemon.py
        return [sys.executable, str(home.parent)]
    return [sys.executable, str(home)]


def _program(settings: Settings) -> list[str]:
    wrapper = settings.optional_path("daemon", "wrapper")
    if wrapper is None:
        return own_command()
    if not os.access(wrapper, os.R_OK):
        raise PilotageError(
            "BAD_SETTINGS", f"[daemon] wrapper: {one_line(str(wrapper))} is not there, or may not be read"
        )
    return ["bash", str(wrapper)]


def _config(settings: Settings) -> list[str]:
    path = settings.optional_path("daemon", "pilot_settings")
    return ["--config", str(path)] if path else []
