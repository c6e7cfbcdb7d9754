"""Wake tickets: only the server's own are good, and not for ever."""

from __future__ import annotations

import dataclasses

import pytest

from protocol.errors import PilotageError
from protocol.resources import Offer, ResourceType
from server.waiting import tickets
from server.waiting.tickets import Ticket

KEY = tickets.key_of(b"key of the server")
OFFER = Offer(
    ResourceType.GPU, "FARM", cores=8, memory_mb=16_000, gpus=2, label="user", tags=("cvmfs", "root")
)
TICKET = Ticket("pilot-1", OFFER, 1000.0)


def refusal(text: str, now: float = 1000.0, key: bytes = KEY) -> str:
    with pytest.raises(PilotageError) as caught:
        tickets.read(key, text, now)
    assert caught.value.name == "BAD_REQUEST"
    return caught.value.detail


def test_a_ticket_says_what_was_signed() -> None:
    read = tickets.read(KEY, tickets.sign(KEY, TICKET), 1001.0)
    assert read == dataclasses.replace(TICKET, offer=tickets.coarse(OFFER))
    assert read.offer.resource_type is ResourceType.GPU
    assert hash(read.offer)


def test_it_fits_into_a_url_as_it_is() -> None:
    assert tickets.sign(KEY, TICKET).translate(str.maketrans("", "", "-_.")).isalnum()


@pytest.mark.parametrize(
    "text",
    ["", ".", "x", "e30.AAAA", tickets.sign(tickets.key_of(b"another key"), TICKET), "ü.ü", "\ud800.x"],
)
def test_b19_a_ticket_that_the_server_did_not_sign_is_refused(text: str) -> None:
    assert "none of this server" in refusal(text)


def test_b19_a_ticket_with_a_changed_letter_is_refused() -> None:
    text = tickets.sign(KEY, TICKET)
    for place in (0, 20, len(text) - 1):
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        assert "none of this server" in refusal(changed)
    assert "none of this server" in refusal(text + " ")
    assert "none of this server" in refusal(text + "A" * 1_000_000)


def test_b21_a_ticket_of_yesterday_is_refused() -> None:
    text = tickets.sign(KEY, TICKET)
    assert "too old" in refusal(text, 1000.0 + 86_400)
    assert "too old" in refusal(text, 1000.0 - 86_400)


def test_a_ticket_of_another_version_is_refused_in_words() -> None:
    body = tickets._encode(b'{"a": 1}')
    assert "cannot read" in refusal(f"{body}.{tickets._signature(KEY, body)}")


def test_an_offer_too_large_for_a_url_gets_no_ticket() -> None:
    offer = dataclasses.replace(OFFER, tags=tuple(f"{'tag' * 20}{number}" for number in range(100)))
    assert tickets.sign(KEY, dataclasses.replace(TICKET, offer=offer)) == ""


def test_the_pilots_of_a_farm_are_few_kinds() -> None:
    """Equal machines differ in free disk and in the time that they have left."""
    offers = [
        dataclasses.replace(OFFER, disk_mb=50_000 + 37 * n, walltime_seconds=80_000 - 11 * n)
        for n in range(1000)
    ]
    assert len({tickets.coarse(offer) for offer in offers}) <= 20


@pytest.mark.parametrize("amount", [0, 1, 7, 15, 16, 17, 1000, 123_456_789, 2**63 - 1])
def test_no_pilot_offers_less_on_its_ticket_than_it_has(amount: int) -> None:
    made = tickets.coarse(dataclasses.replace(OFFER, memory_mb=amount)).memory_mb
    assert amount <= made <= amount * 9 / 8
