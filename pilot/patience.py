"""Trying again what other machines refuse for a while: with waits that double, as often as the error says that it helps."""

from __future__ import annotations

import logging
import random
import threading
from typing import Callable, NamedTuple, TypeVar

from protocol.errors import PilotageError, Retry
from protocol.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

HOPELESS = frozenset((Retry.NEVER, Retry.ELSEWHERE))
"""Errors that another try on this node does not mend."""


class Stopped(Exception):
    """Nobody wants it any more."""


class Patience(NamedTuple):
    """How often, and how long."""

    retries: int
    backoff_seconds: float
    backoff_max_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        """As the settings have it for the files of jobs."""
        return cls(
            settings.integer("copytools", "retries"),
            settings.number("copytools", "backoff_seconds"),
            settings.number("copytools", "backoff_max_seconds"),
        )


def patiently(patience: Patience, work: Callable[[], T], stop: threading.Event, failed: str) -> T:
    """What `work` returns, at last; the error after which it is not tried again; or Stopped, once `stop` is set.

    What is not as it should be gets one more try. `failed` are the words for the log.
    """
    failures = 0
    while not stop.is_set():
        try:
            return work()
        except PilotageError as error:
            failure = error
        if stop.is_set():
            break
        failures += 1
        retry = failure.entry.retry
        most = min(1, patience.retries) if retry is Retry.FRESH_INPUT else patience.retries
        if retry in HOPELESS or failures > most:
            raise failure
        pause = min(patience.backoff_seconds * 2.0 ** (failures - 1), patience.backoff_max_seconds)
        logger.warning(
            failed, extra={"error": failure.name, "detail": failure.detail, "again_in": round(pause, 1)}
        )
        stop.wait(pause * random.uniform(0.75, 1.25))
    raise Stopped
