"""Programs that the demo starts: each in a session of its own, with a log, and none of them outlives the demo.

Signals never strike between the start of a program and the note of it; an ended demo ends its programs, first with
SIGTERM, then with SIGKILL. What those programs leave behind becomes a child of this process (it is made their
"subreaper"), so that even the payload of a killed pilot is found and ended. Should this process itself be killed, the
kernel sends SIGTERM to the programs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from protocol.errors import PilotageError
from protocol.redaction import one_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 10.0
"""How long programs have between SIGTERM and SIGKILL."""
ORPHAN_SECONDS = 2.0
IMPATIENT_SECONDS = 1.0
"""A second Ctrl-C after this kills at once; an earlier one is the same keystroke told twice (by make, say)."""
TAIL_LINES = 12

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class Signals:
    """While active, a signal raises KeyboardInterrupt in the main thread; within `held()` it waits until the end of that."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.impatient = False
        self._at = 0.0
        self._held = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > IMPATIENT_SECONDS:
            self.impatient = True
        self.check()

    def check(self) -> None:
        """Raise what may not be lost: Python swallows an exception that strikes in a destructor."""
        if self.first is not None and not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.check()


class Peak(NamedTuple):
    """The most memory that a program used: bytes in all of its processes, and how many there were."""

    size: int
    processes: int


class Program:
    """A started program."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self.popen = popen
        self._memory: dict[int, int] = {}

    def look(self, whole_session: bool) -> None:
        """Learn its memory so far: of its own process, or of every one in its session."""
        pids = (
            [pid for pid, _, session in _processes() if session == self.popen.pid]
            if whole_session
            else [self.popen.pid]
        )
        for pid in pids:
            size = max(self._memory.get(pid, 0), _high_water(pid))
            if size:
                self._memory[pid] = size

    @property
    def peak(self) -> Peak:
        return Peak(sum(self._memory.values()), len(self._memory))

    def failed(self, what: str) -> PilotageError:
        """The error of a program that went wrong, with the end of its log."""
        return PilotageError(
            "PROGRAM_FAILED", f"the {self.name} {what}; the end of its log {self.log}", problems=self.tail()
        )

    def tail(self) -> list[str]:
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
            return [
                one_line(line) for line in file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
            ]
        return []


class Programs:
    """All of them. As a context: at its end, however it comes, none is left."""

    def __init__(self, signals: Signals, logs: Path, environment: Mapping[str, str]) -> None:
        self._signals = signals
        self._logs = logs
        self._environment = environment
        self.all: list[Program] = []
        self._strangers: set[int] = set()

    def __enter__(self) -> Programs:
        self._strangers = set(_children())
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop()
        finally:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def start(self, name: str, module: str, *arguments: str, cwd: Path) -> Program:
        """Start one of our modules under this Python; its output goes to a log."""
        log = self._logs / f"{name.replace(' ', '-').lower()}.log"
        with self._signals.held(), open(log, "ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
            program = Program(name, popen, log)
            self.all.append(program)
        return program

    def check(self) -> None:
        """Raise if one has ended: none of them should by itself."""
        self._signals.check()
        for program in self.all:
            code = program.popen.poll()
            if code is not None:
                raise program.failed(f"ended by itself, {ending(code)}")

    def finish(self, program: Program, watch: Callable[[], None]) -> None:
        """Wait for one that is meant to end, calling `watch` meanwhile; raise unless it ended well."""
        while program.popen.poll() is None:
            self._signals.check()
            watch()
            time.sleep(0.05)
        self.all.remove(program)
        if program.popen.returncode != 0:
            raise program.failed(f"failed, {ending(program.popen.returncode)}")

    def stop(self) -> None:
        """End all of them and what they have left. The first one last: the others have a last word for it."""
        with self._signals.held():
            self._stop(self.all[1:])
            self._stop(self.all)
            self._end_orphans()

    def _stop(self, programs: list[Program]) -> None:
        _signal(programs, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(each.popen.poll() is None for each in programs):
            if time.monotonic() > deadline or self._signals.impatient:
                _signal(programs, signal.SIGKILL)
            time.sleep(0.02)
        self.all = [each for each in self.all if each not in programs]

    def _end_orphans(self) -> None:
        """End what the programs left behind, and the kernel gave to us: our children that we have not started."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while left := set(_children()) - self._strangers:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline:
                return  # one that waits for a dead disk does not die before it
            time.sleep(0.02)


def ending(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    return f"by signal {signal.Signals(-code).name}"


def _die_with_parent() -> None:
    """In the new process, before it becomes the program."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _signal(programs: Sequence[Program], number: signal.Signals) -> None:
    for program in programs:
        if program.popen.poll() is None:
            with suppress(ProcessLookupError):
                # SIGTERM to the program, which ends its own; SIGKILL to all of its session's group.
                (os.killpg if number == signal.SIGKILL else os.kill)(program.popen.pid, number)


def _children() -> Iterator[int]:
    return (pid for pid, parent, _ in _processes() if parent == os.getpid())


def _processes() -> Iterator[tuple[int, int, int]]:
    """(pid, parent, session) of every process, dead ones that nobody has waited for too."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
                yield int(name), int(fields[1]), int(fields[3])


def _high_water(pid: int) -> int:
    """The most memory that a process had resident, in bytes; 0 if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
