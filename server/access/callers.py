"""Who stands behind a request, without asking the database each time; and a bound on how fast anybody may guess."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from protocol.errors import PilotageError
from server.access import tokens
from server.access.throttle import Throttle
from server.access.tokens import NOBODY, Caller

SECONDS = 1.0
"""How long a token that was valid is taken as valid: a revoked one is refused everywhere after that."""
REFUSED_SECONDS = 10.0
"""How long a token that was refused is refused unseen; none becomes valid later."""
MOST = 20_000
"""Tokens kept in mind, of either kind; beyond that all are forgotten."""
GUESSES_PER_SECOND = 10.0
GUESSES_AT_ONCE = 300
BEATS_PER_SECOND = 10.0
BEATS_AT_ONCE = 60


class Callers:
    """What one process remembers of tokens, by their hashes; all of it can be forgotten at any time.

    A valid token passes whatever others behind its address do: it is looked up again even while guesses from there are
    refused unseen. One wrong token that is sent by many (a farm whose token has expired) counts as one guess, so that
    another, new token still gets through.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._valid: dict[str, tuple[float, Caller]] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._forgotten = 0
        self._lock = threading.Lock()
        self._guesses = Throttle(GUESSES_PER_SECOND, GUESSES_AT_ONCE, MOST, clock)
        self._beats = Throttle(BEATS_PER_SECOND, BEATS_AT_ONCE, MOST, clock)

    def who(self, authorization: str | None, address: str) -> Caller:
        """The caller of a request from `address`; NOBODY without a header, UNAUTHENTICATED or TOO_MANY_REQUESTS."""
        if not authorization:
            return NOBODY
        token = tokens.token_in(authorization)
        digest = tokens.hash_of(token)
        known = self._valid.get(digest)
        if known is not None and self._clock() < known[0]:
            return known[1]
        if not token:
            self.limit_refusals(address)
            return tokens.caller_of(authorization)  # which says what is wrong with it
        return self._look_up(digest, address, known is not None)

    def limit_refusals(self, address: str) -> None:
        """Count a request without any token, so that a flood of them is answered with less and less."""
        _pass(self._guesses, (_network(address), ""), "requests without a token from this address")

    def limit_heartbeats(self, caller: Caller, pilot_id: str) -> None:
        """TOO_MANY_REQUESTS for a pilot that speaks much more often than any queue asks for."""
        _pass(self._beats, (caller.token_id, pilot_id), f"heartbeats of pilot {pilot_id}")

    def forget(self) -> None:
        """Called by who changes tokens: in this process the change counts at once."""
        with self._lock:
            self._forgotten += 1
            self._valid.clear()
            self._refused.clear()

    def _look_up(self, digest: str, address: str, was_valid: bool) -> Caller:
        network = _network(address)
        refused = self._refused.get(digest)
        if refused is not None and self._clock() < refused[0]:
            _pass(self._guesses, (network, digest), "requests with a wrong token from this address")
            raise PilotageError("UNAUTHENTICATED", refused[1])
        if not was_valid:
            _pass(self._guesses, network, "wrong tokens from this address")
        forgotten = self._forgotten
        try:
            caller = tokens.caller_with(digest)
        except PilotageError as error:
            if error.name == "UNAUTHENTICATED":
                self._valid.pop(digest, None)
                self._keep(self._refused, forgotten, digest, (self._clock() + REFUSED_SECONDS, error.detail))
            raise
        if not was_valid:
            self._guesses.give_back(network)
        self._keep(self._valid, forgotten, digest, (self._clock() + SECONDS, caller))
        return caller

    def _keep(self, kept: dict[str, Any], forgotten: int, digest: str, what: tuple[float, object]) -> None:
        """Unless somebody changed tokens while this one was looked up."""
        with self._lock:
            if forgotten != self._forgotten:
                return
            if len(kept) >= MOST:
                kept.clear()
            kept[digest] = what


def _pass(throttle: Throttle, key: Hashable, what: str) -> None:
    wait = throttle.take(key)
    if wait:
        raise PilotageError("TOO_MANY_REQUESTS", f"too many {what}", retry_after=math.ceil(wait))


def _network(address: str) -> str:
    """An IPv4 address, or the /64 network of an IPv6 one: who has one such address mostly has all of them."""
    if ":" not in address:
        return address
    try:
        number = int(ipaddress.IPv6Address(address.partition("%")[0]))
    except ValueError:
        return address
    return str(number >> 64)
