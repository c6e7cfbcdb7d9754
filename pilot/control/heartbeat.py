"""Heartbeats: a word about all attempts that the pilot holds, and what the server answers to it."""

from __future__ import annotations

import logging
import random
from typing import Optional

from pilot.context import Context
from pilot.debug import Desk
from protocol.errors import PilotageError
from protocol.messages.pilots import CacheReport, Heartbeat

logger = logging.getLogger(__name__)


def heartbeat(context: Context) -> None:
    """A word about all attempts that are held, from the pilot's first second to its end, whatever else is slow or stuck."""
    desk = Desk(context)
    told: Optional[CacheReport] = None
    while not context.silence.wait(desk.period(_period(context))):
        held = {job.spec.attempt_id: job for job in context.jobs.held()}
        desk.forget(set(held))
        report = context.cache.report() if context.cache is not None else None
        news = report if report != told else None
        word = Heartbeat(context.pilot_id, [desk.held(job) for job in held.values()], news)
        try:
            reply = context.client.heartbeat(word)
        except PilotageError as error:
            logger.warning("no heartbeat", extra={"error": error.name, "detail": error.detail})
            desk.lost(word)
            if error.name == "NOT_FOUND":
                _register_again(context)
            continue
        told = report
        if reply.drain and not context.drain.is_set():
            logger.info("the server wants this pilot to take no further job", extra={"update": reply.update})
            if reply.update:
                context.update.set()
            context.drain.set()
        for answer in reply.answers:
            job = held.get(answer.attempt_id)
            if job is not None:
                with job.logged():
                    job.obey(answer)
                    desk.obey(job, answer)


def _period(context: Context) -> float:
    jitter = context.settings.number("heartbeat", "jitter_percent") / 100
    return context.settings.number("heartbeat", "heartbeat_seconds") * random.uniform(1 - jitter, 1 + jitter)


def _register_again(context: Context) -> None:
    """The server does not know this pilot any more: it was restored from a backup, say."""
    try:
        context.client.register(context.registration)
    except PilotageError as error:
        logger.warning(
            "the pilot could not register again", extra={"error": error.name, "detail": error.detail}
        )
