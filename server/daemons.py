"""What runs in the background beside the dispatcher: task-executor, reaper, closer and more, each at work in one process only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server import closer, reaper, task_executor
from server.brokerage import availability
from server.core import Core
from server.upkeep import archive, garbage

logger = logging.getLogger(__name__)

BUSY_SECONDS = 0.05
"""When a daemon that was called looks again whether it is its turn."""
LONGEST_REST_SECONDS = 2.0


@dataclass
class Daemon:
    """A pass that is made again and again. A pass that fails is logged and tried again: no error may end a daemon."""

    name: str
    period_seconds: float
    run_once: Callable[[float], object]
    rest: float = 2.0
    """So many times as long as a pass took it rests after it: on Postgres one that finds nothing may have passed over much that
    cannot be cleaned up yet. 0 for one that has work as long as it takes long, and for the
    reaper: the lease clock stands still meanwhile."""
    due: threading.Event = field(default_factory=threading.Event)
    """Set by whoever has something for it to do now."""
    last_pass: float = field(default_factory=time.monotonic)
    failures: int = 0

    def loop(self, core: Core, stop: threading.Event) -> None:
        while not stop.is_set():
            called = self.due.wait(self.period_seconds)
            if stop.is_set():
                return
            self.due.clear()
            began = time.monotonic()
            try:
                with core.database.only_one(self.name) as chosen:
                    if chosen:
                        self.run_once(began - self.last_pass)
                    elif called:
                        # Another process is in a pass that may have looked already.
                        stop.wait(BUSY_SECONDS)
                        self.due.set()
                self.failures = 0
            except Exception:  # the top of the thread: whatever it was, the next pass is due
                self.failures += 1
                logger.exception(
                    "a pass of a daemon failed", extra={"daemon": self.name, "failures": self.failures}
                )
            self.last_pass = began
            stop.wait(self.rest * min(time.monotonic() - began, LONGEST_REST_SECONDS))


class Daemons:
    """The daemons of this process."""

    def __init__(self, core: Core) -> None:
        limits = core.limits
        self._core = core
        turn = reaper.Turn()
        self._stop = threading.Event()
        self.all = (
            Daemon(
                "task-executor",
                limits.executor_seconds,
                lambda _: task_executor.run_once(core),
                rest=0,
                due=core.to_form,
            ),
            Daemon(
                "reaper", limits.reaper_seconds, lambda elapsed: reaper.run_once(core, elapsed, turn), rest=0
            ),
            Daemon("closer", limits.closer_seconds, lambda _: closer.run_once(core)),
            Daemon("archiver", limits.archiver_seconds, lambda _: archive.run_once(core), rest=0),
            # Not the archiver's own: a storage that hangs must hold up nothing else.
            Daemon("sweeper", limits.archiver_seconds, lambda _: garbage.run_once(core), rest=0),
            Daemon("availability", limits.availability_seconds, lambda _: availability.run_once(core)),
        )
        self._threads = [
            threading.Thread(target=daemon.loop, args=(core, self._stop), name=daemon.name, daemon=True)
            for daemon in self.all
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for daemon in self.all:
            daemon.due.set()
        for thread in self._threads:
            thread.join(timeout=10)
