"""A payload as a process of its own: started in a session of its own, waited for, and ended with all it has started.

Only what the pilot started is ever signalled: the members of the payload's session, and processes that carry the random mark
which the payload's environment was given (those that left the session).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

from protocol.errors import PilotageError
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

MARK = "PILOTAGE_PAYLOAD"
"""The environment variable by which the pilot knows the processes of a payload again."""

UNCLEAR_LOOKS = 3
"""How often to look again at a process whose environment is empty: some are without one for good."""
SWEEP_SECONDS = 2.0
"""How long killed processes may take to vanish: one that waits for a dead storage does not die before it."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What the living processes of a payload use together."""

    cpu_seconds: float
    memory_mb: float
    processes: int


class _Stat(NamedTuple):
    """The fields of /proc/PID/stat that are wanted here."""

    pid: int
    state: str
    session: int
    cpu_ticks: int
    began_ticks: int
    pages: int


class Process:
    """A started payload. One thread waits for it; any other may terminate it."""

    def __init__(self, popen: subprocess.Popen[bytes], mark: str) -> None:
        self._popen = popen
        self._mark = mark
        self._lock = threading.Lock()
        self._reaped = False
        self._patience = 0.0
        self.pid = popen.pid
        self._began_ticks = stat.began_ticks if (stat := _stat(popen.pid)) else 0
        self.started = time.monotonic()
        self.used = Usage(0.0, 0.0, 0)
        """After the end: processor time of all that was waited for, and the largest memory of one process (0: not known)."""
        self.ended = threading.Event()
        """Set when neither the payload nor anything that it started is left."""

    def wait(self) -> int:
        """Sleep until the payload ends, then end what it left behind; its exit code, or minus the signal it died of."""
        # Not reaped yet: while the dead leader is a zombie, its number cannot be given to a stranger.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._sweep()
        with self._lock:
            _, status, used = os.wait4(self.pid, 0)
            self._reaped = True
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        # The kernel counts the moment between fork and exec too, when the child was as large as we are.
        peak = used.ru_maxrss if used.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else 0
        self.used = Usage(used.ru_utime + used.ru_stime, peak / 1024, 0)
        self.ended.set()
        return self._popen.returncode

    def terminate(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL to what is left after the grace; returns when `wait` is through, or a moment after the grace."""
        self._patience = time.monotonic() + grace_seconds
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)  # a stopped process does not hear SIGTERM
        if not self.ended.wait(grace_seconds):
            self.kill()
            self.ended.wait(SWEEP_SECONDS)

    def kill(self) -> None:
        self._patience = 0.0
        self._signal_group(signal.SIGKILL)

    def usage(self) -> Usage:
        """What the payload and its children use now; what it has daemonised is not seen here, only ended at the end."""
        found = [stat for pid in _tree(self.pid) for stat in [_stat(pid)] if stat and stat.state != "Z"]
        ticks, pages = sum(stat.cpu_ticks for stat in found), sum(stat.pages for stat in found)
        return Usage(ticks / _TICKS, pages * _PAGE / 1024 / 1024, len(found))

    def _signal_group(self, number: int) -> None:
        with self._lock:
            if self._reaped:
                return
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # all of the group is gone, or (with PermissionError) none of it is ours any more

    def _sweep(self) -> None:
        """End what the dead leader left: at once, or after the grace if the payload was told to terminate."""
        killed_at: Optional[float] = None
        unclear_looks = 0
        while True:
            found = {pid: self._is_ours(pid) for pid in _living()}
            left = [pid for pid, ours in found.items() if ours]
            if not left:
                if None not in found.values() or unclear_looks == UNCLEAR_LOOKS:
                    return
                unclear_looks += 1
            now = time.monotonic()
            if now >= self._patience:
                killed_at = now if killed_at is None else killed_at
                for pid in left:
                    self._kill_one(pid)
                if now > killed_at + SWEEP_SECONDS:
                    logger.warning("processes of the payload do not die", extra={"processes": left[:20]})
                    return
            time.sleep(0.01)  # they are no children of ours: nothing could wake us

    def _is_ours(self, pid: int) -> Optional[bool]:
        """None if it cannot be told now: within execve(2) a process has no environment for a moment."""
        stat = _stat(pid)
        if stat is None or stat.state in "ZX" or pid == os.getpid():
            return False
        if stat.session == self.pid:
            return True
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False  # gone, or another user's
        if not environment and stat.pages and stat.began_ticks >= self._began_ticks:
            return None
        return f"{MARK}={self._mark}".encode() in environment.split(b"\0")

    def _kill_one(self, pid: int) -> None:
        """Between looking and killing, a number might pass to a stranger: where the kernel can, hold the process itself."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            handle = _hold(pid)
            try:
                if not self._is_ours(pid):
                    return
                if handle is None:
                    os.kill(pid, signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                if handle is not None:
                    os.close(handle)


def start(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], stdout: Path, stderr: Path
) -> Process:
    """Start a payload in a new session, with no input and its text into two new files."""
    mark = secrets.token_hex(16)
    try:
        with open(os.devnull, "rb") as nothing, _new(stdout) as out, _new(stderr) as err:
            popen = subprocess.Popen(
                list(command),
                cwd=directory,
                env={**environment, MARK: mark},
                stdin=nothing,
                stdout=out,
                stderr=err,
                start_new_session=True,
                close_fds=True,
            )
    except ValueError as error:  # a NUL character in an argument, or = in the name of a variable
        raise PilotageError("BAD_COMMAND", f"{_shown(command)}: {error}") from None
    except OSError as error:
        raise _cannot_start(command, directory, environment, error) from None
    return Process(popen, mark)


def check_program(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
    """Raise TRANSFORM_NOT_FOUND or BAD_COMMAND if a command cannot be started; before inputs are copied for nothing."""
    if not command or not command[0]:
        raise PilotageError("BAD_COMMAND", "the command is empty")
    found = _find(command[0], directory, environment)
    if found is None:
        raise PilotageError("TRANSFORM_NOT_FOUND", f"{_shown(command)}: no such program on this node")
    if found.is_dir():
        raise PilotageError("BAD_COMMAND", f"{_shown(command)}: is a directory")
    if not os.access(found, os.X_OK):
        raise PilotageError("BAD_COMMAND", f"{_shown(command)}: is not executable")


def _find(program: str, directory: Path, environment: Mapping[str, str]) -> Optional[Path]:
    """The file of a program, by the rule of execvp(3); one that may not be executed counts if no better one is there."""
    if "\0" in program:
        raise PilotageError("BAD_COMMAND", f"{one_line(program)!a} contains a NUL character")
    if "/" in program:
        found = directory / program
        # Not Path.exists: that raises for a name that is too long.
        return found if os.path.exists(found) else None
    places = [directory / place / program for place in environment.get("PATH", os.defpath).split(os.pathsep)]
    files = [place for place in places if os.path.isfile(place)]
    return next((file for file in files if os.access(file, os.X_OK)), files[0] if files else None)


def _cannot_start(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], error: OSError
) -> PilotageError:
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return PilotageError("NODE_UNFIT", f"{_shown(command)} could not be started: {error.strerror}")
    if error.errno == errno.ENOSPC:
        return PilotageError("NO_LOCAL_SPACE", f"{_shown(command)} could not be started: {error.strerror}")
    check_program(command, directory, environment)
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        reason = "the interpreter that its first line names is not on this node"
    return PilotageError("BAD_COMMAND", f"{_shown(command)}: {reason}")


def _shown(command: Sequence[str]) -> str:
    return one_line(command[0][:200]) if command else "the command"


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _hold(pid: int) -> Optional[int]:
    """A descriptor of the process, or None where the kernel is too old for that (EL 8)."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            return None
        raise


def _living() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _tree(pid: int) -> list[int]:
    """A process and its descendants, as the kernel lists them; just the process itself where it does not."""
    found = [pid]
    for each in found:
        try:
            for task in os.listdir(f"/proc/{each}/task"):
                children = Path(f"/proc/{each}/task/{task}/children").read_text()
                found.extend(int(child) for child in children.split())
        except OSError:
            pass
    return found


def _stat(pid: int) -> Optional[_Stat]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return _Stat(
        pid, fields[0], int(fields[3]), sum(map(int, fields[11:15])), int(fields[19]), int(fields[21])
    )
