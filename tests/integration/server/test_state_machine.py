"""The job executor against a small model of itself: whatever is called in whatever order, the two say the same (G1 to G5).

A quick run is part of the tests. The long one, for releases, on each database (a million steps take some hours):
PILOTAGE_MACHINE_STEPS=1000000 pytest tests/integration/server/test_state_machine.py
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol.errors import PilotageError
from protocol.messages.pilots import (
    AttemptUpdate,
    Command,
    GetJobRequest,
    JobSpec,
    LogReport,
    Move,
    OutputReport,
    PilotRegistration,
    UpdateReply,
)
from protocol.messages.requests import RetrySpec
from protocol.states import PILOT_OWNED, JobState
from server import computing, job_executor, task_manager
from server.core import Core, Limits
from server.database import Database
from server.job_executor import lease_clock
from server.jobs import operations
from server.models import Attempt as AttemptRow
from server.models import File
from server.models import Job as JobRow
from tests import auditing
from tests.integration.server import model
from tests.integration.server.conftest import SharedPostgres
from tests.integration.server.model import FIRST_PAUSE, KILLS, UNACKNOWLEDGED, Attempt, Model, Task
from tests.integration.server.world import KEY, MD5, OWNER, World, reports

STEPS = int(os.environ.get("PILOTAGE_MACHINE_STEPS", "0"))
"""On each database; 0: a quick run."""
QUICK_STEPS = {"OnSqlite": 1_800, "OnPostgres": 900}
RUN_STEPS = 60
LIMITS = Limits(
    unacknowledged=UNACKNOWLEDGED,
    killed_pilots=KILLS,
    retry_seconds=FIRST_PAUSE,
    black_hole_failures=10**6,
)
PILOTS = ("p1", "p2")
ERRORS = (
    *("PAYLOAD_FAILED", "GENERAL_ERROR", "NODE_UNFIT", "KILL_SIGNAL", "STAGE_IN_MD5_MISMATCH"),
    *("WORK_DIRECTORY_TOO_LARGE", "PAYLOAD_OUT_OF_MEMORY"),
)
S = JobState
pilots = st.sampled_from(PILOTS)
which = st.integers(0, 1000)
moves = st.tuples(
    st.sets(st.sampled_from(PILOT_OWNED), max_size=3), st.sampled_from([None, None, S.COMPLETED, S.FAILED])
).map(lambda pair: [state for state in PILOT_OWNED if state in pair[0]] + ([pair[1]] if pair[1] else []))
seqs = st.sampled_from([1, 1, 1, 1, 2, 0, -1])
"""How far the number of a word is ahead of the last one."""
few = st.integers(1, 3)
several = st.sampled_from([1, 1, 2, 3])
"""Copies of a job; with two pilots, of three there is always one that nobody has."""
kinds = st.sampled_from(["right"] * 4 + ["none", "wrong"])
"""Of outputs."""


def node_of(pilot: str) -> str:
    return f"node-{pilot}"


_RANK = {state: rank for rank, state in enumerate(JobState)}


class Machine(RuleBasedStateMachine):
    """Each rule does the same to the executor and to the model, and compares what they answer."""

    fresh: Callable[[], Core]
    """Makes a core around an empty database."""
    reopened: Callable[[Core], Core]
    """The same after a restart of the server."""
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.core = self.fresh()
        self.model = Model()
        self.n_requests = 0
        self.repeat: Callable[[], None] | None = None
        """The last request once more, with a look at its answer: as a pilot does that has not seen it."""

    @property
    def world(self) -> World:
        return World(self.core)

    def attempt(self, number: int) -> Attempt:
        """An early one or a late one; half of the time one that lives."""
        every = list(self.model.attempts.values())
        living = [each for each in every if not each.ended]
        chosen = living if living and number % 2 else every
        return chosen[number // 2 % len(chosen)]

    @initialize(n_outputs=st.integers(0, 2), attempts=few, losses=st.integers(0, 3), replicate=several)
    def begin(self, n_outputs: int, attempts: int, losses: int, replicate: int) -> None:
        for pilot in PILOTS:
            registration = PilotRegistration(pilot, node_of(pilot), "1.0", queue="CPU")
            computing.register_pilot(self.core, registration)
        self.submit_task(4, n_outputs, attempts, losses, 0, replicate)
        self.claim_jobs(PILOTS[0], 3, None)
        if replicate > 1:
            self.claim_jobs(PILOTS[1], 2, None)

    # -- users --------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.tasks) < 4)
    @rule(
        n=few,
        n_outputs=st.integers(0, 2),
        attempts=few,
        losses=st.integers(0, 3),
        priority=st.sampled_from([0, 5]),
        replicate=several,
    )
    def submit(
        self, n: int, n_outputs: int, attempts: int, losses: int, priority: int, replicate: int
    ) -> None:
        self.submit_task(n, n_outputs, attempts, losses, priority, replicate)

    def submit_task(
        self, n: int, n_outputs: int, attempts: int, losses: int, priority: int, replicate: int
    ) -> None:
        name = f"t{len(self.model.tasks) + 1}"
        outputs = [f"{{job_nr}}.{index}" for index in range(n_outputs)]
        budgets = {"max_attempts": attempts, "max_losses": losses, "replicate": replicate}
        view = self.world.task(name, n_jobs=n, outputs=outputs, priority=priority, **budgets)
        self.executor_pass()
        task = Task(view.task_id, attempts, losses, n_outputs, replicate)
        rows = JobRow.select(JobRow.id).where(JobRow.task == task.id).order_by(JobRow.job_nr)
        task.jobs = [model.Job(row.id, task) for row in rows]
        assert len(task.jobs) == n
        self.model.tasks.append(task)

    @rule(number=which, whole_task=st.sampled_from([False, False, False, True]))
    def cancel(self, number: int, whole_task: bool) -> None:
        if whole_task:
            task = self.task(number)
            task_manager.cancel(self.core, str(task.id), OWNER)
            self.model.cancel(task.jobs)
            return
        job = self.model.jobs[number % len(self.model.jobs)]
        assert job_executor.cancel(self.core, [job.id], OWNER, "a test says so") == self.model.cancel([job])

    @rule(number=which, failed=st.booleans(), cancelled=st.booleans())
    def retry(self, number: int, failed: bool, cancelled: bool) -> None:
        task = self.task(number)
        wish = RetrySpec(failed=failed, cancelled=cancelled)
        words = [(S.FAILED, failed), (S.CANCELLED, cancelled)]
        states = [state for state, wanted in words if wanted] or [S.FAILED, S.CANCELLED]
        expected = self.model.retry(task, states)
        try:
            n = operations.retry(self.core, str(task.id), wish, OWNER).n_jobs
        except PilotageError as error:
            assert error.name == "WRONG_STATE"
            n = 0
        assert n == expected

    @rule(number=which, paused=st.booleans())
    def pause_or_resume(self, number: int, paused: bool) -> None:
        task = self.task(number)
        try:
            (operations.pause if paused else operations.resume)(self.core, str(task.id), OWNER)
            assert not task.ended
            task.paused = paused
        except PilotageError as error:
            assert (error.name, task.ended) == ("WRONG_STATE", True)

    def task(self, number: int) -> Task:
        return self.model.tasks[number % len(self.model.tasks)]

    # -- pilots -------------------------------------------------------------------------------------------------------------

    def request(self, pilot: str, n: int, task: Task | None = None) -> GetJobRequest:
        self.n_requests += 1
        return GetJobRequest(
            f"request-{self.n_requests}",
            pilot,
            "CPU",
            node=node_of(pilot),
            n_jobs=n,
            task_id=task and task.id,
        )

    def claimed(self, request: GetJobRequest, jobs: list[JobSpec]) -> None:
        """Look at what a request was given, and have the model follow it."""
        given = self.model.given(request.pilot_id, request.request_id)
        if given is not None:
            assert jobs == [each.spec for each in given], "the same again, with the same tokens"
            return
        claimable = self.model.claimable(request.node)
        ids = [job.job_id for job in jobs]
        assert len(ids) == len(set(ids)) == min(request.n_jobs, len(claimable))
        assert set(ids) <= claimable
        self.model.claim(request.pilot_id, request.node, request.request_id, jobs)
        for job in jobs:
            assert job.attempt_nr == len(self.model.attempts[job.attempt_id].job.attempts)

    @rule(pilot=pilots, n=few, preferred=st.none() | which)
    def claim(self, pilot: str, n: int, preferred: int | None) -> None:
        self.claim_jobs(pilot, n, preferred)

    def claim_jobs(self, pilot: str, n: int, preferred: int | None) -> None:
        task = self.task(preferred) if preferred is not None else None
        request = self.request(pilot, n, task)

        def ask() -> None:
            self.claimed(request, job_executor.claim(self.core, request))

        ask()
        self.repeat = ask

    def word(
        self, attempt: Attempt, states: list[JobState], ahead: int, error: str, outputs: str, log: bool
    ) -> tuple[AttemptUpdate, Callable[[UpdateReply | PilotageError], None]]:
        """A word, and the look at its answer."""
        if ahead == 1 and not attempt.ended:  # mostly it goes on from where it is
            states = [state for state in states if _RANK[state] > _RANK[attempt.state]]
        spec, seq, target = attempt.spec, max(1, attempt.seq + ahead), states[-1] if states else None
        error = error if target is S.FAILED else ""
        made = {"right": reports(spec), "none": None, "wrong": [OutputReport("other", 1, MD5)]}[outputs]
        said = AttemptUpdate(
            spec.attempt_id,
            spec.attempt_token,
            seq,
            [Move(state.value, 1.0) for state in states],
            error=error,
            outputs=made if target is S.COMPLETED and (made or outputs != "right") else None,
            log=LogReport(1, MD5) if log else None,
        )

        def look(answer: UpdateReply | PilotageError) -> None:
            expected = self.model.word(attempt, states, seq, error, outputs, log)
            if isinstance(answer, PilotageError) or answer.error:
                assert (answer.name if isinstance(answer, PilotageError) else answer.error) == expected
            else:
                assert (answer.state, answer.command) == (expected, Command.CONTINUE)

        return said, look

    @rule(
        number=which,
        states=moves,
        ahead=seqs,
        error=st.sampled_from(ERRORS),
        outputs=kinds,
        log=st.booleans(),
    )
    def say(
        self, number: int, states: list[JobState], ahead: int, error: str, outputs: str, log: bool
    ) -> None:
        said, look = self.word(self.attempt(number), states, ahead, error, outputs, log)

        def tell() -> None:
            try:
                look(job_executor.update(self.core, said))
            except PilotageError as refusal:
                look(refusal)

        tell()
        self.repeat = tell

    @precondition(lambda self: self.model.raced)
    @rule(
        number=which, end=st.sampled_from([S.COMPLETED, S.COMPLETED, S.FAILED]), error=st.sampled_from(ERRORS)
    )
    def one_of_several_copies_ends(self, number: int, end: JobState, error: str) -> None:
        """Of those that are raced, any job, and any of its copies."""
        job = self.model.raced[number // 2 % len(self.model.raced)]
        said, look = self.word(job.living[number % len(job.living)], [end], 1, error, "right", False)

        def tell() -> None:
            look(job_executor.update(self.core, said))

        tell()
        self.repeat = tell

    @rule(
        words=st.lists(
            st.tuples(which, moves, seqs, st.sampled_from(ERRORS), kinds, st.booleans()),
            min_size=1,
            max_size=4,
        ),
        n=st.integers(0, 2),
    )
    def say_several_and_ask(self, words: list[Any], n: int) -> None:
        # Of copies of one job only one speaks: which of two words counts first is for nobody to rely on.
        chosen = {(attempt := self.attempt(number)).job.id: (attempt, rest) for number, *rest in words}
        pairs = [self.word(attempt, *rest) for attempt, rest in chosen.values()]
        request = self.request(next(iter(chosen.values()))[0].pilot, n) if n else None

        def tell() -> None:
            replies = job_executor.update_and_next(self.core, [said for said, _ in pairs], request)
            for (_, look), answer in zip(pairs, replies.answers, strict=True):
                look(answer)
            if request is not None:
                assert replies.next is not None
                self.claimed(request, replies.next.jobs)

        tell()
        self.repeat = tell

    @rule(
        pilot=pilots, left_out=st.integers(0, 2), times=st.integers(1, 2), others=st.lists(which, max_size=2)
    )
    def beat(self, pilot: str, left_out: int, times: int, others: list[int]) -> None:
        """It names what it holds but for some, and some that it may not hold any more."""
        held = [each for each in self.model.attempts.values() if each.pilot == pilot and not each.ended]
        named = list(dict.fromkeys([*held[left_out:], *map(self.attempt, others)]))
        for _ in range(times):
            answers = self.world.beat(*(each.spec for each in named), pilot_id=pilot)
            seen = [(answer.state, answer.command is Command.STOP) for answer in answers]
            assert seen == self.model.beat(pilot, named)

    @rule(pilot=pilots)
    def die_while_payloads_run(self, pilot: str) -> None:
        for attempt in [each for each in self.model.attempts.values() if each.pilot == pilot]:
            if not attempt.ended and _RANK[attempt.state] < _RANK[S.RUNNING]:
                said, look = self.word(attempt, [S.RUNNING], 1, "", "none", False)
                look(job_executor.update(self.core, said))
        self.pass_seconds(61)
        self.claim_jobs(next(each for each in PILOTS if each != pilot), 2, None)

    # -- the network, time and the server itself ----------------------------------------------------------------------------

    @precondition(lambda self: self.repeat is not None)
    @rule()
    def an_answer_was_lost(self) -> None:
        assert self.repeat is not None
        self.repeat()

    @rule(seconds=st.sampled_from([1, 10, 61, 61, 130]))
    def time_passes(self, seconds: int) -> None:
        self.pass_seconds(seconds)

    def pass_seconds(self, seconds: int) -> None:
        n_expired = self.world.pass_seconds(seconds)
        with self.core.database.reading():
            leading = dict(JobRow.select(JobRow.id, JobRow.attempt_id).tuples())
        assert n_expired == self.model.pass_seconds(seconds, leading)

    @rule(what=st.sampled_from(["executor", "executor", "closer", "restart"]))
    def the_server_goes_on(self, what: str) -> None:
        if what == "executor":
            self.executor_pass()
        elif what == "closer":
            self.world.close_tasks()
            self.model.close()
        else:
            self.core = self.reopened(self.core)

    def executor_pass(self) -> None:
        self.world.form()
        self.model.executor_pass()

    # -- what must be true after each of them -------------------------------------------------------------------------------

    @invariant()
    def both_say_the_same(self) -> None:
        with self.core.database.reading():
            job = JobRow
            assert lease_clock() == self.model.clock
            columns = (
                job.id,
                job.state,
                job.attempt_id,
                job.attempt_nr,
                job.loss,
                job.error,
                job.payload_failures,
            )
            rows = job.select(
                *columns, job.losses, job.unacknowledged, job.kills, job.ready_after, job.copies
            )
            assert list(rows.order_by(job.id).tuples()) == [
                (
                    *(
                        each.id,
                        each.state.value,
                        each.leader.spec.attempt_id if each.leader else None,
                    ),
                    *(len(each.attempts), each.loss, each.error, each.failures),
                    *(each.losses, each.unacknowledged, each.kills, each.not_before, each.copies),
                )
                for each in self.model.jobs
            ]
            in_queue = {
                row_id for (row_id,) in job.select(job.id).where(job.ready_nr.is_null(False)).tuples()
            }
            assert in_queue == {
                each.id for each in self.model.jobs if each.may_be_claimed("", self.model.clock)
            }
            tried = AttemptRow
            columns = (
                tried.id,
                tried.job,
                tried.attempt_nr,
                tried.state,
                tried.seq,
                tried.error,
                tried.left_out,
            )
            rows = tried.select(
                *columns, tried.lease_until, tried.ended_at.is_null(False), tried.log_size.is_null(False)
            )
            assert {row[0]: row[1:] for row in rows.tuples()} == {
                each.spec.attempt_id: (
                    *(
                        each.job.id,
                        each.spec.attempt_nr,
                        each.state.value,
                        each.seq,
                        each.error,
                        each.left_out,
                    ),
                    *(each.lease_until, each.ended, each.has_log),
                )
                for each in self.model.attempts.values()
            }
            made = File.select(File.job_id, File.lfn).where(File.state == "available")
            assert sorted(made.tuples()) == sorted(
                (each.id, output.lfn)
                for each in self.model.jobs
                if each.state is S.COMPLETED and each.leader
                for output in each.leader.spec.outputs
            )
            for each in self.model.jobs:
                each.check()

    def teardown(self) -> None:
        self.world.close_tasks()
        auditing.assert_clean(self.url, storages=False)
        super().teardown()


def run(machine: type[Machine]) -> None:
    quick = STEPS == 0
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=(QUICK_STEPS[machine.__name__] if quick else STEPS) // RUN_STEPS,
            stateful_step_count=RUN_STEPS,
            deadline=None,
            database=None,
            derandomize=quick,
            phases=[Phase.generate],
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(0 if STEPS else 300)
def test_the_executor_does_on_sqlite_what_the_model_says(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "pilotage.db"

    class OnSqlite(Machine):
        @staticmethod
        def fresh() -> Core:
            for old in tmp_path.glob("pilotage.db*"):
                old.unlink()
            shutil.copy(sqlite_template, path)
            return Core(Database(f"sqlite:///{path}"), KEY, tmp_path, LIMITS)

        @staticmethod
        def reopened(core: Core) -> Core:
            core.database.close()
            return Core(Database(f"sqlite:///{path}"), KEY, tmp_path, LIMITS)

        url = f"sqlite:///{path}"

        def teardown(self) -> None:
            super().teardown()
            self.core.database.close()

    run(OnSqlite)


@pytest.mark.slow
@pytest.mark.timeout(0 if STEPS else 300)
@pytest.mark.component("postgres")
def test_the_executor_does_on_postgres_what_the_model_says(
    shared_postgres: SharedPostgres, tmp_path: Path
) -> None:
    class OnPostgres(Machine):
        url = shared_postgres.url

        @staticmethod
        def fresh() -> Core:
            return Core(shared_postgres.database(), KEY, tmp_path, LIMITS)

        @staticmethod
        def reopened(core: Core) -> Core:
            return Core(core.database, KEY, tmp_path, LIMITS)

    run(OnPostgres)
