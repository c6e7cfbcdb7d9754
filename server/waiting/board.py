"""Who waits for work, and whom news of jobs wakes: about as many as there are new jobs, the longest-waiting first.

Plain data: no socket, no database. Pilots with equal offers are one group, so that news is held against each kind of offer
and not against each pilot.
"""

from __future__ import annotations

import functools
import heapq
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from protocol.messages import from_wire
from protocol.resources import Needs, Offer, fits
from server.waiting.tickets import Ticket
from server.waiting.wake import News

RECENT_SECONDS = 5.0
"""News is kept so long for pilots whose question crossed it: they asked before, and come to wait after."""
MOST_KINDS = 4096
"""Of classes that a group remembers, and of news that is kept."""


@dataclass(eq=False, frozen=True)
class Place:
    """One pilot that waits. `answer` tells it whether there are jobs, once."""

    number: int
    pilot_id: str
    offer: Offer
    answer: Callable[[bool], None]


class _Group:
    """The pilots with one offer, in the order in which they came."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.places: OrderedDict[int, Place] = OrderedDict()
        self._fits: dict[str, bool] = {}

    def takes(self, class_key: str, queue: str) -> bool:
        if queue and queue != self.offer.queue:
            return False
        known = self._fits.get(class_key)
        if known is None:
            if len(self._fits) >= MOST_KINDS:
                self._fits.clear()
            known = self._fits[class_key] = fits(needs_in(class_key), self.offer)
        return known

    def first(self) -> int:
        """The number of the one who has waited longest."""
        return next(iter(self.places))


@functools.lru_cache(maxsize=MOST_KINDS)
def needs_in(class_key: str) -> Needs:
    """What the jobs of a class need; ValueError or TypeError if that is no key."""
    return from_wire(Needs, json.loads(class_key))


class Board:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._groups: dict[Offer, _Group] = {}
        self._by_pilot: dict[str, Place] = {}
        self._recent: dict[tuple[str, str], tuple[float, int]] = {}
        """(class, queue) → when there was news of it last, and for how many of those jobs nobody was woken."""
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._by_pilot)

    def park(self, ticket: Ticket, answer: Callable[[bool], None]) -> Place | None:
        """Let a pilot wait; None if there was news for it since it asked. A pilot waits in one place: an older one is answered."""
        earlier = self._by_pilot.get(ticket.pilot_id)
        if earlier is not None:
            self.leave(earlier)
            earlier.answer(False)
        if self._takes_recent(ticket):
            return None
        self._last_number += 1
        place = Place(self._last_number, ticket.pilot_id, ticket.offer, answer)
        group = self._groups.get(ticket.offer)
        if group is None:
            group = self._groups[ticket.offer] = _Group(ticket.offer)
        group.places[place.number] = place
        self._by_pilot[place.pilot_id] = place
        return place

    def leave(self, place: Place) -> None:
        """It waits no more; nothing if it does not."""
        group = self._groups.get(place.offer)
        if group is None or group.places.pop(place.number, None) is None:
            return
        if not group.places:
            del self._groups[place.offer]
        del self._by_pilot[place.pilot_id]

    def tell(self, news: News) -> dict[str, int]:
        """Wake those whom the news is for; for how many jobs of each class there was nobody.

        ValueError or TypeError, and nobody is woken, if a key names no class.
        """
        for class_key in news.jobs:
            needs_in(class_key)
        woken: list[Place] = []
        missing = {}
        for class_key, n in news.jobs.items():
            chosen = self._choose(class_key, n, news.queue)
            woken += chosen
            if len(chosen) < n:
                missing[class_key] = n - len(chosen)
        self._remember(missing, news.queue)
        for place in woken:
            place.answer(True)
        return missing

    def close(self) -> None:
        """Send everybody away."""
        for place in list(self._by_pilot.values()):
            self.leave(place)
            place.answer(False)

    def _choose(self, class_key: str, n: int, queue: str) -> list[Place]:
        """At most `n` that fit, longest-waiting first; they wait no more."""
        heads = [
            (group.first(), group.offer) for group in self._groups.values() if group.takes(class_key, queue)
        ]
        heapq.heapify(heads)
        chosen: list[Place] = []
        while heads and len(chosen) < n:
            number, offer = heapq.heappop(heads)
            group = self._groups[offer]
            place = group.places[number]
            self.leave(place)
            chosen.append(place)
            if group.places:
                heapq.heappush(heads, (group.first(), offer))
        return chosen

    def _remember(self, missing: dict[str, int], queue: str) -> None:
        now = self._clock()
        for kind in [kind for kind, (at, _) in self._recent.items() if at < now - RECENT_SECONDS]:
            del self._recent[kind]
        for class_key, n in missing.items():
            if len(self._recent) < MOST_KINDS:
                self._recent[class_key, queue] = (now, n + self._recent.get((class_key, queue), (now, 0))[1])

    def _takes_recent(self, ticket: Ticket) -> bool:
        for (class_key, queue), (at, n) in self._recent.items():
            if at >= ticket.asked_at and n and not (queue and queue != ticket.offer.queue):
                if fits(needs_in(class_key), ticket.offer):
                    self._recent[class_key, queue] = (at, n - 1)
                    return True
        return False
