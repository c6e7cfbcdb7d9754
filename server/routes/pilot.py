"""The native door for pilots: registerPilot, getJob, updateJob, heartbeat, endPilot, and the bundles of their jobs."""

from __future__ import annotations

from typing import Any

from flask import send_file

from protocol.errors import PilotageError
from protocol.messages import (
    AttemptUpdate,
    GetJobReply,
    GetJobRequest,
    Heartbeat,
    HeartbeatReply,
    PilotEnd,
    PilotRegistration,
    QueueForPilot,
    UpdateReply,
)
from server import bundles, computing, job_executor
from server.routes import Call, Door
from server.tokens import Role

door = Door()


@door.route("POST", "/v1/registerPilot", Role.PILOT, PilotRegistration, QueueForPilot)
def register_pilot(call: Call, word: PilotRegistration) -> QueueForPilot:
    """First word of a pilot; the answer tells it about its queue."""
    _check_queue(call, word.queue)
    return computing.register_pilot(call.core, word)


@door.route("POST", "/v1/getJob", Role.PILOT, GetJobRequest, GetJobReply)
def get_job(call: Call, word: GetJobRequest) -> GetJobReply:
    """Bind READY jobs to this pilot; the same requestId yields the same jobs again."""
    _check_queue(call, word.queue)
    jobs = job_executor.claim(call.core, word)
    return GetJobReply(jobs, 0.0 if jobs else call.core.limits.idle_wait_seconds)


@door.route("POST", "/v1/updateJob", Role.PILOT, AttemptUpdate, UpdateReply)
def update_job(call: Call, word: AttemptUpdate) -> UpdateReply:
    """One word about an attempt: its moves, and at the end its outcome; 409 if the attempt is not the sender's any more."""
    return job_executor.update(call.core, word)


@door.route("POST", "/v1/heartbeat", Role.PILOT, Heartbeat, HeartbeatReply)
def heartbeat(call: Call, word: Heartbeat) -> HeartbeatReply:
    """A pilot is alive and holds these attempts; each answer says whether it still does."""
    return HeartbeatReply(job_executor.heartbeat(call.core, word))


@door.route("POST", "/v1/endPilot", Role.PILOT, PilotEnd, None)
def end_pilot(call: Call, word: PilotEnd) -> dict[str, Any]:
    """Last word of a pilot."""
    computing.end_pilot(call.core, word)
    return {}


@door.route("GET", "/v1/bundles/<digest>", Role.PILOT)
def get_bundle(call: Call, digest: str) -> Any:
    """The bytes of a bundle (.tar.gz)."""
    return send_file(bundles.path_of(call.core, digest), mimetype="application/gzip")


def _check_queue(call: Call, queue: str) -> None:
    """A token may be bound to one queue."""
    if call.caller.queue and queue != call.caller.queue:
        raise PilotageError("FORBIDDEN", f"this token is for the queue {call.caller.queue} only")
