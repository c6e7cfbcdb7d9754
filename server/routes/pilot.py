"""The native door for pilots: registerPilot, getJob, updateJob, heartbeat, endPilot, and the bundles of their jobs."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from flask import send_file

from protocol.errors import PilotageError
from protocol.messages.pilots import (
    AttemptUpdate,
    AttemptUpdates,
    GetJobReply,
    GetJobRequest,
    Heartbeat,
    HeartbeatReply,
    PilotEnd,
    PilotRegistration,
    QueueForPilot,
    UpdateReplies,
    UpdateReply,
)
from server import bundles, computing, job_executor
from server.access.tokens import Role
from server.jobs import claiming
from server.routes import Call, Door
from server.waiting import tickets

door = Door()


@door.route("POST", "/v1/registerPilot", Role.PILOT, PilotRegistration, QueueForPilot)
def register_pilot(call: Call, word: PilotRegistration) -> QueueForPilot:
    """First word of a pilot; the answer tells it about its queue."""
    word = dataclasses.replace(word, queue=word.queue or call.caller.queue)
    _check_queue(call, word.queue)
    _check_pilot(call, word.pilot_id)
    answer = computing.register_pilot(call.core, word)
    answer.token_role = None if call.caller.role is Role.PILOT else call.caller.role.value
    return answer


@door.route("POST", "/v1/getJob", Role.PILOT, GetJobRequest, GetJobReply)
def get_job(call: Call, word: GetJobRequest) -> GetJobReply:
    """Bind READY jobs to this pilot; the same requestId yields the same jobs again."""
    _check_queue(call, word.queue)
    _check_pilot(call, word.pilot_id)
    asked_at = time.time()
    reply = job_executor.next_jobs(call.core, word)
    if reply.jobs:
        return reply
    if computing.is_draining(call.core, word.pilot_id):
        return GetJobReply(drain=True, update=computing.is_updating(call.core, word.pilot_id))
    return _invite(call, word, reply, asked_at)


def _invite(call: Call, word: GetJobRequest, reply: GetJobReply, asked_at: float) -> GetJobReply:
    """There is no job: the pilot may also wait for one instead of asking again and again."""
    core = call.core
    # The host as this pilot reaches us, which we may have no other name for; nobody but itself goes there.
    host = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?", call.request.host)
    if core.waiting is None or not (core.waiting.url or host):
        return reply
    url = core.waiting.url or f"{core.waiting.scheme}://{host[1] if host else ''}:{core.waiting.port}/v1/wait"
    ticket = tickets.Ticket(word.pilot_id, claiming.offer(core, word), asked_at)
    return dataclasses.replace(reply, ticket=tickets.sign(core.waiting.ticket_key, ticket), wait_url=url)


@door.route("POST", "/v1/updateJob", Role.PILOT, AttemptUpdate, UpdateReply)
def update_job(call: Call, word: AttemptUpdate) -> UpdateReply:
    """One word about an attempt: its moves, and at the end its outcome; 409 if the attempt is not the sender's any more."""
    if word.next is None:
        return job_executor.update(call.core, word)
    _check_queue(call, word.next.queue)
    _check_pilot(call, word.next.pilot_id)
    replies = job_executor.update_and_next(call.core, [word], word.next, if_taken=True)
    answer = replies.answers[0]
    if answer.error:
        raise PilotageError(answer.error, answer.detail or "")
    answer.next = replies.next
    return answer


@door.route("POST", "/v1/updateJobs", Role.PILOT, AttemptUpdates, UpdateReplies)
def update_jobs(call: Call, words: AttemptUpdates) -> UpdateReplies:
    """Words about several attempts, each taken or refused by itself, and the next jobs if they are asked for."""
    if words.next is not None:
        _check_queue(call, words.next.queue)
        _check_pilot(call, words.next.pilot_id)
    return job_executor.update_and_next(call.core, words.updates, words.next)


@door.route("POST", "/v1/heartbeat", Role.PILOT, Heartbeat, HeartbeatReply)
def heartbeat(call: Call, word: Heartbeat) -> HeartbeatReply:
    """A pilot is alive and holds these attempts; each answer says whether it still does."""
    call.core.callers.limit_heartbeats(call.caller, word.pilot_id)
    _check_pilot(call, word.pilot_id)
    answers = job_executor.heartbeat(call.core, word)
    return HeartbeatReply(
        answers,
        computing.is_draining(call.core, word.pilot_id),
        computing.is_updating(call.core, word.pilot_id),
    )


@door.route("POST", "/v1/endPilot", Role.PILOT, PilotEnd, None)
def end_pilot(call: Call, word: PilotEnd) -> dict[str, Any]:
    """Last word of a pilot."""
    _check_pilot(call, word.pilot_id)
    computing.end_pilot(call.core, word)
    return {}


@door.route("GET", "/v1/bundles/<digest>", Role.PILOT, gives="application/gzip")
def get_bundle(call: Call, digest: str) -> Any:
    """The bytes of a bundle (.tar.gz)."""
    return send_file(bundles.path_of(call.core, digest), mimetype="application/gzip")


def _check_queue(call: Call, queue: str) -> None:
    """A token may be bound to one queue."""
    if call.caller.queue and queue != call.caller.queue:
        raise PilotageError("FORBIDDEN", f"this token is for the queue {call.caller.queue} only")


def _check_pilot(call: Call, pilot_id: str) -> None:
    """And then it speaks for no pilot of another queue. One that nobody knows is left to the view."""
    if call.caller.queue:
        _check_queue(call, computing.queue_of_pilot(call.core, pilot_id) or call.caller.queue)
