"""What a pilot shows of a payload to somebody who looks at it: ends of files, processes, listings; bounded, without secrets and links.

All of it is collected in threads beside: no heartbeat waits for them longer than a moment, whatever file system hangs.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Callable, NamedTuple, Optional

from pilot import diagnosis, proc, workdir
from pilot.context import Context
from pilot.jobrun import BUNDLE, INPUTS, STDOUT, JobRun
from pilot.proc import Stat
from protocol.messages.pilots import (
    INSPECTIONS,
    LONGEST_TAIL,
    DebugOrder,
    DebugReport,
    Heartbeat,
    HeldAttempt,
    InspectionAnswer,
    InspectionOrder,
    UpdateReply,
)
from protocol.redaction import lines, one_line

logger = logging.getLogger(__name__)

SHORTEST_PERIOD = 1.0
MOMENT_SECONDS = 0.3
"""How long a heartbeat waits for what it is to carry; what comes later goes with the next one."""
LEAD_BYTES = 4096
"""Read before the part of a file that is shown, so that a secret across its beginning is known as one."""
LONGEST_SECRET = 512
MOST_ENTRIES = 20_000
"""Of a job's directory, looked at for the newest file and for sizes."""
MOST_DEEP = 64
"""Directories within each other: each that is open takes a descriptor."""
MOST_LISTED = 200
MOST_PROCESSES = 100


class Tail(NamedTuple):
    size: int
    text: str


@dataclass
class _Looked:
    """An attempt that somebody looks at."""

    order: DebugOrder
    due: float = 0.0
    report: DebugReport = field(default_factory=DebugReport)
    has_news: bool = False
    asked: set[int] = field(default_factory=set)
    """The inspections that were begun, by their numbers."""
    collecting: Optional[threading.Thread] = None


class Desk:
    """What the server has ordered, and what the next heartbeat carries because of it. Used by the heartbeat's thread."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._looked: dict[int, _Looked] = {}
        self._told_to_end: set[int] = set()
        self._lock = threading.Lock()
        """Guards the reports, which threads beside write."""

    def period(self, otherwise: float) -> float:
        """How long until the next heartbeat: never longer than without us."""
        periods = [max(SHORTEST_PERIOD, looked.order.period_seconds) for looked in self._looked.values()]
        return min([otherwise, *periods])

    def held(self, job: JobRun) -> HeldAttempt:
        """How a heartbeat names the attempt, with what was collected."""
        named = job.held()
        looked = self._looked.get(job.spec.attempt_id)
        if looked is None:
            return named
        if looked.collecting is None and time.monotonic() >= looked.due:
            looked.due = time.monotonic() + looked.order.period_seconds * 0.9
            looked.collecting = self._beside("tails", job, looked, self._collect_tails)
            looked.collecting.join(MOMENT_SECONDS)
        if looked.collecting is not None and not looked.collecting.is_alive():
            looked.collecting = None
        with self._lock:
            if looked.has_news:
                named.debug, looked.has_news = looked.report, False
                # The ends of the files stay: the next report may have nothing new but an answer.
                looked.report = replace(looked.report, answers=[])
        return named

    def lost(self, word: Heartbeat) -> None:
        """It did not arrive: what it had to say about inspections goes with the next one."""
        for named in word.attempts:
            looked = self._looked.get(named.attempt_id)
            if looked is None or named.debug is None:
                continue
            with self._lock:
                looked.report.answers = [*named.debug.answers, *looked.report.answers]
                looked.due, looked.has_news = 0.0, True

    def obey(self, job: JobRun, answer: UpdateReply) -> None:
        """What the server wants to see of an attempt that we hold, from now on; and whether its payload is to end by itself."""
        attempt_id = answer.attempt_id
        if answer.debug is None or job.has_ended:
            self._looked.pop(attempt_id, None)
        else:
            looked = self._looked.setdefault(attempt_id, _Looked(answer.debug))
            if (
                answer.debug.period_seconds < looked.order.period_seconds
                or answer.debug.file != looked.order.file
            ):
                looked.due = 0.0
            looked.order = answer.debug
            for order in answer.debug.inspect:
                if order.number not in looked.asked:
                    looked.asked.add(order.number)
                    self._inspect(job, looked, order)
        if answer.soft_stop and not job.has_ended and attempt_id not in self._told_to_end:
            self._tell_to_end(job)

    def forget(self, held: set[int]) -> None:
        """Attempts that are held no more."""
        self._looked = {key: looked for key, looked in self._looked.items() if key in held}
        self._told_to_end &= held

    def _tell_to_end(self, job: JobRun) -> None:
        """Once, as soon as there is a payload: what it makes of it counts, and nothing kills it."""
        for watch in self._context.watches.all():
            if watch.job is job:
                self._told_to_end.add(job.spec.attempt_id)
                logger.info("the server wants the payload to end by itself")
                watch.process.tell_to_end(self._context.grace_seconds())

    # -- beside -------------------------------------------------------------------------------------------------------------

    def _beside(
        self, name: str, job: JobRun, looked: _Looked, work: Callable[[JobRun, _Looked], None]
    ) -> threading.Thread:
        def top() -> None:
            with job.logged():
                try:
                    work(job, looked)
                except Exception:  # the top of the thread: who looks sees nothing new, and the job goes on
                    logger.exception("what somebody wants to see could not be collected")

        thread = threading.Thread(target=top, name=f"debug-{name}-{job.spec.attempt_id}", daemon=True)
        thread.start()
        return thread

    def _collect_tails(self, job: JobRun, looked: _Looked) -> None:
        hide = self._context.secrets.hide
        stdout = tail(job.directory, STDOUT, hide)
        if stdout is None:
            return  # before the payload, or the job has left: what was seen last stays
        name = looked.order.file or newest(job.directory)
        other = tail(job.directory, name, hide) if name else None
        if name and other is None:
            other = Tail(0, "(no plain file of this name is there)\n")
        with self._lock:
            report = looked.report
            report.stdout, report.stdout_size = stdout.text, stdout.size
            report.file, (report.size, report.text) = one_line(hide(name))[:1000], other or Tail(0, "")
            looked.has_news = True

    def _inspect(self, job: JobRun, looked: _Looked, order: InspectionOrder) -> None:
        if order.kind not in INSPECTIONS:
            return  # a newer server's

        def work(job: JobRun, looked: _Looked) -> None:
            text = lines(self._context.secrets.hide(self._found(order.kind, job)))
            if len(text) > LONGEST_TAIL:
                text = f"{text[: LONGEST_TAIL - 20]}\n... and more\n"
            with self._lock:
                looked.report.answers.append(InspectionAnswer(order.number, order.kind, text))
                looked.has_news = True

        self._beside(order.kind, job, looked, work)

    def _found(self, kind: str, job: JobRun) -> str:
        if kind == "ls":
            return listing(job.directory)
        if kind == "du":
            return sizes(job.directory)
        watches = [watch for watch in self._context.watches.all() if watch.job is job]
        processes = [each for watch in watches for each in watch.process.members()]
        if kind == "stack" and processes:
            with_debugger = not self._context.isolates
            return diagnosis.of(processes, self._context.environ, with_debugger=with_debugger)
        return process_table(processes)


# -- what is collected ------------------------------------------------------------------------------------------------------


def tail(directory: Path, name: str, hide: Callable[[str], str]) -> Optional[Tail]:
    """The end of a plain file in a job's directory; None if there is none of this name, or a link on the way to it."""
    try:
        number = _open_below(directory, name)
    except (OSError, ValueError):
        return None
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        return None
    with open(number, "rb") as file:
        start = max(0, status.st_size - LONGEST_TAIL - LEAD_BYTES)
        file.seek(start)
        data = file.read(LONGEST_TAIL + LEAD_BYTES)
    if not start:
        return Tail(status.st_size, _shown(data, hide))
    # The first characters may be the rest of one, or of a secret.
    while data and data[0] & 0xC0 == 0x80:
        data = data[1:]
    return Tail(status.st_size, _shown(data, hide, LONGEST_SECRET))


def _shown(data: bytes, hide: Callable[[str], str], skipped: int = 0) -> str:
    text = hide(data.decode("utf-8", "backslashreplace"))[skipped:]
    return lines(text[-LONGEST_TAIL:])[-LONGEST_TAIL:]


def _open_below(directory: Path, name: str) -> int:
    """Open a file below a directory, not one step of the way through a link; ValueError for a name that leads out."""
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or any(part in ("/", "//", "..") for part in parts):
        raise ValueError(name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(directory, flags | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        # A pipe without a writer must hold up nobody.
        return os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)


class _Entry(NamedTuple):
    name: str
    """Below the job's directory."""
    status: os.stat_result


def _entries(directory: Path) -> Iterator[_Entry]:
    """What lies in a job's directory, at most so many and so deep; links are told and not followed."""
    left = MOST_ENTRIES
    walk = os.fwalk(directory, follow_symlinks=False) if directory.is_dir() else iter(())
    for folder, folders, files, number in walk:
        for name in (*sorted(folders), *sorted(files)):
            try:
                status = os.stat(name, dir_fd=number, follow_symlinks=False)
            except OSError:
                continue  # gone
            left -= 1
            if left < 0:
                return
            yield _Entry(os.path.relpath(os.path.join(folder, name), directory), status)
        if len(Path(folder).parts) - len(directory.parts) >= MOST_DEEP:
            folders.clear()


def newest(directory: Path) -> str:
    """The plain file that was changed last, but for inputs, shipped code, standard output and what we write; "" if there is none."""
    found, changed = "", 0.0
    for name, status in _entries(directory):
        if name.split("/")[0] in (INPUTS, BUNDLE, STDOUT) or not stat.S_ISREG(status.st_mode):
            continue
        if name.startswith(workdir.OURS):
            continue
        if status.st_mtime > changed:
            found, changed = name, status.st_mtime
    return found


def listing(directory: Path) -> str:
    """As `ls -l` of all that is in the directory."""
    rows: list[str] = []
    for name, status in _entries(directory):
        if len(rows) == MOST_LISTED:
            rows.append("... and more")
            break
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status.st_mtime))
        rows.append(f"{stat.filemode(status.st_mode)} {status.st_size:>14} {at} {one_line(name)[:300]}")
    return "\n".join(rows or ["the job's directory is empty"]) + "\n"


def sizes(directory: Path) -> str:
    """As `du`: bytes on the disk below each entry of the directory, the largest first."""
    found: dict[str, int] = {}
    left = MOST_ENTRIES
    for name, status in _entries(directory):
        left -= 1
        top = name.split("/")[0]
        found[top] = found.get(top, 0) + status.st_blocks * 512
    largest = sorted(found.items(), key=lambda each: (-each[1], each[0]))
    rows = [f"{size:>14} {one_line(name)[:300]}" for name, size in largest[:MOST_LISTED]]
    more = f" of the first {MOST_ENTRIES} entries" if not left else ""
    return "\n".join([f"{sum(found.values()):>14} in all{more}", *rows]) + "\n"


def process_table(processes: list[Stat]) -> str:
    """As `ps`: the processes of a payload."""
    rows = [f"{'PID':>8} {'PARENT':>8} S {'CPU s':>9} {'MiB':>7} COMMAND"]
    for each in processes[:MOST_PROCESSES]:
        cpu, size = each.cpu_ticks / proc.TICKS, each.pages * proc.PAGE >> 20
        rows.append(
            f"{each.pid:>8} {each.parent:>8} {each.state} {cpu:>9.1f} {size:>7} {diagnosis.command(each.pid)}"
        )
    if len(processes) > MOST_PROCESSES:
        rows.append(f"... and {len(processes) - MOST_PROCESSES} more")
    return "\n".join(rows if processes else ["no process of the payload runs now"]) + "\n"
