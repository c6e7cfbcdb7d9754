"""A real server on either database for fault tests, and the end of each: the history checked, the audit clean, one line of figures."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from client.session import Session
from protocol.errors import PilotageError
from protocol.messages.requests import QueueSpec, TaskSpec
from protocol.messages.views import TaskView
from server.auditing.snapshot import Snapshot
from tests.auditing import assert_clean
from tests.faults.crew import USUAL, Crew, Habits, tried
from tests.faults.history import History, Row, check
from tests.postgres import Cluster
from tests.running_server import RunningServer, serving
from tests.waiting import wait_until

SHORT_LEASE = {"lease_seconds": 2, "heartbeat_seconds": 1}


@dataclass
class Tally:
    """What a fault test came to; one row of the fault table."""

    fault: str
    database: str
    rounds: int = 0
    kills: int = 0
    jobs: int = 0
    attempts: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        figures = (
            f"{name}: {value}"
            for name, value in asdict(self).items()
            if name not in ("fault", "database", "more")
        )
        more = (f"{name}: {value}" for name, value in self.more.items())
        return f"{self.fault} on {self.database}: {', '.join((*figures, *more))}"


class Installation:
    """A server, its queues and tasks."""

    _names = itertools.count(1)

    def __init__(self, server: RunningServer, cluster: Cluster | None = None) -> None:
        self.server = server
        self.cluster = cluster
        self.session = Session(server.url, server.admin_token.read_text().strip(), timeout_seconds=10)
        self.began = time.monotonic()

    def beginning(self) -> Installation:
        """The same, and the time is taken from now."""
        self.began = time.monotonic()
        return self

    @property
    def database_url(self) -> str:
        found = self.server.installation
        return found if isinstance(found, str) else f"sqlite:///{found.absolute()}/pilotage.db"

    @property
    def database(self) -> str:
        return self.database_url.partition(":")[0]

    def queue(self, **fields: Any) -> str:
        return self.session.create_queue(QueueSpec(f"q{next(self._names)}", **fields)).name

    def submit(self, queue: str, n_jobs: int, **fields: Any) -> TaskView:
        outputs = fields.pop("outputs", ["out-{job_nr}"])
        name = f"t{next(self._names)}"
        return self.session.submit_task(
            TaskSpec(name, ["true"], n_jobs=n_jobs, queue=queue, outputs=outputs, **fields)
        )

    def crew(self, queue: str, size: int = 8, habits: Habits = USUAL, **options: Any) -> Crew:
        token = self.server.pilot_token.read_text().strip()
        return Crew(options.pop("url", self.server.url), token, queue, size, habits, **options)

    def until(
        self, question: Callable[[], Any], what: str, timeout: float = 60.0, crew: Crew | None = None
    ) -> Any:
        """Wait for a true answer, also over a time without a server."""

        def ask() -> Any:
            if crew is not None:
                crew.raise_errors()
            try:
                return question()
            except PilotageError as error:
                raise AssertionError(str(error)) from None

        return wait_until(ask, timeout, what, interval=0.05)

    def ended(self, task: TaskView, crew: Crew | None = None, timeout: float = 60.0) -> TaskView:
        def look() -> TaskView:
            view = self.session.task(task.task_id)
            assert view.ended, f"{view.state}, {view.counts}"
            return view

        view: TaskView = self.until(look, f"the end of task {task.name}", timeout, crew)
        return view

    def completed(self, history: History, enough: int, crew: Crew, timeout: float = 60.0) -> None:
        """Wait until so many completions were acknowledged; the server is not asked."""
        self.until(lambda: history.completed >= enough, f"{enough} completed jobs", timeout, crew)

    def rows(self, tasks: list[TaskView]) -> tuple[list[Row], list[Row]]:
        """The jobs and the attempts of these tasks, as the database knows them."""
        return rows_of(self.database_url, [task.task_id for task in tasks])

    def judge(
        self,
        fault: str,
        tasks: list[TaskView],
        history: History,
        *,
        rounds: int = 1,
        kills: int = 0,
        **more: Any,
    ) -> Tally:
        """The proof: the history against the database, then the audit of database and storage."""
        jobs, attempts = self.rows(tasks)
        verdict = check(history.words, jobs, attempts)
        tally = Tally(
            fault, self.database, rounds, kills, verdict.jobs, verdict.attempts, len(verdict.lost), len(verdict.twice),
            round(time.monotonic() - self.began, 1), {**tried(history), **more},
        )  # fmt: skip
        print(tally)
        assert verdict.is_clean, "\n".join((*verdict.lost[:20], *verdict.twice[:20]))
        for task in tasks:
            assert_clean(self.server.installation, task=str(task.task_id))
        return tally

    def signal_server(self, number: int) -> None:
        """To all processes of the server."""
        assert self.server.process is not None
        os.killpg(self.server.process.pid, number)

    def kill_database(self) -> None:
        """SIGKILL to every process of Postgres at once, and start it again on the same port."""
        assert self.cluster is not None and self.cluster.process is not None
        port, parent = self.cluster.port, self.cluster.process.pid
        family = [parent, *_children(parent)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.stop(signal.SIGKILL)
        wait_until(lambda: not any(_lives(pid) for pid in family), 10, "the end of Postgres")
        self.cluster.start()
        assert self.cluster.port == port

    def close(self) -> None:
        self.session.close()


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rows_of(database_url: str, tasks: Collection[int]) -> tuple[list[Row], list[Row]]:
    """The jobs and the attempts of these tasks."""
    with Snapshot(database_url) as snapshot:
        jobs = list(
            snapshot.rows("SELECT id, state, attempt_id FROM job WHERE task_id IN :tasks", tasks=list(tasks))
        )
        attempts = snapshot.rows(
            "SELECT a.id, a.job_id, a.pilot_id, a.state, a.seq, a.error FROM attempt a JOIN job j ON j.id = a.job_id"
            " WHERE j.task_id IN :tasks",
            tasks=list(tasks),
        )
        return jobs, list(attempts)


_databases = itertools.count(1)


def new_database(cluster: Cluster) -> str:
    """The URL of an empty database in this cluster."""
    name = f"faults_{next(_databases)}"
    cluster.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    return cluster.url(name)


@contextmanager
def installed(
    directory: Path, cluster: Cluster | None = None, *options: str, extra: Mapping[str, str] = {}
) -> Iterator[Installation]:
    """A server in `directory`, on a new database of this cluster or on SQLite."""
    if cluster is not None:
        options = ("--database", new_database(cluster), *options)
    with serving(directory, *options, extra=extra) as server:
        installation = Installation(server, cluster)
        try:
            yield installation
        finally:
            installation.close()
