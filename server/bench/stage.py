"""What a benchmark plays on: the server and the reference as processes of their own, clients, and what each of them uses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from protocol.errors import PilotageError
from protocol.settings import Settings
from server import settings as server_settings
from server.bench.planting import Planter
from server.bench.postgres import Postgres, end_with_parent

T = TypeVar("T")
START_SECONDS = 30
STOP_SECONDS = 30
ROOT = Path(__file__).parent.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
DATABASE = server_settings.TABLE.names[("database", "url")].environment
"""The variable that names the database; it may hold a password, and argv is for everybody."""
QUEUE = "CPU"
PILOTS = "bench"


# -- processes --------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, or None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (fields := _stat(int(path.name))):
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: list[int]) -> float:
    """What these processes have used, and those of their children that have ended."""
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS


def resident_mb(pids: list[int]) -> float:
    """Memory of their own: pages that they share are counted once (Pss)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def wait_until(ready: Callable[[], T], seconds: float, what: str) -> T:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise PilotageError("SERVER_NOT_STARTED", f"no {what} within {seconds:.0f} s")
        time.sleep(0.02)
    return found


class Process:
    """A program of ours in the background; its output is kept, and told when it fails."""

    def __init__(self, module: str, *words: str, log: Path, orders: Any = None, database: str = "") -> None:
        self.log = log
        with open(log, "ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=log.parent,
                env=environment(log.parent) | ({DATABASE: database} if database else {}),
                preexec_fn=end_with_parent,
            )
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(orders).encode() + b"\n")
        self.popen.stdin.close()

    def wait_for(self, ready: Callable[[], T], what: str) -> T:
        def look() -> T:
            if self.popen.poll() is not None:
                said = self.log.read_text(errors="replace")[-1500:]
                raise PilotageError("SERVER_NOT_STARTED", f"the {what} has ended: {said}")
            return ready()

        return wait_until(look, START_SECONDS, what)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to all of it if that does not help."""
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


# -- the server and the reference -----------------------------------------------------------------------------------------


class Target:
    """A server to be measured: where it is, who may speak with it, and which processes work for it."""

    def __init__(self, name: str, url: str, token: str, process: Process, database_pid: int | None) -> None:
        self.name = name
        self.host = str(urlsplit(url).hostname)
        self.port = int(urlsplit(url).port or 0)
        self.token = token
        self.process = process
        self.database_pid = database_pid

    def server_pids(self) -> list[int]:
        return tree(self.process.popen.pid)

    def pids(self) -> list[int]:
        """The server's processes and the database's."""
        return self.server_pids() + (tree(self.database_pid) if self.database_pid else [])


class Installation:
    """A server on an empty database of its own, with a task whose jobs are planted."""

    def __init__(
        self, directory: Path, database: str, postgres: Postgres | None, opened: contextlib.ExitStack
    ) -> None:
        self.directory = directory
        self.database = database
        self.postgres = postgres
        self.process = self._start()
        opened.callback(self.process.stop)  # at once: whatever comes next may fail
        running = self.process.wait_for(self._running, "server")
        self.url = str(running["url"])
        self.token = (directory / "pilot.token").read_text().strip()
        self.admin_token = (directory / "admin.token").read_text().strip()
        self.target = Target("server", self.url, self.token, self.process, postgres.pid if postgres else None)
        self.planter = opened.enter_context(contextlib.closing(Planter(database)))
        self.task_id = self._first_task()
        self.planter.keep_open(self.task_id)

    def _start(self) -> Process:
        home = self.directory.parent
        words = ["start", "--foreground", "--state", str(self.directory), "--port", "0"]
        return Process("server", *words, log=home / "server.log", database=self.database)

    def settings(self) -> Settings:
        """How its server is set up."""
        home = self.directory.parent
        return server_settings.load(environ=environment(home), start=home)

    def _running(self) -> Any:
        try:
            running = json.loads((self.directory / "server.json").read_text())
            with urllib.request.urlopen(f"{running['url']}/healthz", timeout=5):
                return running
        except (OSError, ValueError):
            return None

    def _first_task(self) -> int:
        task = self.request("POST", "/v1/tasks", {"name": "planted", "command": ["true"], "nJobs": 1})
        formed = f"/v1/tasks/{task['taskId']}"
        wait_until(lambda: self.request("GET", formed)["counts"], START_SECONDS, "first job")
        return int(task["taskId"])

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One call as an admin."""
        headers = {"Authorization": f"Bearer {self.admin_token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise PilotageError("SERVER_ERROR", f"{method} {path}: {error.code} {said[:500]}") from None

    def stock(self, n: int) -> None:
        """See that `n` jobs may be claimed."""
        there = self.planter.waiting(self.task_id, n)
        if there < n:
            self.planter.ready(self.task_id, n - there)

    def workers(self) -> list[int]:
        """The processes that answer: gunicorn's children, but for the one that pilots wait with."""
        waiting = self.waiting_processes()
        return [pid for pid in self.target.server_pids()[1:] if pid not in waiting]

    def waiting_processes(self) -> list[int]:
        return [pid for pid in self.target.server_pids()[1:] if "server.waiting.process" in _command(pid)]


def environment(home: Path) -> dict[str, str]:
    """The operator's, but for whatever configuration lies in a home or the start directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}


def affinity(pids: list[int]) -> list[list[int]]:
    return [sorted(os.sched_getaffinity(pid)) for pid in pids] or [sorted(os.sched_getaffinity(0))]


class Stage:
    """Everything that one benchmark starts on one kind of database; ended with it."""

    def __init__(self, directory: Path, kind: str, postgres: Postgres | None) -> None:
        self.directory = directory
        self.kind = kind
        self.postgres = postgres
        self._open = contextlib.ExitStack()
        self._numbers = iter(range(1, 1000))

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def installation(self) -> Installation:
        """A server of its own, which lives as long as the stage."""
        home = self.directory / f"{self.kind}-{next(self._numbers)}"
        home.mkdir()
        if self.postgres is None:
            url = f"sqlite:///{home}/state/pilotage.db"
        else:
            url = self._open.enter_context(self.postgres.database(home.name.replace("-", "_")))
        return Installation(home / "state", url, self.postgres, self._open)

    def reference(self, subject: Installation) -> tuple[Target, Installation]:
        """The reference on an installation whose own server has stopped, held to the processors of the subject's workers."""
        base = self.installation()
        base.process.stop()
        workers = subject.workers()
        ready = base.directory.parent / "ready"
        orders = {
            "database": base.database,
            "workers": len(workers),
            "threads": base.settings().integer("server", "threads"),
            "affinity": affinity(workers),
            "ready": str(ready),
        }
        log = base.directory.parent / "reference.log"
        process = Process("server.bench.reference", log=log, orders=orders)
        self._open.callback(process.stop)

        def port() -> str:
            return ready.read_text() if ready.exists() else ""

        url = f"http://127.0.0.1:{process.wait_for(port, 'reference')}"
        target = Target("reference", url, base.token, process, base.target.database_pid)
        return target, base

    def load(self) -> Load:
        """A process for clients."""
        return self._open.enter_context(Load())


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory for state and logs; it must lie on a disk, or durability costs nothing."""
    path = Path(tempfile.mkdtemp(prefix="pilotage-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# -- clients ----------------------------------------------------------------------------------------------------------


class Load:
    """The process that plays the clients; one order at a time."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "server.bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(Path.home()),
            start_new_session=True,
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.close()
        try:
            self.popen.wait(0.5)
        except subprocess.TimeoutExpired:
            self.popen.kill()  # its run is of no use any more
            self.popen.wait()
        self.popen.stdout.close()

    def start(self, target: Target, script: str, **order: Any) -> None:
        """Give an order; `result` waits for what comes of it."""
        assert self.popen.stdin is not None
        full = {"host": target.host, "port": target.port, "token": target.token, "script": script}
        full |= {"queue": QUEUE, "resource": "cpu", "label": "", "pilots": PILOTS, **order}
        self.popen.stdin.write(json.dumps(full) + "\n")
        self.popen.stdin.flush()

    def result(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise PilotageError("SERVER_ERROR", "the clients' process has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PilotageError("SERVER_ERROR", f"the clients' run failed: {answer['error']}")
        return answer

    def end(self) -> dict[str, Any]:
        """End a run that has no end of its own."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()
        return self.result()

    def run(self, target: Target, script: str, **order: Any) -> dict[str, Any]:
        self.start(target, script, **order)
        return self.result()
