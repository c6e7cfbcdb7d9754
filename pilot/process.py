"""A payload as a process of its own: started in a session of its own, waited for, and ended with all it has started.

Only what the pilot started is ever signalled. Three things tell it: the payload's session; the random mark in its environment; and
descent: within `adopting_orphans` the kernel hands the pilot whatever loses its parent below it, so that neither a double fork nor
a cleared environment hides a process. Where the pilot may make cgroups, each payload also has one, which ends all at one moment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from pilot import cgroups, limits, proc
from pilot.accounts import Account, rights
from pilot.proc import Stat
from pilot.text import Text
from protocol.errors import PilotageError
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

MARK = "PILOTAGE_PAYLOAD"
"""The environment variable by which the pilot knows the processes of a payload again."""

LOOKS = 2
"""How often in a row nothing must be left: a list of children may leave one out."""
UNCLEAR_LOOKS = 3
"""How often to look again at a process whose environment is empty: some are without one for good."""
SWEEP_SECONDS = 2.0
"""How long killed processes may take to vanish: one that waits for a dead storage does not die before it."""

_PR_SET_CHILD_SUBREAPER = 36


class Usage(NamedTuple):
    """What the living processes of a payload use together."""

    cpu_seconds: float
    memory_mb: float
    processes: int


class _Running:
    """The payloads of this process. There is one list because the kernel has one: the children of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held while a child is born, and while it is told who owns an orphan: a child is never taken for one."""
        self.payloads: dict[int, Process] = {}
        self.is_adopting = False

    def strangers(self) -> list[int]:
        """Children that are no payloads: orphans, or what the pilot itself has started."""
        return [pid for pid in proc.adopted(os.getpid()) if pid not in self.payloads]

    def orphans(self) -> list[Stat]:
        """Processes that became our children when their parents ended, living or dead.

        Our own children are in our session, or are payloads; nobody can enter a session from outside.
        """
        ours = os.getsid(0)
        found = map(proc.stat, self.strangers())
        return [each for each in found if each and each.session != ours and each.parent == os.getpid()]


_running = _Running()


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Within this, orphans below us become our children. For a program that starts no daemon which is to outlive it."""
    _running.is_adopting = proc.lists_children() and _adopt(True)
    if not _running.is_adopting:
        logger.info("this kernel hands no orphans over: payloads are known by session and environment alone")
    cgroups.remove_leftovers()
    try:
        yield
    finally:
        if _running.is_adopting:
            _adopt(False)
        _running.is_adopting = False


def _adopt(wanted: bool) -> bool:
    try:
        import ctypes  # late, and not on every node

        return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0
    except (ImportError, OSError, AttributeError):
        return False


class Process:
    """A started payload. One thread waits for it; any other may terminate it."""

    def __init__(self, popen: subprocess.Popen[bytes], mark: str, text: Text) -> None:
        self._popen = popen
        self._mark = f"{MARK}={mark}".encode()
        self._text = text
        self.cgroup: Optional[cgroups.Cgroup] = None
        """Where one could be made: its memory and CPU time are those of everything that the payload started."""
        self._lock = threading.Lock()
        self._reaped = False
        self._patience = 0.0
        self.pid = popen.pid
        self._began_ticks = stat.began_ticks if (stat := proc.stat(popen.pid)) else 0
        self._is_swept = False
        """It takes no orphan any more: one that nobody owns is left to the others that still run."""
        self._seen: set[tuple[int, int]] = set()
        """Number and birth of its processes at the last look: an orphan without a mark is known again."""
        self.started = time.monotonic()
        self.timed_out = False
        """It was ended because it ran longer than `wait` allows."""
        self.used = Usage(0.0, 0.0, 0)
        """After the end: processor time of all that was waited for, and the largest memory of one process (0: not known)."""
        self.oom_kills = 0
        """After the end: how many of its processes the kernel has ended because memory was short, as its own cgroup has counted them."""
        self.oom_kills_around = 0
        """The same in the group that it shares with the pilot and its other payloads, while it ran."""
        self._oom_kills_before = cgroups.oom_kills_around_us()
        self.ended = threading.Event()
        """Set when neither the payload nor anything that it started is left."""

    @property
    def text_error(self) -> Optional[OSError]:
        """Why not all of what it printed is in its files; None if all is."""
        return self._text.error

    def wait(self, timeout_seconds: Optional[float] = None, grace_seconds: float = 0.0) -> int:
        """Sleep until the payload ends, then end what it left behind; its exit code, or minus the signal it died of.

        With a time-out it is told to end then, and killed when the grace is over.
        """
        # Not reaped yet: while the dead leader is a zombie, its number cannot be given to a stranger.
        with _end_of(self.pid) as end:
            if timeout_seconds is not None:
                self._copy_until(end, self.started + timeout_seconds, grace_seconds)
            while not self._text.copy(None, end):
                pass
        self._sweep()
        self._text.finish()
        used_by_all = self._close_cgroup()
        self.oom_kills_around = cgroups.oom_kills_around_us() - self._oom_kills_before
        with self._lock:
            _, status, used = os.wait4(self.pid, 0)
            self._reaped = True
        _running.payloads.pop(self.pid, None)
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        # The kernel counts the moment between fork and exec too, when the child was as large as we are.
        peak = used.ru_maxrss if used.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else 0
        self.used = Usage(max(used.ru_utime + used.ru_stime, used_by_all), peak / 1024, 0)
        self.ended.set()
        return self._popen.returncode

    def terminate(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL to what is left after the grace; returns when `wait` is through, or a moment after the grace."""
        self.tell_to_end(grace_seconds)
        if not self.ended.wait(grace_seconds):
            self.kill()
            self.ended.wait(SWEEP_SECONDS)

    def kill(self) -> None:
        self._patience = 0.0
        if self.cgroup is not None:
            self.cgroup.kill()
        self._signal(signal.SIGKILL)

    def usage(self) -> Usage:
        """What the payload and all that it started use now."""
        found = self.members()
        ticks, pages = sum(stat.cpu_ticks for stat in found), sum(stat.pages for stat in found)
        return Usage(ticks / proc.TICKS, pages * proc.PAGE / 1024 / 1024, len(found))

    def members(self) -> list[Stat]:
        """The living processes of the payload, as far as they can be told from those of others while it runs."""
        with _running.lock:
            roots = [self.pid, *(each.pid for each in self._my_orphans())]
            found = self._living(roots)
            self._seen = {(each.pid, each.began_ticks) for each in found}
        return found

    def beside(self) -> list[Stat]:
        """What others have started for it on this node, as srun has its ranks started: known by the mark. It looks at all that live."""
        below = {each.pid for each in self.members()}
        return [each for each in _everything() if each.pid not in below and self._owns(each)]

    # -- signals ------------------------------------------------------------------------------------------------------------

    def tell_to_end(self, grace_seconds: float) -> None:
        """SIGTERM; what it leaves behind has its grace too."""
        self._patience = time.monotonic() + grace_seconds
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a stopped process does not hear SIGTERM

    def _signal(self, number: int) -> None:
        """To its process group at one moment, and to each that has left it."""
        with _running.lock, self._lock:
            if self._reaped:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)  # all of the group may be gone, or none of it ours any more
            for stat in self.members():
                if stat.pid != self.pid and _group(stat.pid) != self.pid:
                    _send(stat, number)

    def _copy_until(self, end: int, deadline: float, grace_seconds: float) -> None:
        """Return when the payload has ended, or was told to."""
        while (left := deadline - time.monotonic()) > 0:
            if self._text.copy(left, end):
                return
        self.timed_out = True
        self.tell_to_end(grace_seconds)
        while (left := self._patience - time.monotonic()) > 0:
            if self._text.copy(left, end):
                return
        self.kill()

    # -- what a dead leader leaves ------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """End what the dead leader left: at once, or after the grace if the payload was told to terminate."""
        self._is_swept = True
        if not any(self._may_have_left() for _ in range(LOOKS)):
            return
        self._is_swept = False
        killed_at: Optional[float] = None
        looks, unclear_looks = 0, 0
        wanted = LOOKS if _running.is_adopting else 1
        while looks < wanted:
            with _running.lock:
                left, unclear = self._left()
                now = time.monotonic()
                if left and now >= self._patience:
                    killed_at = now if killed_at is None else killed_at
                    if self.cgroup is not None:
                        self.cgroup.kill()
                    for stat in left:
                        _send(stat, signal.SIGKILL)
                if not left and (not unclear or unclear_looks == UNCLEAR_LOOKS):
                    looks += 1
                    self._is_swept = looks == wanted
                    continue
            looks = 0
            unclear_looks += not left
            if killed_at is not None and now > killed_at + SWEEP_SECONDS:
                processes = [stat.pid for stat in left[:20]]
                logger.warning("processes of the payload do not die", extra={"processes": processes})
                return
            self._text.copy(0.01)  # they are no children of ours from birth: nothing could wake us

    def _may_have_left(self) -> bool:
        """Whether it has to be looked for; mostly there is nothing, and no other payload's birth is waited for to know that."""
        if not _running.is_adopting or _running.strangers():
            return True
        return self.cgroup is not None and bool(self.cgroup.processes())

    def _left(self) -> tuple[list[Stat], bool]:
        """What is to be ended; and whether there is something of which it cannot be told yet."""
        if not _running.is_adopting:
            found = [(stat, self._owns(stat)) for stat in _everything() if stat.pid != os.getpid()]
            return [stat for stat, ours in found if ours], any(ours is None for _, ours in found)
        return self._living(each.pid for each in self._my_orphans(at_end=True)), False

    def _living(self, roots: Iterable[int]) -> list[Stat]:
        """These, their descendants, and all in the cgroup, each once."""
        pids = [pid for root in roots for pid in proc.tree(root)]
        if self.cgroup is not None:
            pids += self.cgroup.processes()
        return [stat for pid in dict.fromkeys(pids) for stat in [proc.stat(pid)] if stat and not stat.is_dead]

    def _my_orphans(self, at_end: bool = False) -> list[Stat]:
        """Orphans that this payload left; the dead ones among all orphans are buried on the way.

        One that nothing tells apart is any payload's that ran when it began; it goes when the last of these ends.
        """
        if not _running.is_adopting:
            return []
        found = []
        for stat in _running.orphans():
            if stat.is_dead:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(stat.pid, os.WNOHANG)
            elif self._owns(stat) or (at_end and self._is_last_who_may_own(stat)):
                found.append(stat)
        return found

    def _is_last_who_may_own(self, orphan: Stat) -> bool:
        if os.getpid() == 1 or orphan.began_ticks < self._began_ticks:
            return False  # the first process of a container is handed the orphans of strangers too
        others = [
            each for each in list(_running.payloads.values()) if each is not self and not each._is_swept
        ]
        owned = any(each._owns(orphan) for each in others)
        return not owned and not any(each._began_ticks <= orphan.began_ticks for each in others)

    def _owns(self, stat: Stat) -> Optional[bool]:
        """None if it cannot be told now: within execve(2) a process has no environment for a moment."""
        if stat.is_dead:
            return False
        if stat.session == self.pid or (stat.pid, stat.began_ticks) in self._seen:
            return True
        environment = proc.environment(stat.pid)
        if environment == [] and stat.pages and stat.began_ticks >= self._began_ticks:
            return None
        return environment is not None and self._mark in environment

    def _close_cgroup(self) -> float:
        """Remove it; the CPU time of all that were in it, 0 where there was none."""
        if self.cgroup is None:
            return 0.0
        used = self.cgroup.cpu_seconds() or 0.0
        self.oom_kills = self.cgroup.oom_kills()
        self.cgroup.remove()
        return used


def start(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    stdout: Path,
    stderr: Path,
    text_bytes: int = 0,
    most_processes: int = 0,
    discards_text: bool = False,
    account: Optional[Account] = None,
) -> Process:
    """Start a payload in a new session, with no input and its text into two new files, together not more than `text_bytes`.

    Who prints more has to wait until somebody ends it; with `discards_text` it goes on, and the rest is lost. Root may give it the
    rights of another `account`.
    `most_processes`, threads counted, are kept by its cgroup, or by the limit of the account where there is a prlimit(1) to set it.
    0: any number.
    """
    mark = secrets.token_hex(16)
    text = _text((stdout, stderr), text_bytes, discards_text, account)
    try:
        with _running.lock:
            popen = subprocess.Popen(
                [*_limiter(most_processes, account), *command],
                cwd=directory,
                env={**environment, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=text.ends[0],
                stderr=text.ends[1],
                start_new_session=True,
                close_fds=True,
                **rights(account),
            )
            made = Process(popen, mark, text)
            _running.payloads[popen.pid] = made
        made.cgroup = _cgroup(popen.pid, mark, most_processes)
    except ValueError as error:  # a NUL character in an argument, or = in the name of a variable
        text.finish()
        raise PilotageError("BAD_COMMAND", f"{_shown(command)}: {error}") from None
    except OSError as error:
        text.finish()
        raise _cannot_start(command, directory, environment, error) from None
    text.started()
    return made


def _text(paths: Iterable[Path], limit_bytes: int, discards: bool, account: Optional[Account]) -> Text:
    """The files are the account's: later steps of the job may read them."""
    files: list[int] = []
    try:
        for path in paths:
            files.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            if account is not None:
                os.fchown(files[-1], account.uid, account.gid)
        return Text(files, limit_bytes, discards)
    except OSError as error:
        for file in files:
            os.close(file)
        check_directory(path.parent)
        raise cannot_write(error, "what it prints") from None


def _cgroup(pid: int, mark: str, most_processes: int) -> Optional[cgroups.Cgroup]:
    """What the payload has started in its very first moment may stay outside; it is found as anywhere else."""
    made = cgroups.make(f"{os.getpid()}-{mark[:8]}")
    if made is None:
        return None
    if most_processes:
        made.limit_processes(most_processes)
    if not made.add(pid):
        made.remove()
        return None
    return made


def _limiter(most_processes: int, account: Optional[Account]) -> list[str]:
    """What stands before the command. The kernel counts all of the account, so what it has now is added."""
    # Not by the payload's PATH: within a container it would be the payload that says what runs outside.
    found = shutil.which("prlimit") if most_processes else None
    if found is None:
        return []
    uid = os.getuid() if account is None else account.uid
    return [found, f"--nproc={proc.threads_of_account(uid) + most_processes}", "--"]


@contextlib.contextmanager
def _end_of(pid: int) -> Iterator[int]:
    """A descriptor that can be read when a child has ended; the child is not waited for."""
    try:
        handle = _hold(pid)
    except ProcessLookupError:
        handle = None
    if handle is not None:
        try:
            yield handle
        finally:
            os.close(handle)
        return
    # Before Linux 5.3 (EL 8) there is none: a thread sleeps for us.
    reading, writing = os.pipe()

    def wait() -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(writing)

    thread = threading.Thread(target=wait, name=f"wait-{pid}")
    thread.start()
    try:
        yield reading
    finally:
        thread.join()
        os.close(reading)


def end_leftovers(directory: Path) -> None:
    """SIGKILL to what the payloads of a dead pilot left running: who has a payload's mark, and works in that pilot's directory."""
    until = time.monotonic() + SWEEP_SECONDS
    while left := [stat for stat in _everything() if not stat.is_dead and _works_in(stat.pid, directory)]:
        for stat in left:
            _send(stat, signal.SIGKILL)
        if time.monotonic() > until:
            logger.warning(
                "processes of a dead pilot do not die", extra={"processes": [each.pid for each in left[:20]]}
            )
            return
        time.sleep(0.01)  # they are no children of ours: nothing could wake us


def _works_in(pid: int, directory: Path) -> bool:
    try:
        place = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False
    inside = place.startswith(f"{directory.resolve()}/")
    return inside and any(each.startswith(f"{MARK}=".encode()) for each in proc.environment(pid) or ())


def _everything() -> list[Stat]:
    return [stat for pid in proc.living() for stat in [proc.stat(pid)] if stat]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _send(stat: Stat, number: int) -> None:
    """Between looking and signalling, a number might pass to a stranger: where the kernel can, hold the process itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        handle = _hold(stat.pid)
        try:
            now = proc.stat(stat.pid)
            if now is None or now.began_ticks != stat.began_ticks:
                return
            if handle is None:
                os.kill(stat.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        finally:
            if handle is not None:
                os.close(handle)


def how_it_ended(code: int) -> str:
    """What `Process.wait` returned, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def check_directory(directory: Path, otherwise: str = "BAD_COMMAND") -> None:
    """A payload may remove its own directory, or put a link in its place; a site may have removed all of the pilot's."""
    if directory.is_symlink() or not directory.is_dir():
        name = otherwise if directory.parent.is_dir() else "NODE_UNFIT"
        raise PilotageError(name, "the job's directory is not there any more")


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


def cannot_write(error: OSError, what: str) -> PilotageError:
    """What the node's own disk refuses is no fault of a payload; but a step may have taken the name of a text."""
    if error.errno == errno.EEXIST:
        return PilotageError("BAD_COMMAND", f"{what} has no file: a step of the job has taken its name")
    if error.errno == errno.EACCES:  # we have made it, and could write it then
        return PilotageError("BAD_COMMAND", f"{what} has no file: a step of the job has closed its directory")
    said = f"{what} could not be kept on the node's disk"
    return limits.disk_refuses(error, said) or PilotageError("NODE_UNFIT", f"{said}: {error.strerror}")


def _cannot_start(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], error: OSError
) -> PilotageError:
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return PilotageError("NODE_UNFIT", f"{_shown(command)} could not be started: {error.strerror}")
    check_directory(directory)
    check_program(command, directory, environment)
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        reason = "the interpreter that its first line names is not on this node"
    return PilotageError("BAD_COMMAND", f"{_shown(command)}: {reason}")


def _shown(command: Sequence[str]) -> str:
    return one_line(command[0][:200]) if command else "the command"


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
