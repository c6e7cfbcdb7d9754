"""The Services API: benchmarks of a node and reports of memory, for programs that are no pilot.

    from pilot.api import services
    report = services.benchmark(cores=8)
    services.send(services.described(report, leave_out=["node"], site="DUBNA"), "http://elastic:9200/pilotage/_doc")

    with services.MemoryMonitor(payload.pid, Path("work")) as monitor:    # keeps work/memory_monitor.json
        payload.wait()
    services.add_to_job_report(monitor.report(), Path("work"))            # work/jobReport.json

It needs the standard library alone. Pilots do the same around their payloads (`[services]`, and the monitor `memory_report`).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from pilot import benchmark as program
from pilot import memory_report, proc
from pilot.collector import described, send
from protocol.errors import PilotageError
from protocol.redaction import one_line

__all__ = ["MemoryMonitor", "add_to_job_report", "benchmark", "described", "send"]

logger = logging.getLogger(__name__)


def benchmark(
    directory: Path = Path("."), cores: int = 0, seconds: float = 3.0, disk_mb: int = 64
) -> dict[str, Any]:
    """Measure this node with so many processes at once (0: one per core), and the disk of the directory; BENCHMARK_FAILED.

    It is a process of its own, so that it may be called from a program with threads.
    """
    command = program.command(str(directory), cores, seconds, disk_mb)
    try:
        done = subprocess.run(command, capture_output=True, timeout=60 + 5 * seconds, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise PilotageError("BENCHMARK_FAILED", one_line(str(error))[:300]) from None
    if not isinstance(found, dict):
        words = done.stderr.decode(errors="replace").strip()
        raise PilotageError("BENCHMARK_FAILED", one_line(words)[-300:] or f"exit code {done.returncode}")
    return found


def add_to_job_report(
    part: Mapping[str, Any],
    directory: Path = Path("."),
    key: str = memory_report.KEY,
    name: str = memory_report.JOB_REPORT,
) -> str:
    """Put a dictionary into the job's report under a key of its own; the report is made if there is none.

    "" if that is done, else why not: a report that is a link, larger than 2 MiB or no JSON object stays as it is.
    """
    return memory_report.merge(directory, part, key, name)


class MemoryMonitor:
    """Looks at a process and all that descend from it, per rank or process, until the `with` ends; one thread.

    With a directory the report is kept in its memory_monitor.json, which is replaced as a whole.
    """

    def __init__(self, pid: int, directory: Optional[Path] = None, seconds: float = 2.0) -> None:
        self._pid = pid
        self._directory = directory
        self._seconds = seconds
        self._report = memory_report.MemoryReport()
        self._processes = memory_report.Processes({} if pid == os.getpid() else os.environ)
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"memory-of-{pid}")

    def report(self) -> dict[str, Any]:
        """What was seen so far."""
        with self._lock:
            return self._report.as_json()

    def __enter__(self) -> MemoryMonitor:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            living = [stat for stat in map(proc.stat, proc.tree(self._pid)) if stat and not stat.is_dead]
            with self._lock:
                self._report.look(time.monotonic() - self._began, self._processes.seen(living))
            self._write()
            if self._stop.wait(self._seconds):
                return

    def _write(self) -> None:
        if self._directory is None:
            return
        try:
            memory_report.write(self._directory, memory_report.FILE, self.report())
        except OSError as error:
            logger.warning("the memory report cannot be written", extra={"reason": str(error)})
