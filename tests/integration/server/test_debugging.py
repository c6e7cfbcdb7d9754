"""Looking at a job that runs: wishes go out with heartbeats, what the attempt's holder sends is kept, bounded, and shown to its owner."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from protocol.messages import to_wire
from protocol.messages.pilots import (
    LONGEST_TAIL,
    DebugReport,
    Heartbeat,
    HeldAttempt,
    InspectionAnswer,
    JobSpec,
    UpdateReply,
)
from protocol.messages.requests import DebugWish
from server import job_executor, job_manager
from server.access.tokens import Role
from server.jobs import debugging
from server.jobs.debugging import QUICK_SECONDS, SLOW_SECONDS, WATCHED_SECONDS
from server.models import Attempt, AttemptDebug
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.tenants import Tenants
from tests.integration.server.world import Bearer, World, refusing


@pytest.fixture
def job(world: World) -> JobSpec:
    world.core.database.write(world.ready)
    return world.claim()[0]


def look(world: World, job: JobSpec, **wish: object) -> object:
    shown = debugging.look(world.core, job.job_id, DebugWish(**wish))  # type: ignore[arg-type]
    world.core.recent.forget()  # a second later
    return shown


def send(world: World, job: JobSpec, report: DebugReport | None = None) -> UpdateReply:
    held = HeldAttempt(job.attempt_id, job.attempt_token, debug=report)
    return job_executor.heartbeat(world.core, Heartbeat("p1", [held]))[0]


def let_time_pass(seconds: float) -> None:
    AttemptDebug.update(watched_until=AttemptDebug.watched_until - seconds).execute()


def test_123_nothing_is_asked_of_a_job_that_nobody_looks_at(world: World, job: JobSpec) -> None:
    assert send(world, job) == UpdateReply(job.attempt_id, "OBTAINED")
    with world.unchanged(ignore=["last_seen", "lease_until"]):
        send(world, job, DebugReport(stdout="unasked"))


def test_123_while_somebody_watches_the_pilot_sends_every_few_seconds_and_for_a_minute_after(
    world: World, job: JobSpec
) -> None:
    look(world, job, watch=True, file="log.txt")
    order = send(world, job).debug
    assert order is not None
    assert (order.period_seconds, order.file) == (QUICK_SECONDS, "log.txt")
    send(world, job, DebugReport("event 17\n", 900, "log.txt", "all is well\n", 12))
    shown = look(world, job)
    assert (shown.stdout, shown.stdout_size, shown.file, shown.text) == (
        "event 17\n",
        900,
        "log.txt",
        "all is well\n",
    )
    assert shown.at
    let_time_pass(WATCHED_SECONDS)
    assert send(world, job).debug is None


def test_123_debug_mode_goes_on_slowly_without_a_watcher_until_it_is_turned_off(
    world: World, job: JobSpec
) -> None:
    look(world, job, on=True)
    assert send(world, job).debug.period_seconds == SLOW_SECONDS
    look(world, job, watch=True)
    assert send(world, job).debug.period_seconds == QUICK_SECONDS
    let_time_pass(WATCHED_SECONDS)
    world.core.recent.forget()
    assert send(world, job).debug.period_seconds == SLOW_SECONDS
    look(world, job, on=False)
    assert send(world, job).debug is None


def test_123_an_inspection_is_asked_until_it_is_answered(world: World, job: JobSpec) -> None:
    look(world, job, inspect="ps")
    for _ in range(2):
        [asked] = send(world, job).debug.inspect
        assert (asked.number, asked.kind) == (1, "ps")
    send(
        world,
        job,
        DebugReport(answers=[InspectionAnswer(1, "ps", "17 reco"), InspectionAnswer(9, "ls", "unasked")]),
    )
    shown = look(world, job)
    assert [(each.kind, each.text) for each in shown.inspections] == [("ps", "17 reco")]
    assert send(world, job).debug.inspect == []


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "logs/../../x", "a\0b"])
def test_123_a_file_outside_of_the_jobs_directory_is_asked_of_no_pilot(
    world: World, job: JobSpec, file: str
) -> None:
    with world.refused("BAD_REQUEST", "leads out of the directory"):
        look(world, job, watch=True, file=file)
    assert send(world, job).debug is None
    look(world, job, watch=True, file="logs/..reco.txt")


def test_123_what_is_kept_of_an_attempt_is_bounded(world: World, job: JobSpec) -> None:
    for _ in range(20):
        look(world, job, inspect="ls")
    assert len(send(world, job).debug.inspect) == debugging.MOST_INSPECTIONS
    send(world, job, DebugReport(stdout="\x1b" * LONGEST_TAIL, text="x\0y\ttoken=abcdefgh\n"))
    shown = look(world, job)
    assert len(shown.stdout) == LONGEST_TAIL
    assert "\x1b" not in shown.stdout
    assert shown.text == "x\\x00y     token=(hidden)\n"


def test_123_only_the_attempts_holder_may_write(world: World, job: JobSpec) -> None:
    look(world, job, watch=True)
    forged = replace(
        job, attempt_token=job.attempt_token[:-1] + ("a" if job.attempt_token[-1] != "a" else "b")
    )
    assert send(world, forged, DebugReport(stdout="forged")).command.value == "stop"
    held = [
        HeldAttempt(job.attempt_id, job.attempt_token),
        HeldAttempt(job.attempt_id, forged.attempt_token, debug=DebugReport(stdout="forged")),
    ]
    job_executor.heartbeat(world.core, Heartbeat("p1", held))
    assert look(world, job).at is None
    world.complete(job)
    send(world, job, DebugReport(stdout="late"))
    assert look(world, job).at is None


def test_123_a_job_that_no_pilot_holds_cannot_be_looked_at(world: World, job: JobSpec) -> None:
    world.fail(job)
    with refusing("WRONG_STATE", "is READY: no pilot runs it now"):
        look(world, job, watch=True)
    with refusing("NOT_FOUND"):
        debugging.look(world.core, 99, DebugWish())


def test_123_what_was_seen_last_stays_for_a_while_after_the_end(world: World, job: JobSpec) -> None:
    look(world, job, watch=True)
    send(world, job, DebugReport(stdout="the end"))
    world.complete(job)
    shown = look(world, job, watch=True)
    assert (shown.ended, shown.state, shown.stdout) == (True, "COMPLETED", "the end")
    assert debugging.forget_old(world.core) == 0
    let_time_pass(WATCHED_SECONDS + debugging.KEPT_SECONDS)
    assert debugging.forget_old(world.core) == 1
    with refusing("WRONG_STATE"):
        look(world, job)


def test_123_what_is_seen_of_a_job_that_runs_is_not_forgotten(world: World, job: JobSpec) -> None:
    look(world, job, on=True)
    let_time_pass(10_000)
    assert debugging.forget_old(world.core) == 0


def test_a_payload_is_told_to_end_once_asked_and_the_history_says_by_whom(world: World, job: JobSpec) -> None:
    assert not send(world, job).soft_stop
    for _ in range(2):
        debugging.soft_stop(world.core, job.job_id, "ada")
    world.core.recent.forget()
    assert send(world, job).soft_stop
    history = job_manager.details(world.job()).history or []
    assert [(line.by, line.detail) for line in history if line.state == "SOFT_STOP"] == [("user", "ada")]
    world.complete(job)
    with refusing("WRONG_STATE"):
        debugging.soft_stop(world.core, job.job_id, "ada")


def test_123_over_http_for_the_owner_and_admins_alone(
    world: World, client: FlaskClient, bearer: Bearer, tenants: Tenants, job: JobSpec
) -> None:
    owner, pilot = Speaker(client, bearer, Role.USER), Speaker(client, bearer, Role.PILOT)
    path = f"/v1/jobs/{job.job_id}/debug"
    assert owner.ok("POST", path, {"watch": True, "inspect": "stack"})["inspections"][0]["kind"] == "stack"
    world.core.recent.forget()
    held = HeldAttempt(job.attempt_id, job.attempt_token, debug=DebugReport(stdout="hello"))
    body = pilot.ok("POST", "/v1/heartbeat", to_wire(Heartbeat("p1", [held])))
    assert body["answers"][0]["debug"]["inspect"] == [{"number": 1, "kind": "stack"}]
    assert owner.as_(Role.ADMIN).ok("POST", path, {})["stdout"] == "hello"
    refusal(owner.as_(Role.GROUP).post(path, {"watch": True}), 403)
    refusal(owner.post(path, {"inspect": "rm"}), 400)
    assert Attempt.select().count() == 1
