"""COMPLETED and its outputs: exactly the declared ones, registered in the same transaction or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.messages.pilots import LogReport, OutputReport
from protocol.states import JobState
from server import catalogue, job_executor, job_manager
from server.models import File, Replica
from server.paging import Cursor
from tests.integration.server.world import MD5, World

A, B = "f00000.a", "f00000.b"


def output(lfn: str, size: int = 3, **checksums: str) -> OutputReport:
    return OutputReport(lfn, size, checksums or dict(MD5))


@pytest.mark.parametrize(
    ("reports", "error"),
    [
        (None, "BAD_REQUEST"),
        ([], "BAD_REQUEST"),
        ([output(A)], "BAD_REQUEST"),
        ([output(A), output(A)], "BAD_REQUEST"),
        ([output(A), output(B), output(B)], "BAD_REQUEST"),
        ([output(A), output(B), output("f00000.c")], "BAD_REQUEST"),
        ([output(A), output("../../etc/passwd")], "BAD_REQUEST"),
        ([output(A), output(B.upper())], "BAD_REQUEST"),
        ([output(A), output("f00000.spd")], "BAD_REQUEST"),
        ([output(A), output(B, sha1="0" * 40)], "CHECKSUM_NOT_SUPPORTED"),
        ([output(A), output(B, md5="0" * 31)], "BAD_REQUEST"),
        ([output(A), output(B, md5="z" * 32)], "BAD_REQUEST"),
        ([output(A), output(B, blake3="0" * 32)], "BAD_REQUEST"),
        ([output(A, adler32=""), output(B)], "BAD_REQUEST"),
    ],
)
def test_b18_completed_with_other_outputs_than_declared_is_refused_and_changes_nothing(
    world: World, reports: list[OutputReport] | None, error: str
) -> None:
    job = world.job_with_outputs()
    world.say(job, JobState.STAGE_OUT)
    with world.refused(error):
        world.say(job, JobState.COMPLETED, outputs=reports)
    world.complete(job)
    assert world.state() is JobState.COMPLETED, "the right word is taken afterwards"


def test_a_job_without_outputs_completes_with_none_and_with_an_empty_list(world: World) -> None:
    world.ready(2)
    first, second = world.claim(n_jobs=2)
    world.say(first, JobState.COMPLETED)
    world.say(second, JobState.COMPLETED, outputs=[])
    assert (world.state(1), world.state(2)) == (JobState.COMPLETED, JobState.COMPLETED)


def test_a_job_without_outputs_may_not_bring_one(world: World) -> None:
    world.ready()
    [job] = world.claim()
    with world.refused("BAD_REQUEST", "not declared: .'f00000.a'"):
        world.say(job, JobState.COMPLETED, outputs=[output(A)])


def test_g7_completed_publishes_the_outputs_where_this_attempt_wrote_them(world: World) -> None:
    job = world.job_with_outputs()
    assert catalogue.files(Cursor(), dataset="t.out").items == [], "what is declared is not there yet"
    world.say(job, JobState.COMPLETED, outputs=[output(B, 0, md5="AB" * 16), output(A, 2**63 - 1)])
    seen = catalogue.files(Cursor(), dataset="t.out").items
    assert [(file.lfn, file.size, file.checksums, file.url, file.job_id) for file in seen] == [
        (A, 2**63 - 1, MD5, f"file:///srv/storage/t.out/{A}.{job.attempt_id}", job.job_id),
        (B, 0, {"md5": "ab" * 16}, f"file:///srv/storage/t.out/{B}.{job.attempt_id}", job.job_id),
    ]
    assert [replica.storage_id for replica in Replica.select().where(Replica.file > 1)] == ["LOCAL", "LOCAL"]


STEPS = {
    "before the attempt's move": 0,
    "between the moves and the registration": 1,
    "at the very end": 2,
}
"""So many chains of statements are done before the server dies."""


class Died(Exception):
    """The server died here."""


@pytest.mark.parametrize("step", STEPS)
def test_g1_a_registration_that_fails_on_its_way_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    job = world.job_with_outputs()
    world.say(job, JobState.STAGE_OUT)
    word = world.completed(job)
    real = world.core.database.run
    done = []

    def run(chain: Any, **values: Any) -> Any:
        if len(done) == STEPS[step]:
            raise Died(step)
        rows = real(chain, **values)
        done.append(chain)
        if len(done) == 2 and STEPS[step] == 2:
            raise Died(step)
        return rows

    with world.unchanged():
        with monkeypatch.context() as patch, pytest.raises(Died):
            patch.setattr(world.core.database, "run", run)
            job_executor.update(world.core, word)
    job_executor.update(world.core, word)
    assert world.state() is JobState.COMPLETED
    assert File.select().where(File.state == "available", File.job_id == job.job_id).count() == 2


def test_a_retry_registers_its_outputs_under_the_same_names(world: World) -> None:
    world.fail(world.job_with_outputs())
    [second] = world.claim()
    world.complete(second)
    seen = job_manager.details(world.job()).outputs or []
    assert [(file.lfn, file.state) for file in seen] == [(A, "available"), (B, "available")]
    assert all(file.url.endswith(f".{second.attempt_id}") for file in seen)


def test_the_outputs_of_a_failed_job_are_not_published(world: World) -> None:
    job = world.job_with_outputs()
    world.fail(job, "MISSING_OUTPUT")
    assert Replica.select().where(Replica.storage.is_null(False)).count() == 0
    assert catalogue.files(Cursor(), dataset="t.out").total == 0


def test_the_log_may_come_with_completed(world: World) -> None:
    job = world.job_with_outputs()
    job_executor.update(world.core, world.completed(job, log=LogReport(9, MD5)))
    assert world.attempt(job.attempt_id).log_size == 9
    with world.refused("STALE_ATTEMPT"):
        world.log(job)
