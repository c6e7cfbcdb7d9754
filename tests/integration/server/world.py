"""What the tests of the server share: a small world of datasets, tasks and pilots around one core, and a picture of all its rows."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, TypeVar

import pytest

from protocol.errors import PilotageError
from protocol.messages.pilots import (
    AttemptUpdate,
    GetJobRequest,
    Heartbeat,
    HeldAttempt,
    JobSpec,
    LogReport,
    Move,
    OutputReport,
    PilotRegistration,
    UpdateReply,
)
from protocol.messages.requests import DatasetSpec, FileSpec, TaskSpec
from protocol.messages.views import TaskView
from protocol.resources import ResourceType
from protocol.states import JobState
from server import catalogue, closer, computing, job_executor, reaper, task_executor, task_manager
from server.access.tokens import Role
from server.core import Core
from server.database import proxy
from server.models import TABLES, Attempt, Job

T = TypeVar("T")
KEY = b"k" * 32
OWNER = "ada"
MD5 = {"md5": "0123456789abcdef" * 2}
CHATTER = frozenset({"last_seen"})
"""Columns that only say when a pilot was heard: no effect of a word that was refused."""

Picture = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Bearer:
    """The headers of each role."""

    tokens: dict[Role, str]

    def __getitem__(self, role: Role) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"}


class World:
    """Short words for what the tests do again and again."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._requests = itertools.count(1)
        self._seq: dict[int, int] = {}

    # -- what there is ------------------------------------------------------------------------------------------------------

    def dataset(self, n_files: int = 1, name: str = "in", close: bool = True, first: int = 0) -> None:
        catalogue.create(self.core, DatasetSpec(name, files=files(n_files, first), close=close), OWNER)

    def task(self, name: str = "t", n_jobs: int = 0, **spec: Any) -> TaskView:
        """A task over the dataset `in`, or with `n_jobs` jobs without input."""
        source = {"n_jobs": n_jobs} if n_jobs else {"input_dataset": spec.pop("input_dataset", "in")}
        return task_manager.register(self.core, TaskSpec(name, ["true"], **source, **spec), OWNER)

    def form(self) -> int:
        return task_executor.run_once(self.core)

    def pilot(self, pilot_id: str = "p1", queue: str = "CPU", **facts: Any) -> str:
        facts = {"resource_type": ResourceType.GPU if queue == "GPU" else ResourceType.CPU, **facts}
        computing.register_pilot(self.core, PilotRegistration(pilot_id, "node1", "1.0", queue=queue, **facts))
        return pilot_id

    def ready(self, n_jobs: int = 1, **spec: Any) -> None:
        """`n_jobs` READY jobs and a pilot p1."""

        def set_up() -> None:
            self.task(n_jobs=n_jobs, **spec)
            assert self.form() == n_jobs
            self.pilot()

        self.core.database.write(set_up)  # one transaction takes a fifth of the time

    def job_with_outputs(self) -> JobSpec:
        """A job with two outputs, claimed by p1."""

        def set_up() -> JobSpec:
            self.dataset()
            self.task(outputs=["{stem}.a", "{stem}.b"], max_attempts=3)
            self.form()
            self.pilot()
            return self.claim()[0]

        return self.core.database.write(set_up)

    # -- what pilots do -----------------------------------------------------------------------------------------------------

    def request(
        self, pilot_id: str = "p1", request_id: str = "", queue: str = "CPU", **offer: Any
    ) -> GetJobRequest:
        return GetJobRequest(
            request_id or f"request-{next(self._requests)}", pilot_id, queue, **{"node": "node1", **offer}
        )

    def claim(self, pilot_id: str = "p1", n_jobs: int = 1, **rest: Any) -> list[JobSpec]:
        return job_executor.claim(self.core, self.request(pilot_id, n_jobs=n_jobs, **rest))

    def seq(self, job: JobSpec) -> int:
        self._seq[job.attempt_id] = self._seq.get(job.attempt_id, 0) + 1
        return self._seq[job.attempt_id]

    def word(self, job: JobSpec, *states: JobState, seq: int = 0, **rest: Any) -> AttemptUpdate:
        moves = [Move(state.value, 1000.0 + index) for index, state in enumerate(states)]
        return AttemptUpdate(job.attempt_id, job.attempt_token, seq or self.seq(job), moves, **rest)

    def say(self, job: JobSpec, *states: JobState, seq: int = 0, **rest: Any) -> UpdateReply:
        return job_executor.update(self.core, self.word(job, *states, seq=seq, **rest))

    def completed(self, job: JobSpec, **rest: Any) -> AttemptUpdate:
        return self.word(job, JobState.COMPLETED, **{"outputs": reports(job), **rest})

    def complete(self, job: JobSpec) -> UpdateReply:
        return job_executor.update(self.core, self.completed(job))

    def fail(self, job: JobSpec, error: str = "PAYLOAD_FAILED", **rest: Any) -> UpdateReply:
        return self.say(job, JobState.FAILED, error=error, error_detail="a test says so", exit_code=1, **rest)

    def log(self, job: JobSpec, seq: int = 0) -> UpdateReply:
        return self.say(job, seq=seq, log=LogReport(7, MD5))

    def beat(self, *jobs: JobSpec, pilot_id: str = "p1") -> list[UpdateReply]:
        held = [HeldAttempt(job.attempt_id, job.attempt_token) for job in jobs]
        return job_executor.heartbeat(self.core, Heartbeat(pilot_id, held))

    # -- what time does -----------------------------------------------------------------------------------------------------

    def pass_seconds(self, seconds: int) -> int:
        """Let the reaper count that many seconds in one pass; how many leases ran out."""
        patient = dataclasses.replace(self.core.limits, reaper_seconds=seconds)
        return reaper.run_once(dataclasses.replace(self.core, limits=patient), seconds)

    def close_tasks(self) -> int:
        return closer.run_once(self.core)

    # -- what is to be seen -------------------------------------------------------------------------------------------------

    def job(self, job_id: int = 1) -> Any:
        return Job.get_by_id(job_id)

    def attempt(self, attempt_id: int) -> Any:
        return Attempt.get_by_id(attempt_id)

    def state(self, job_id: int = 1) -> JobState:
        return JobState(self.job(job_id).state)

    def rows(self, ignore: Iterable[str] = ()) -> Picture:
        """Every row of every table, to be compared before and after."""
        picture: Picture = {}
        for table in TABLES:
            columns = [
                f'"{field.column_name}"' for field in table._meta.sorted_fields if field.name not in ignore
            ]
            query = f'SELECT {", ".join(columns)} FROM "{table._meta.table_name}"'
            picture[table.__name__] = sorted(proxy.execute_sql(query).fetchall(), key=repr)
        return picture

    @contextmanager
    def unchanged(self, ignore: Iterable[str] = ()) -> Iterator[None]:
        """What happens in here leaves no trace in any table."""
        before = self.rows(ignore)
        yield
        after = self.rows(ignore)
        changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        assert not changed

    @contextmanager
    def refused(self, name: str, detail: str = "") -> Iterator[None]:
        """What happens in here is refused with this error of the catalogue, and changes nothing."""
        with self.unchanged(), refusing(name, detail):
            yield


@contextmanager
def refusing(name: str, detail: str = "") -> Iterator[None]:
    """What happens in here is refused with this error of the catalogue; for many of them within one `unchanged`."""
    with pytest.raises(PilotageError, match=detail or None) as caught:
        yield
    assert caught.value.name == name, caught.value


def files(n: int, first: int = 0) -> list[FileSpec]:
    return [FileSpec(f"f{i:05}.spd", 10, f"file:///data/f{i:05}.spd", MD5) for i in range(first, first + n)]


def reports(job: JobSpec) -> list[OutputReport]:
    """What a pilot says of outputs that are as they should be."""
    return [OutputReport(output.lfn, 3, MD5) for output in job.outputs]


def giving_back(work: Callable[[], T]) -> Callable[[], T]:
    """A work for a thread of its own, which closes that thread's connection at the end."""

    def run() -> T:
        try:
            return work()
        finally:
            if not proxy.is_closed():
                proxy.close()

    return run


def at_once(works: Sequence[Callable[[], T]]) -> list[Future[T]]:
    """Run all works at the same time, each in a thread of its own that gives its connection back."""
    start = threading.Barrier(len(works))
    futures: list[Future[T]] = [Future() for _ in works]

    def run(work: Callable[[], T], future: Future[T]) -> None:
        try:
            start.wait(30)
            future.set_result(giving_back(work)())
        except Exception as error:  # noqa: BLE001 - handed to the test
            future.set_exception(error)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in zip(works, futures)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread still waits"
    return futures
