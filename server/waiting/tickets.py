"""Wake tickets: what a pilot that got no job shows in order to wait for one, made by the dispatcher and read without a database."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json

from protocol.errors import PilotageError
from protocol.messages import from_wire, to_wire
from protocol.resources import Offer, ResourceType

LONGEST = 4000
"""Characters of a ticket: an offer with a hundred long tags is waited for by polling."""
VALID_SECONDS = 600
STEPS = 8
"""An amount is rounded up to one of so many steps between a power of two and the next."""


@dataclasses.dataclass(frozen=True)
class Ticket:
    """Who waits, with what to offer, and since when: before the dispatcher looked for a job (seconds since 1970)."""

    pilot_id: str
    offer: Offer
    asked_at: float


def key_of(server_key: bytes) -> bytes:
    """The key of the tickets alone: who checks tickets need not be able to make tokens of attempts."""
    return hmac.new(server_key, b"wake ticket", hashlib.sha256).digest()


def sign(key: bytes, ticket: Ticket) -> str:
    """The ticket as text that fits into a URL; "" if it would be too long."""
    body = [ticket.pilot_id, round(ticket.asked_at, 3), to_wire(coarse(ticket.offer))]
    text = _encode(json.dumps(body, separators=(",", ":")).encode())
    signed = f"{text}.{_signature(key, text)}"
    return signed if len(signed) <= LONGEST else ""


def read(key: bytes, text: str, now: float) -> Ticket:
    """BAD_REQUEST for one that is not ours or too old."""
    body, _, signature = text.partition(".")
    if len(text) > LONGEST or not hmac.compare_digest(
        _signature(key, body).encode(), signature.encode("utf-8", "replace")
    ):
        raise PilotageError("BAD_REQUEST", "ticket: it is none of this server; getJob gives a new one")
    try:
        pilot_id, asked_at, offer = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        made = from_wire(Offer, offer)
        made = dataclasses.replace(
            made, resource_type=ResourceType(made.resource_type), tags=tuple(made.tags)
        )
        ticket = Ticket(str(pilot_id), made, float(asked_at))
    except (binascii.Error, ValueError, TypeError, AttributeError) as error:  # signed by another version
        raise PilotageError("BAD_REQUEST", f"ticket: this version cannot read it: {error}") from None
    if abs(now - ticket.asked_at) > VALID_SECONDS:
        raise PilotageError("BAD_REQUEST", "ticket: it is too old; getJob gives a new one")
    return ticket


def coarse(offer: Offer) -> Offer:
    """The offer with amounts that differ a little from pilot to pilot made equal, so that a farm's pilots are few kinds.

    Rounded up: a pilot may be woken for a job that it just misses, but is not passed over for one that it can take.
    """
    return dataclasses.replace(
        offer,
        memory_mb=_step(offer.memory_mb),
        disk_mb=_step(offer.disk_mb),
        walltime_seconds=_step(offer.walltime_seconds),
    )


def _step(amount: int) -> int:
    size = 1 << max(0, amount.bit_length() - STEPS.bit_length())
    return -(-amount // size) * size


def _signature(key: bytes, text: str) -> str:
    return _encode(hmac.new(key, text.encode("utf-8", "replace"), hashlib.sha256).digest()[:16])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
