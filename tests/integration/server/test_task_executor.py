"""Forming jobs: one per file or group, with the right names, a bounded stock, and nothing twice or lost in a crash."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from protocol.messages.requests import DatasetSpec, FileSpec
from protocol.resources import ResourceType
from protocol.states import JobState
from server import catalogue, task_executor, task_manager
from server.core import Limits
from server.database import proxy
from server.jobs import forming
from server.models import File, Job, JobInput, Task
from server.pace import Pace
from tests.integration.server.world import World, at_once, files, giving_back
from tests.waiting import wait_until

S = JobState


def inputs_of(task_id: int = 1) -> list[list[int]]:
    """The input files of each job of a task, job by job."""
    return [
        [row.file_id for row in JobInput.select().where(JobInput.job == job.id).order_by(JobInput.file)]
        for job in Job.select().where(Job.task == task_id).order_by(Job.job_nr)
    ]


def numbers(task_id: int = 1) -> list[int]:
    return [job.job_nr for job in Job.select().where(Job.task == task_id).order_by(Job.id)]


# -- what is formed ---------------------------------------------------------------------------------------------------------


def test_one_job_is_formed_for_each_file(world: World) -> None:
    world.dataset(7)
    world.task()
    assert world.form() == 7
    assert inputs_of() == [[n] for n in range(1, 8)]
    assert numbers() == [1, 2, 3, 4, 5, 6, 7]
    assert {job.state for job in Job.select()} == {"READY"}
    assert world.form() == 0


@pytest.mark.parametrize(
    ("n_files", "group", "sizes"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 3, [2]), (3, 1, [1, 1, 1]), (120, 50, [50, 50, 20])],
)
def test_files_are_taken_in_groups(world: World, n_files: int, group: int, sizes: list[int]) -> None:
    world.dataset(n_files)
    world.task(files_per_job=group)
    assert world.form() == len(sizes)
    formed = inputs_of()
    assert [len(ids) for ids in formed] == sizes
    assert [file_id for ids in formed for file_id in ids] == list(range(1, n_files + 1))


def test_n_jobs_are_formed_without_input(world: World) -> None:
    world.task(n_jobs=123, outputs=["o{job_nr}"])
    assert world.form() == 123
    assert numbers() == list(range(1, 124))
    assert JobInput.select().count() == 0
    assert task_manager.find("t").all_formed


def test_two_tasks_over_one_dataset_each_read_every_file(world: World) -> None:
    world.dataset(3)
    world.task("a")
    world.task("b")
    assert world.form() == 6
    assert inputs_of(1) == inputs_of(2) == [[1], [2], [3]]


def test_output_names_are_made_from_the_inputs_and_the_job(world: World) -> None:
    world.dataset(4)
    world.task(files_per_job=2, outputs=["{stem}.md5", "{lfn}.{task_id}-{job_nr}", "{{{job_nr}}}"])
    world.form()
    rows = File.select().where(File.job_id.is_null(False)).order_by(File.id)
    assert [(row.job_id, row.lfn, row.state, row.scope) for row in rows] == [
        (1, "f00000.md5", "declared", "t.out"),
        (1, "f00000.spd.1-1", "declared", "t.out"),
        (1, "{1}", "declared", "t.out"),
        (2, "f00002.md5", "declared", "t.out"),
        (2, "f00002.spd.1-2", "declared", "t.out"),
        (2, "{2}", "declared", "t.out"),
    ]


@pytest.mark.parametrize(
    ("lfns", "template", "failed"),
    [
        (["a.x", "a.y", "b.x"], "{stem}.out", [2]),
        (["a.x", "a.y", "a.z"], "{stem}.out", [2, 3]),
    ],
)
def test_a_job_whose_output_name_is_taken_fails_with_that_as_its_error(
    world: World, lfns: list[str], template: str, failed: list[int]
) -> None:
    specs = [FileSpec(lfn, 1, f"file:///{lfn}") for lfn in lfns]
    catalogue.create(world.core, DatasetSpec("in", files=specs, close=True))
    world.task(outputs=[template])
    world.form()
    world.pilot()
    for job in Job.select():
        assert (job.state, job.error) == (
            ("FAILED", "DUPLICATE_OUTPUT") if job.job_nr in failed else ("READY", None)
        )
        assert job.ready_nr is None or job.job_nr not in failed
    assert "a.out" in Job.get_by_id(failed[0]).error_detail
    for job_spec in world.claim(n_jobs=5):
        assert job_spec.job_nr not in failed
        world.complete(job_spec)
    assert task_manager.view(task_manager.find("t")).state == "PARTIAL"


def test_two_outputs_of_one_job_with_one_name_fail_it(world: World) -> None:
    specs = [FileSpec("x.1", 1, "file:///x")]
    catalogue.create(world.core, DatasetSpec("in", files=specs, close=True))
    world.task(outputs=["{stem}.1", "{lfn}"])
    world.form()
    assert (world.job().state, world.job().error) == ("FAILED", "DUPLICATE_OUTPUT")


@pytest.mark.parametrize(
    ("lfn", "template"),
    [("x" * 216 + ".spd", "{stem}.longer"), (". .x", "{stem}"), ("e.x", "{stem}\u0301")],
)
def test_an_output_name_that_is_none_fails_its_job_and_no_other(
    world: World, lfn: str, template: str
) -> None:
    """The template is right by itself; filled with this input it is not."""
    specs = [FileSpec(lfn, 1, "file:///x"), FileSpec("good.spd", 1, "file:///y")]
    catalogue.create(world.core, DatasetSpec("in", files=specs, close=True))
    world.task(outputs=[template])
    world.form()
    assert (world.job(1).state, world.job(1).error) == ("FAILED", "BAD_LFN")
    assert world.job(2).state == "READY"


def test_a_name_taken_by_another_dataset_of_the_scope_is_taken(world: World) -> None:
    catalogue.create(
        world.core, DatasetSpec("other", scope="t.out", files=[FileSpec("f00001.o", 1, "file:///z")])
    )
    world.dataset(3)
    world.task(outputs=["{stem}.o"])
    world.form()
    assert [world.job(n).state for n in (1, 2, 3)] == ["READY", "FAILED", "READY"]


# -- an open dataset --------------------------------------------------------------------------------------------------------


def test_an_open_dataset_is_worked_on_as_it_grows(world: World) -> None:
    world.dataset(2, close=False)
    world.task()
    assert world.form() == 2
    assert world.form() == 0
    assert task_manager.view(task_manager.find("t")).state == "RUNNING"
    catalogue.add_files(world.core, "in", files(3, first=2), close=False)
    assert world.form() == 3
    catalogue.add_files(world.core, "in", files(1, first=5), close=True)
    assert world.form() == 1
    assert inputs_of() == [[n] for n in range(1, 7)]
    assert task_manager.find("t").all_formed


def test_the_incomplete_last_group_of_an_open_dataset_waits(world: World) -> None:
    world.dataset(5, close=False)
    world.task(files_per_job=3)
    assert world.form() == 1
    assert world.form() == 0
    catalogue.add_files(world.core, "in", files(2, first=5), close=False)
    assert world.form() == 1
    catalogue.close(world.core, "in")
    assert world.form() == 1
    assert [len(ids) for ids in inputs_of()] == [3, 3, 1]


def test_closing_a_dataset_wakes_the_executor_for_what_waited_for_that(world: World) -> None:
    world.dataset(2, close=False)
    world.task(files_per_job=3)
    assert world.form() == 0
    world.core.to_form.clear()
    catalogue.close(world.core, "in")
    assert world.core.to_form.is_set()


def test_an_open_dataset_that_is_closed_empty_gives_a_task_without_jobs(world: World) -> None:
    world.dataset(0, close=False)
    world.task(outputs=["{stem}.o"])
    assert world.form() == 0
    catalogue.close(world.core, "in")
    assert world.form() == 0
    assert world.close_tasks() == 1
    assert task_manager.view(task_manager.find("t")).state == "COMPLETED"


def test_f23_the_outputs_of_a_task_are_read_when_it_has_ended_and_none_is_passed_over(world: World) -> None:
    """They become available in any order: here the last one first."""
    world.dataset(3)
    world.task("first", outputs=["{stem}.1"])
    world.task("second", input_dataset="first.out", outputs=["{stem}.2"])
    world.form()
    world.pilot()
    for job in reversed(world.claim(n_jobs=3)):
        world.complete(job)
        world.form()
    assert world.close_tasks() == 1
    assert world.form() == 3
    lfns = {row.lfn for row in File.select().join(JobInput).where(JobInput.task == 2)}
    assert lfns == {"f00000.1", "f00001.1", "f00002.1"}


def test_files_added_by_many_at_once_are_each_read_once(world: World) -> None:
    """On Postgres transactions do not end in the order in which they took their numbers."""
    world.dataset(0, close=False)
    world.task()
    works: list[Callable[[], Any]] = [
        lambda first=first: catalogue.add_files(world.core, "in", files(4, first), close=False)
        for first in range(0, 40, 4)
    ]
    works += [lambda: [world.form() for _ in range(5)]]
    for future in at_once(works):
        future.result()
    catalogue.close(world.core, "in")
    world.form()
    assert sorted(file_id for ids in inputs_of() for file_id in ids) == sorted(
        row.id for row in File.select().where(File.dataset == 1)
    )
    assert len(inputs_of()) == 40


# -- a bounded stock --------------------------------------------------------------------------------------------------------


class TestASmallStock:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(ready_stock=10)

    def test_of_a_hundred_files_never_more_than_ten_jobs_are_ready(self, world: World) -> None:
        world.dataset(100)
        world.task()
        world.pilot()
        done, most = 0, 0
        while done < 100:
            world.form()
            ready = Job.select().where(Job.state == "READY").count()
            most = max(most, ready)
            assert 0 < ready <= 10
            done += len(world.claim(n_jobs=7))
        assert most == 10
        assert world.form() == 0
        assert inputs_of() == [[n] for n in range(1, 101)]

    def test_tasks_of_equal_needs_and_priority_share_a_stock_and_a_higher_priority_has_its_own(
        self, world: World
    ) -> None:
        world.task("first", n_jobs=6)
        world.task("second", n_jobs=20)
        world.task("high", n_jobs=20, priority=1)
        world.task("gpu", n_jobs=20, resource_type=ResourceType.GPU)
        assert world.form() == 30
        counts = [Job.select().where(Job.task == task_id).count() for task_id in (1, 2, 3, 4)]
        assert counts == [6, 4, 10, 10]

    def test_a_task_that_nobody_serves_keeps_no_other_from_being_formed(self, world: World) -> None:
        world.task("stuck", n_jobs=1000, priority=5, cores=64)
        world.task("urgent", n_jobs=3, priority=1000)
        world.task("plain", n_jobs=3)
        world.form()
        assert [Job.select().where(Job.task == task_id).count() for task_id in (2, 3)] == [3, 3]

    def test_jobs_that_come_back_count_for_the_stock(self, world: World) -> None:
        world.task(n_jobs=30, max_attempts=5)
        world.form()
        world.pilot()
        for job in world.claim(n_jobs=10):
            world.fail(job)
        assert world.form() == 0


# -- crashes ----------------------------------------------------------------------------------------------------------------


class Died(Exception):
    """The server died here."""


@pytest.mark.parametrize("step", ["before the second chunk", "in the second chunk", "at its end"])
def test_f01_a_crash_between_chunks_forms_no_job_twice_and_loses_no_file(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Three rows per job: five jobs in a transaction.
    monkeypatch.setattr(task_executor, "Pace", lambda seconds: Pace(15, 15, 1000))
    world.dataset(13)
    world.task(outputs=["{stem}.o"])
    target: Any = {
        "before the second chunk": (task_executor, "_form_some"),
        "in the second chunk": (forming, "form"),
        "at its end": (Task, "update"),
    }[step]
    real, calls = getattr(*target), []

    def second_time(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise Died(step)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(*target, second_time)
        world.form()
    assert Job.select().count() == 5
    world.form()
    assert inputs_of() == [[n] for n in range(1, 14)]
    assert numbers() == list(range(1, 14))
    assert File.select().where(File.state == "declared").count() == 13


def test_a_task_that_is_cancelled_while_its_jobs_are_formed_is_left_with_none_alive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation comes when the jobs are made and not yet to be seen: it has to wait, or it passes them by."""
    world.task(n_jobs=20)
    real = forming.form
    cancel = giving_back(lambda: task_manager.cancel(world.core, "t", "ada"))
    cancelling = threading.Thread(target=cancel)

    def ended_or_waits() -> bool:
        if world.core.database.is_sqlite:
            return True  # one writer: it waits
        # Within a transaction it would show what it showed before.
        proxy.execute_sql("SELECT pg_stat_clear_snapshot()")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return not cancelling.is_alive() or proxy.execute_sql(waiting).fetchone()[0] > 0

    def form(*args: Any) -> int:
        ready = real(*args)
        cancelling.start()
        wait_until(ended_or_waits, what="the cancellation to end or to wait")
        return ready

    with monkeypatch.context() as patch:
        patch.setattr(forming, "form", form)
        world.form()
    cancelling.join(20)
    assert world.form() == 0
    assert {job.state for job in Job.select()} == {"CANCELLED"}
