"""The audit: clean after lives of all kinds, names each kind of damage and no other, and changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from client.commands import root
from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.messages.pilots import JobSpec, OutputReport
from protocol.messages.requests import DatasetSpec, FileSpec, RetrySpec
from protocol.states import JobState
from server import catalogue, closer, job_executor, task_executor, task_manager
from server.audit import Options, audit
from server.auditing import database_checks, storage_checks
from server.auditing.findings import CHECKS, Finding
from server.auditing.snapshot import Snapshot
from server.core import Core
from server.database import proxy
from server.jobs import operations
from server.models import (
    ArchivedJob,
    Attempt,
    Counter,
    Dataset,
    File,
    Job,
    JobEvent,
    JobInput,
    Pilot,
    Replica,
    Storage,
    Task,
)
from server.upkeep import archive
from tests.auditing import assert_clean, look
from tests.integration.server.world import MD5, World

CONTENT = b"what a payload made"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing happens between the two looks at a disk, and no settings of whoever runs the tests count."""
    monkeypatch.setattr(storage_checks, "sleep", lambda seconds: None)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def lives(world: World, storage: Path) -> World:
    """A task of four jobs over a dataset: one completed, one completed at its second attempt, one failed, one is running."""
    world.dataset(4)
    world.task(outputs=["{stem}.out"], max_attempts=2)
    world.form()
    world.pilot()
    first, second, third, fourth = world.claim(n_jobs=4)
    deliver(world, first)
    world.fail(second)
    world.fail(third)
    again = {job.job_id: job for job in world.claim(n_jobs=2)}
    deliver(world, again[second.job_id])
    world.fail(again[third.job_id])
    world.say(fourth, JobState.OBTAINED, JobState.STAGE_IN, JobState.RUNNING)
    return world


def deliver(world: World, job: JobSpec) -> None:
    """What a pilot does at the end: its outputs and its log are on the storage, then the server is told."""
    put(job.log_url)
    reports = []
    for output in job.outputs:
        put(output.url)
        reports.append(OutputReport(output.lfn, len(CONTENT), {"md5": hashlib.md5(CONTENT).hexdigest()}))
    world.say(job, *STEPS, outputs=reports)


STEPS = (
    JobState.OBTAINED,
    JobState.PRE_PROCESSING,
    JobState.STAGE_IN,
    JobState.RUNNING,
    JobState.FINISHED,
    JobState.POST_PROCESSING,
    JobState.STAGE_OUT,
    JobState.COMPLETED,
)


def put(url: str, content: bytes = CONTENT) -> Path:
    path = Path(local_path(url))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def findings(url: str, **options: Any) -> list[Finding]:
    return look(url, **options).findings


def names(url: str, **options: Any) -> list[str]:
    return sorted({found.check for found in findings(url, **options) if not found.is_note})


def one(url: str, check: str, **options: Any) -> Finding:
    """The only finding there is, which is of this check."""
    found = [each for each in findings(url, **options) if not each.is_note]
    assert [each.check for each in found] == [check], [(each.check, each.sentence) for each in found]
    return found[0]


# -- clean ------------------------------------------------------------------------------------------------------------------


def test_a_new_installation_is_clean(core: Core, url: str) -> None:
    assert_clean(url)


def test_an_installation_in_full_life_is_clean(lives: World, url: str) -> None:
    report = assert_clean(url)
    assert report.tallies["job-state"].looked_at == 4
    assert report.tallies["history"].looked_at == 6
    assert report.tallies["wrong-checksum"].looked_at == 2
    assert report.tallies["orphan"].looked_at == 4
    assert set(report.tallies) == set(CHECKS), "every check is made"


def test_every_end_of_a_job_is_clean(lives: World, url: str) -> None:
    running = lives.job(4)
    lives.close_tasks()
    assert_clean(url)
    job_executor.cancel(lives.core, [running.id], "ada", "a test says so")
    lives.close_tasks()
    assert Task.get_by_id(1).ended is not None
    assert_clean(url)


def test_pauses_lost_leases_and_late_words_are_clean(lives: World, url: str) -> None:
    lives.task("more", n_jobs=3)
    lives.form()
    lives.pilot("p2")
    handed, erring, silent = lives.claim("p2", n_jobs=3)
    lives.fail(erring, "STAGE_IN_FAILED")
    lives.pass_seconds(100_000)
    assert_clean(url)
    lives.say(silent, JobState.RUNNING)
    assert_clean(url)
    lives.claim("p2", n_jobs=3)
    assert_clean(url)


def test_a_task_that_was_cancelled_before_all_jobs_were_formed_is_clean(world: World, url: str) -> None:
    world.dataset(3, close=False)
    world.task(outputs=["{stem}.out"])
    world.form()
    task_manager.cancel(world.core, "t", "ada")
    world.close_tasks()
    assert_clean(url)


def test_jobs_that_fail_as_they_are_formed_are_clean(world: World, url: str) -> None:
    world.dataset(2)
    world.task(outputs=["{job_nr}.out"])
    taken = [FileSpec("1.out", 10, "file:///data/1.out", MD5)]
    catalogue.create(world.core, DatasetSpec("others", scope="t.out", files=taken))
    world.form()
    assert [world.state(1), world.state(2)] == [JobState.FAILED, JobState.READY]
    assert_clean(url)


def test_pauses_of_a_task_and_further_tries_are_clean(lives: World, url: str) -> None:
    operations.pause(lives.core, "t", "ada")
    assert_clean(url)
    lives.pass_seconds(100_000)
    operations.retry(lives.core, "t", RetrySpec(), "ada")
    assert_clean(url)
    operations.resume(lives.core, "t", "ada")
    assert_clean(url)
    for job in lives.claim(n_jobs=2):
        deliver(lives, job)
    lives.close_tasks()
    assert_clean(url)
    assert Task.get_by_id(1).n_completed == 4


def test_an_ended_task_that_is_tried_again_is_clean(lives: World, url: str) -> None:
    job_executor.cancel(lives.core, [4], "ada", "a test says so")
    lives.close_tasks()
    operations.retry(lives.core, "t", RetrySpec(), "ada")
    assert_clean(url)
    for job in lives.claim(n_jobs=2):
        deliver(lives, job)
    assert_clean(url)
    lives.close_tasks()
    assert_clean(url)


# -- damage in the database -------------------------------------------------------------------------------------------------


def plant(lives: World, work: Callable[[], Any]) -> None:
    lives.core.database.write(work)


def test_a_job_that_is_gone_is_named(lives: World, url: str) -> None:
    def lose() -> None:
        JobInput.delete().where(JobInput.job == 4).execute()
        JobEvent.delete().where(JobEvent.job == 4).execute()
        Attempt.delete().where(Attempt.job == 4).execute()
        File.delete().where(File.job_id == 4).execute()
        Job.delete().where(Job.id == 4).execute()

    plant(lives, lose)
    found = {each.check: each for each in findings(url)}
    assert set(found) == {"job-numbers", "job-inputs"}
    assert found["job-numbers"].subject == {"task": 1}
    assert found["job-inputs"].subject == {"task": 1, "file": "f00003.spd"}


def test_a_number_that_no_job_has_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(job_nr=9).where(Job.id == 2).execute())
    assert one(url, "job-numbers").subject == {"task": 1}


def test_an_input_file_without_a_job_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: JobInput.delete().where(JobInput.job == 2).execute())
    assert one(url, "job-inputs").subject == {"task": 1, "file": "f00001.spd"}


def test_a_word_that_is_no_state_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(state="BROKEN").where(Job.id == 3).execute())
    assert "job-state" in names(url)
    assert [each.subject["job"] for each in findings(url) if "BROKEN" in each.sentence][0] == 3


def test_an_end_without_a_time_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(ended_at=None).where(Job.id == 1).execute())
    assert one(url, "job-state").subject == {"job": 1, "task": 1}


@pytest.mark.parametrize(("job", "error"), [(1, "PAYLOAD_FAILED"), (3, None)])
def test_a_final_job_whose_error_does_not_fit_is_named(
    lives: World, url: str, job: int, error: str | None
) -> None:
    plant(lives, lambda: Job.update(error=error).where(Job.id == job).execute())
    assert one(url, "verdict").subject == {"job": job, "task": 1}


def test_a_final_job_that_may_still_be_claimed_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(ready_nr=7).where(Job.id == 1).execute())
    assert one(url, "queued").subject == {"job": 1, "task": 1}


def test_a_ready_job_that_nobody_can_claim_is_named(lives: World, url: str) -> None:
    lives.task("more", n_jobs=1)
    lives.form()
    assert_clean(url)
    plant(lives, lambda: Job.update(ready_nr=None).where(Job.id == 5).execute())
    assert one(url, "queued").subject == {"job": 5, "task": 2}


def test_a_job_without_owner_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(attempt_id=None).where(Job.id == 4).execute())
    found = {each.check: each.subject for each in findings(url)}
    assert found["held"] == {"job": 4, "task": 1}
    assert set(found) == {"held", "one-attempt", "attempt-numbers"}


def test_a_job_and_its_attempt_in_different_states_are_named(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(state=JobState.STAGE_OUT.value).where(Job.id == 4).execute())
    assert one(url, "held").subject == {"job": 4, "task": 1, "attempt": 4}


def test_an_open_job_of_an_ended_task_is_named(lives: World, url: str) -> None:
    def end() -> None:
        Task.update(ended=1.0).execute()
        Dataset.update(state="closed").where(Dataset.task_id == 1).execute()
        File.update(state="available").where(File.id < 0).execute()

    plant(lives, end)
    assert names(url) == ["closed-dataset", "ended-task"]


def test_two_live_attempts_are_named(lives: World, url: str) -> None:
    plant(
        lives,
        lambda: (
            Attempt.update(ended_at=None, state=JobState.RUNNING.value, running_at=1.0)
            .where(Attempt.id == 2)
            .execute()
        ),
    )
    assert one(url, "one-attempt").subject == {"attempt": 2, "job": 2}


def test_a_live_attempt_of_a_job_that_ended_is_named(lives: World, url: str) -> None:
    last = lives.job(3).attempt_id
    plant(
        lives,
        lambda: (
            Attempt.update(ended_at=None, state=JobState.OBTAINED.value, obtained_at=1.0)
            .where(Attempt.id == last)
            .execute()
        ),
    )
    assert one(url, "one-attempt").subject == {"attempt": last, "job": 3}


def test_a_gap_in_the_attempts_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Attempt.update(attempt_nr=7).where(Attempt.id == 2).execute())
    assert one(url, "attempt-numbers").subject == {"job": 2, "task": 1}


def test_a_twin_attempt_is_named(lives: World, url: str) -> None:
    with without_index("attempt", "attempt_job_id_attempt_nr"):
        plant(lives, lambda: Attempt.update(attempt_nr=2).where(Attempt.id == 2).execute())
        assert one(url, "attempt-numbers").subject == {"job": 2, "task": 1}
        plant(lives, lambda: Attempt.update(attempt_nr=1).where(Attempt.id == 2).execute())


@contextlib.contextmanager
def without_index(table: str, name: str) -> Iterator[None]:
    """The database itself keeps this damage out; it comes back at the end."""
    query = (
        f"SELECT sql FROM sqlite_master WHERE name = '{name}'"
        if hasattr(proxy.connection(), "set_trace_callback")
        else f"SELECT indexdef FROM pg_indexes WHERE indexname = '{name}'"
    )
    ((definition,),) = proxy.execute_sql(query).fetchall()
    proxy.execute_sql(f'DROP INDEX "{name}"')
    yield
    proxy.execute_sql(definition)


def test_two_completed_attempts_are_named(lives: World, url: str) -> None:
    plant(lives, lambda: Attempt.update(state=JobState.COMPLETED.value).where(Attempt.id == 2).execute())
    assert one(url, "completed-attempt").subject["job"] == 2


def test_a_completed_attempt_of_a_job_that_failed_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Attempt.update(state=JobState.COMPLETED.value).where(Attempt.id == 3).execute())
    assert one(url, "completed-attempt").subject["job"] == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage_out_at": 5.0},
        {"running_at": None},
        {"ended_at": 5.0, "state": JobState.STAGE_OUT.value, "stage_out_at": 4.0},
    ],
)
def test_a_history_that_goes_back_or_on_after_its_end_is_named(
    lives: World, url: str, wrong: dict[str, Any]
) -> None:
    plant(lives, lambda: Attempt.update(**wrong).where(Attempt.id == 4).execute())
    found = {each.check: each.subject for each in findings(url)}
    assert found["history"] == {"attempt": 4, "job": 4}


def test_a_lease_without_a_pilot_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Attempt.update(pilot_id="nobody").where(Attempt.id == 4).execute())
    assert one(url, "lease").subject == {"attempt": 4, "job": 4, "pilot": "nobody"}


def test_a_lease_of_a_pilot_that_ended_is_a_note_until_it_has_run_out_and_nobody_cared(
    lives: World, url: str
) -> None:
    plant(lives, lambda: Pilot.update(ended=1.0).execute())
    (note,) = findings(url)
    assert (note.check, note.is_note, note.subject["attempt"]) == ("ended-pilot", True, 4)
    plant(
        lives,
        lambda: Counter.update(value=Counter.value + 10**6).where(Counter.name == "lease_clock").execute(),
    )
    assert one(url, "lease").subject == {"attempt": 4, "job": 4, "pilot": "p1"}


def test_a_completed_job_without_all_of_its_outputs_is_named(lives: World, url: str) -> None:
    def lose() -> None:
        Replica.delete().where(Replica.file == output_of(1).id).execute()
        File.delete().where(File.job_id == 1).execute()

    path = Path(local_path(Replica.get(Replica.file == output_of(1).id).url))
    plant(lives, lose)
    path.unlink()
    assert one(url, "outputs").subject == {"job": 1, "task": 1}


def output_of(job: int) -> Any:
    return File.get(File.job_id == job)


def test_an_output_of_a_job_that_failed_is_named(lives: World, url: str, storage: Path) -> None:
    def publish() -> None:
        file = output_of(3)
        File.update(state="available", size=len(CONTENT)).where(File.id == file.id).execute()
        place = f"file://{storage}/t.out/{file.lfn}.{lives.job(3).attempt_id}"
        Replica.create(file=file.id, storage="LOCAL", url=place)
        put(place)

    plant(lives, publish)
    assert one(url, "published").subject == {"file": "f00002.out", "job": 3}


def test_an_output_that_lies_at_two_places_is_named(lives: World, url: str) -> None:
    replica = Replica.get(Replica.file == output_of(1).id)
    plant(lives, lambda: Replica.create(file=replica.file_id, storage="LOCAL", url=replica.url))
    assert one(url, "replicas").subject == {"file": "f00000.out", "job": 1}


def test_an_input_that_lies_nowhere_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Replica.delete().where(Replica.file == 1).execute())
    assert one(url, "replicas").subject == {"file": "f00000.spd"}


def test_an_output_under_the_name_of_another_attempt_is_named(lives: World, url: str) -> None:
    replica = Replica.get(Replica.file == output_of(2).id)
    other = replica.url.rpartition(".")[0] + ".2"
    os.rename(Path(local_path(replica.url)), Path(local_path(other)))
    plant(lives, lambda: Replica.update(url=other).where(Replica.id == replica.id).execute())
    assert one(url, "attempt-in-name").subject == {"file": "f00001.out", "job": 2, "attempt": 5}


def test_an_output_dataset_that_is_closed_too_early_is_named(lives: World, url: str) -> None:
    plant(lives, lambda: Dataset.update(state="closed").where(Dataset.task_id == 1).execute())
    found = [(each.check, each.subject) for each in findings(url)]
    assert ("output-dataset", {"task": 1, "dataset": "t.out"}) in found
    assert {check for check, _ in found} == {"output-dataset", "closed-dataset"}


def test_a_declared_file_in_a_closed_dataset_is_named(lives: World, url: str) -> None:
    dataset = Dataset.get(Dataset.name == "in")
    plant(
        lives,
        lambda: File.create(dataset=dataset.id, scope="in", lfn="promised", state="declared", job_id=1),
    )
    found = {each.check: each.subject for each in findings(url)}
    assert found["closed-dataset"] == {"dataset": "in", "file": "promised", "job": 1}


def test_numbers_of_a_task_that_are_not_those_of_its_jobs_are_named(lives: World, url: str) -> None:
    plant(lives, lambda: Task.update(n_failed=Task.n_failed + 5).execute())
    assert one(url, "counters").subject == {"task": 1}


def test_numbers_of_a_dataset_that_are_not_those_of_its_files_are_named(lives: World, url: str) -> None:
    plant(lives, lambda: File.update(size=File.size + 1).where(File.id == 1).execute())
    assert one(url, "dataset-size").subject == {"dataset": "in"}


# -- damage on the disk -----------------------------------------------------------------------------------------------------


def place_of(job: int) -> Path:
    return Path(local_path(Replica.get(Replica.file == output_of(job).id).url))


def test_a_lost_file_is_named(lives: World, url: str) -> None:
    place_of(1).unlink()
    found = one(url, "lost-file")
    assert found.subject == {"file": "f00000.out", "job": 1, "storage": "LOCAL", "path": str(place_of(1))}


def test_a_directory_in_the_place_of_a_file_is_named(lives: World, url: str) -> None:
    place_of(1).unlink()
    place_of(1).mkdir()
    assert "no plain file" in one(url, "lost-file").sentence


def test_a_file_of_another_size_is_named(lives: World, url: str) -> None:
    place_of(1).write_bytes(CONTENT[:-1])
    assert one(url, "wrong-size").subject["file"] == "f00000.out"


def test_a_file_with_other_bytes_is_named(lives: World, url: str) -> None:
    place_of(1).write_bytes(CONTENT[::-1])
    assert "md5" in one(url, "wrong-checksum").sentence


def test_how_many_files_are_read_is_chosen(lives: World, url: str) -> None:
    def read(checksums: int | None) -> int:
        options = Options(storages=storage_checks.Options(checksums, all_if_few=False, pause_seconds=0.0))
        return audit(url, options).tallies["wrong-checksum"].looked_at

    assert [read(0), read(1), read(None)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("few", "small", "n_read"), [(2, 2 * len(CONTENT), 2), (1, 2**30, 1), (2, 2 * len(CONTENT) - 1, 1)]
)
@pytest.mark.parametrize("task", ["", "t"])
def test_where_it_is_cheap_all_files_are_read(
    lives: World, url: str, monkeypatch: pytest.MonkeyPatch, few: int, small: int, n_read: int, task: str
) -> None:
    monkeypatch.setattr(storage_checks, "WHOLE_FILES", few)
    monkeypatch.setattr(storage_checks, "WHOLE_BYTES", small)
    options = Options(task=task, storages=storage_checks.Options(1, pause_seconds=0.0))
    report = audit(url, options)
    assert (report.n_compared, report.n_outputs) == (n_read, 2)


def test_bytes_that_no_program_here_can_compare_do_not_count_as_compared(lives: World, url: str) -> None:
    plant(lives, lambda: File.update(checksums='{"sha999": "00"}').where(File.job_id == 1).execute())
    report = audit(url, Options(storages=storage_checks.Options(None, pause_seconds=0.0)))
    assert (report.n_findings, report.n_compared, report.n_outputs) == (0, 1, 2)
    code, output = command("--database", url, "--checksums", "all")
    assert code == 0
    assert output.endswith("All is well. The bytes of 1 of 2 outputs were compared.\n")


def test_a_file_without_a_row_is_named(lives: World, url: str, storage: Path) -> None:
    orphan = put(f"file://{storage}/t.out/nobody-knows.4711")
    assert one(url, "orphan").subject == {"attempt": 4711, "path": str(orphan), "storage": "LOCAL"}


@pytest.mark.parametrize(
    "name", ["stray", "else/where/deep/below", "log/task-1/job-1.4711.tar.gz", ".hidden"]
)
def test_a_file_that_no_attempt_would_write_is_named(
    lives: World, url: str, storage: Path, name: str
) -> None:
    orphan = put(f"file://{storage}/{name}")
    assert one(url, "orphan").subject["path"] == str(orphan)


def test_a_second_file_of_an_attempt_that_completed_is_named(lives: World, url: str, storage: Path) -> None:
    put(f"file://{storage}/t.out/undeclared.1")
    assert "attempt 1, which wrote it, is COMPLETED" in one(url, "orphan").sentence


def test_a_file_of_an_attempt_that_lives_is_none(lives: World, url: str, storage: Path) -> None:
    put(f"file://{storage}/t.out/f00003.out.4")
    put(f"file://{storage}/t.out/.f00003.out.4.0123456789ab.part")
    put(f"file://{storage}/log/task-1/job-4.4.tar.gz")
    assert_clean(url)
    assert not findings(url)


@pytest.mark.parametrize(("folder", "after"), [("t.out", "garbage"), ("elsewhere", "orphan")])
def test_f15_a_file_of_an_attempt_that_failed_is_garbage_and_after_the_grace_time_an_orphan_where_none_is_swept(
    lives: World, url: str, storage: Path, folder: str, after: str
) -> None:
    path = put(f"file://{storage}/{folder}/f00001.out.2")
    (note,) = findings(url)
    assert (note.check, note.is_note, note.subject["path"]) == ("garbage", True, str(path))
    long_ago = time.time() - 1000
    os.utime(path, (long_ago, long_ago))
    plant(lives, lambda: Attempt.update(ended_at=long_ago).where(Attempt.id == 2).execute())
    (found,) = findings(url, grace_seconds=900)
    assert (found.check, found.subject["attempt"]) == (after, 2)


def test_a_copy_that_was_never_finished_is_garbage_and_after_the_grace_time_an_orphan(
    lives: World, url: str, storage: Path
) -> None:
    path = put(f"file://{storage}/t.out/.f00009.out.99.0123456789ab.part")
    assert [each.check for each in findings(url)] == ["garbage"]
    os.utime(path, (1.0, 1.0))
    one(url, "orphan")


def test_a_storage_that_is_gone_is_one_finding_and_not_one_for_each_file(
    lives: World, url: str, storage: Path
) -> None:
    storage.rename(storage.with_name("elsewhere"))
    assert one(url, "lost-storage").subject == {"storage": "LOCAL", "path": str(storage)}


def test_a_storage_elsewhere_is_not_looked_at_and_said(lives: World, url: str) -> None:
    plant(lives, lambda: Storage.create(name="FAR", url="root://far.example//outputs"))
    plant(lives, lambda: Storage.create(name="RELATIVE", url="file:outputs"))
    report = assert_clean(url)
    assert [reason.split(":")[0] for reason in report.not_looked_at] == ["storage FAR", "storage RELATIVE"]


def test_a_relative_storage_lies_below_the_data_root(lives: World, url: str, storage: Path) -> None:
    def move() -> None:
        Storage.update(url="file:storage").execute()
        for replica in list(Replica.select().where(Replica.storage == "LOCAL")):
            relative = replica.url.replace(f"file://{storage}", "file:storage")
            Replica.update(url=relative).where(Replica.id == replica.id).execute()

    plant(lives, move)
    report = assert_clean(url, data_root=str(storage.parent))
    assert report.tallies["lost-file"].looked_at == 2
    place = storage / "t.out" / "f00000.out.1"
    place.unlink()
    assert one(url, "lost-file", data_root=str(storage.parent)).subject["path"] == str(place)


def test_a_storage_within_another_one_is_looked_at_once(lives: World, url: str, storage: Path) -> None:
    plant(lives, lambda: Storage.create(name="OUTER", url=f"file://{storage.parent}/big"))
    shutil.copytree(storage, storage.parent / "big" / "inner")
    shutil.rmtree(storage)

    def move() -> None:
        Storage.update(url=f"file://{storage.parent}/big/inner").where(Storage.name == "LOCAL").execute()
        for replica in list(Replica.select().where(Replica.storage == "LOCAL")):
            moved = replica.url.replace(str(storage), f"{storage.parent}/big/inner")
            Replica.update(url=moved).where(Replica.id == replica.id).execute()

    plant(lives, move)
    assert assert_clean(url).tallies["orphan"].looked_at == 4


def test_of_one_task_only_its_own_rows_and_files_are_looked_at(lives: World, url: str, storage: Path) -> None:
    lives.task("more", n_jobs=2, outputs=["{job_nr}.out"])
    lives.form()
    put(f"file://{storage}/t.out/nobody-knows.4711")
    place_of(1).unlink()
    plant(lives, lambda: Job.update(ready_nr=7).where(Job.id == 1).execute())
    report = assert_clean(url, task="more")
    assert report.tallies["job-state"].looked_at == 2
    assert names(url, task="t") == ["lost-file", "orphan", "queued"]
    assert names(url, task="1") == ["lost-file", "orphan", "queued"]


def test_with_the_database_alone_no_file_is_looked_at(lives: World, url: str) -> None:
    place_of(1).unlink()
    report = assert_clean(url, storages=False)
    assert "lost-file" not in report.tallies


# -- a second look ----------------------------------------------------------------------------------------------------------


def test_what_was_only_on_its_way_is_no_finding(
    lives: World, url: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first look a file is hidden and another is there too early; at the second both are as they should be."""
    hidden = place_of(1).rename(storage.parent / "hidden")
    early = put(f"file://{storage}/t.out/f00009.out.99")

    def settle(seconds: float) -> None:
        hidden.rename(place_of(1))
        early.unlink()

    monkeypatch.setattr(storage_checks, "sleep", settle)
    assert_clean(url)


def test_the_second_look_sees_what_the_database_has_since(
    lives: World, url: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"file://{storage}/t.out/f00009.out.7")

    def settle(seconds: float) -> None:
        lives.task("more", n_jobs=1)
        lives.form()
        assert [job.attempt_id for job in lives.claim()] == [7]

    monkeypatch.setattr(storage_checks, "sleep", settle)
    assert_clean(url)


def test_a_second_look_is_taken_at_once_when_there_is_much_to_look_at(
    lives: World, url: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_checks, "SUSPECTS", 5)
    monkeypatch.setattr(storage_checks, "BATCH", 3)
    for number in range(20):
        put(f"file://{storage}/t.out/orphan.{1000 + number}")
    report = look(url)
    assert report.tallies["orphan"].n_findings == 20
    assert report.tallies["orphan"].looked_at == 24


def test_an_installation_at_work_is_clean_at_every_moment(
    world: World, url: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_checks, "SCOPES", small_chunks(3))
    world.dataset(40)
    world.task(outputs=["{stem}.out"])
    world.pilot()
    over = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            task_executor.run_once(world.core)
            while jobs := world.claim(n_jobs=3):
                for job in jobs:
                    deliver(world, job)
            closer.run_once(world.core)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            if not world.core.database.is_sqlite:
                proxy.close()
            over.set()

    worker = threading.Thread(target=work)
    worker.start()
    rounds = 0
    while not over.is_set() or not rounds:
        assert_clean(url)
        rounds += 1
    worker.join()
    assert not errors
    assert_clean(url)
    assert Job.select().where(Job.state == JobState.COMPLETED.value).count() == 40


def small_chunks(size: int) -> dict[str, database_checks.Scope]:
    return {
        name: database_checks.Scope(scope.letter, size, scope.of_task)
        for name, scope in database_checks.SCOPES.items()
    }


def test_in_small_parts_the_same_is_found(lives: World, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(lives, lambda: Job.update(ready_nr=7).where(Job.id == 1).execute())
    plant(lives, lambda: Attempt.update(pilot_id="nobody").where(Attempt.id == 4).execute())
    place_of(2).unlink()
    whole = look(url)
    monkeypatch.setattr(database_checks, "SCOPES", small_chunks(1))
    monkeypatch.setattr("server.auditing.snapshot.OLD_SECONDS", 0.0)
    parts = look(url)
    assert parts.findings == whole.findings
    assert {name: tally.looked_at for name, tally in parts.tallies.items()} == {
        name: tally.looked_at for name, tally in whole.tallies.items()
    }


def test_findings_beyond_the_limit_are_counted_and_not_kept(lives: World, url: str) -> None:
    plant(lives, lambda: Job.update(ready_nr=Job.id).execute())
    tally = audit(url, Options(storages=None, limit=2)).tallies["queued"]
    assert (tally.n_findings, len(tally.shown)) == (4, 2)


# -- the archive ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def archived(lives: World, storage: Path) -> World:
    """The same task, ended, with all of its jobs in the archive."""
    put(f"file://{storage}/t.out/f00001.out.2")
    job_executor.cancel(lives.core, [4], "ada", "a test says so")
    lives.close_tasks()
    at_once = dataclasses.replace(lives.core.limits, archive_after_seconds=0)
    archive.run_once(dataclasses.replace(lives.core, limits=at_once), seconds=30.0)
    assert (Job.select().count(), ArchivedJob.select().count()) == (0, 4)
    return lives


def test_an_archived_task_is_clean(archived: World, url: str) -> None:
    report = assert_clean(url)
    assert report.tallies["garbage"].n_findings == 1
    assert report.tallies["lost-file"].looked_at == 2


def test_an_archived_task_that_is_tried_again_is_clean(archived: World, url: str) -> None:
    operations.retry(archived.core, "t", RetrySpec(), "ada")
    assert_clean(url)
    for job in archived.claim(n_jobs=2):
        deliver(archived, job)
    assert_clean(url)
    archived.close_tasks()
    assert_clean(url)


def test_damage_in_the_archive_is_named(archived: World, url: str) -> None:
    place_of(1).unlink()
    plant(archived, lambda: ArchivedJob.delete().where(ArchivedJob.id == 2).execute())
    assert names(url) == ["counters", "job-numbers", "lost-file", "orphan", "published"]


# -- nothing is changed -----------------------------------------------------------------------------------------------------


def test_an_audit_changes_no_row(lives: World, url: str) -> None:
    place_of(1).unlink()
    plant(lives, lambda: Job.update(ready_nr=7).where(Job.id == 1).execute())
    with lives.unchanged():
        look(url)


def test_a_snapshot_cannot_write(lives: World, url: str) -> None:
    with Snapshot(url) as snapshot, pytest.raises(Exception, match="read.?only"):
        snapshot._connection.execute("UPDATE job SET priority = 99")


def test_a_snapshot_is_one_moment_until_it_is_renewed(lives: World, url: str) -> None:
    with Snapshot(url) as snapshot:
        assert snapshot.one("SELECT COUNT(*) AS n FROM job") == {"n": 4}
        lives.task("more", n_jobs=3)
        lives.form()
        assert snapshot.one("SELECT COUNT(*) AS n FROM job") == {"n": 4}
        snapshot.renew()
        assert snapshot.one("SELECT COUNT(*) AS n FROM job") == {"n": 7}


def test_values_and_lists_are_no_sql(lives: World, url: str) -> None:
    with Snapshot(url) as snapshot:
        sql = "SELECT COUNT(*) AS n FROM file f WHERE f.lfn IN :lfns AND f.lfn LIKE '%.spd' AND f.id > :id"
        assert snapshot.one(sql, lfns=["f00000.spd", "' OR 1=1 --"], id=0) == {"n": 1}
        assert snapshot.one(sql, lfns=[], id=0) == {"n": 0}


def stopped(sqlite: Core, tmp_path: Path) -> Path:
    """A copy of the state directory as a server that was stopped leaves it."""
    directory = tmp_path / "stopped"
    directory.mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "pilotage.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(directory / "pilotage.db"),))
    with contextlib.closing(sqlite3.connect(directory / "pilotage.db")) as connection:
        connection.execute("PRAGMA journal_mode = wal")
    return directory


ON_SQLITE = pytest.mark.parametrize("core", ["sqlite"], indirect=True)
"""About the files of SQLite."""


@ON_SQLITE
def test_the_bytes_of_a_sqlite_database_stay_as_they_are(lives: World, tmp_path: Path) -> None:
    directory = stopped(lives.core, tmp_path)
    before = (directory / "pilotage.db").read_bytes()
    assert_clean(directory)
    assert (directory / "pilotage.db").read_bytes() == before
    with contextlib.closing(sqlite3.connect(directory / "pilotage.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@ON_SQLITE
def test_a_database_whose_server_was_killed_is_looked_at_with_its_log(lives: World, tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    directory.mkdir()
    for name in ("pilotage.db", "pilotage.db-wal"):
        shutil.copy(tmp_path / name, directory / name)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    report = assert_clean(directory)
    assert report.tallies["job-state"].looked_at == 4
    assert {name: (directory / name).read_bytes() for name in before} == before


READ_ONLY = """
import ctypes, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: by which root writes where nobody may
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
import os
os.execv(sys.executable, [sys.executable, "-m", "client.cli", *sys.argv[1:]])
"""


@ON_SQLITE
def test_a_database_that_nobody_may_write_is_looked_at(lives: World, tmp_path: Path) -> None:
    directory = stopped(lives.core, tmp_path)
    for name in directory.iterdir():
        if name.name != "pilotage.db":
            name.unlink()
    (directory / "pilotage.db").chmod(0o444)
    directory.chmod(0o555)
    command = [sys.executable, "-c", READ_ONLY, "audit", "--state", str(directory), "--json", "--no-storage"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    directory.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clean"]
    assert [path.name for path in directory.iterdir()] == ["pilotage.db"]


# -- what cannot be looked at -----------------------------------------------------------------------------------------------


def test_a_database_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="no file") as caught:
        audit(f"sqlite:///{tmp_path}/nothing.db")
    assert caught.value.name == "DATABASE_UNREADABLE"
    assert not list(tmp_path.iterdir())


def test_something_that_is_no_database_of_ours_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 1000)
    sqlite3.connect(tmp_path / "empty").close()
    for name in ("text", "empty"):
        with pytest.raises(PilotageError, match="no database|not a database"):
            audit(f"sqlite:///{tmp_path}/{name}")


def test_a_database_of_an_older_version_is_not_judged(core: Core, url: str) -> None:
    last = "(SELECT MAX(name) FROM schema_migration)"
    ((name, applied),) = proxy.execute_sql(
        f"SELECT name, applied FROM schema_migration WHERE name = {last}"
    ).fetchall()
    proxy.execute_sql(f"DELETE FROM schema_migration WHERE name = {last}")
    try:
        with pytest.raises(PilotageError, match="older version"):
            audit(url)
    finally:
        mark = "?" if core.database.is_sqlite else "%s"
        proxy.execute_sql(
            f"INSERT INTO schema_migration (name, applied) VALUES ({mark}, {mark})", (name, applied)
        )


def test_a_postgres_that_does_not_answer_is_said_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(PilotageError) as caught:
        audit("postgresql://somebody:secret-word@127.0.0.1:1/nothing")
    assert caught.value.name == "DATABASE_UNREADABLE"
    assert "secret-word" not in str(caught.value)


def test_a_task_that_is_not_there_is_said(core: Core, url: str) -> None:
    with pytest.raises(PilotageError, match="no task nothing"):
        audit(url, Options(task="nothing"))


# -- the command ------------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `pilotage audit`."""
    done = CliRunner().invoke(root, ["audit", *arguments])
    return done.exit_code, done.output


def test_the_command_ends_with_0_when_all_is_well(lives: World, url: str) -> None:
    code, output = command("--database", url)
    assert code == 0, output
    assert output.endswith("All is well. The bytes of all outputs (2) were compared.\n")
    assert "completed-attempt" in output


@pytest.mark.parametrize("task", [(), ("--task", "t")])
def test_the_command_says_of_how_many_outputs_the_bytes_were_compared(
    lives: World, url: str, task: tuple[str, ...]
) -> None:
    code, output = command("--database", url, "--sample", "1", *task)
    assert code == 0, output
    assert output.endswith(
        "All is well. The bytes of 1 of 2 outputs were compared; --checksums all compares all of them.\n"
    )
    facts = json.loads(command("--database", url, "--sample", "1", "--json", *task)[1])
    assert facts["outputs"] == {"lookedAt": 2, "bytesCompared": 1}
    assert "The bytes of 0 of 2" in command("--database", url, "--checksums", "none", *task)[1]
    assert "no file was looked at (--no-storage)" in command("--database", url, "--no-storage", *task)[1]
    assert command("--sample", "1", "--checksums", "all")[0] == 2


def test_the_command_ends_with_1_and_says_what_is_wrong_and_what_to_do(lives: World, url: str) -> None:
    place_of(1).unlink()
    code, output = command("--database", url)
    assert code == 1, output
    assert f"file f00000.out of job 1 is not at {place_of(1)}" in output
    assert CHECKS["lost-file"].advice in output
    assert "1 finding\n" in output


def test_the_command_prints_json(lives: World, url: str) -> None:
    place_of(1).unlink()
    code, output = command("--database", url, "--json")
    shown = json.loads(output)
    assert (code, shown["clean"], shown["nFindings"]) == (1, False, 1)
    assert [check["name"] for check in shown["checks"]] == list(CHECKS)
    (found,) = shown["findings"]
    assert (found["check"], found["subject"]["job"]) == ("lost-file", 1)


def test_the_command_ends_with_2_when_it_could_not_look(tmp_path: Path) -> None:
    code, output = command("--state", str(tmp_path))
    assert code == 2
    assert "there is no file" in output
    assert "--state DIR" in output


def test_names_from_elsewhere_do_not_drive_the_terminal(lives: World, url: str, storage: Path) -> None:
    put(f"file://{storage}/t.out/%1B%5B2J.4711")
    code, output = command("--database", url)
    assert code == 1
    assert "\x1b" not in output
