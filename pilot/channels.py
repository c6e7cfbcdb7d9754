"""Named channels that join the controls: a reader sleeps until something comes, and ends when the channel is closed."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pilot.jobrun import JobRun

T = TypeVar("T")

_END: Any = object()


class Channel(Generic[T]):
    """A queue between two controls. Several threads may read it; each item reaches one of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A SimpleQueue may be written to from a signal handler; a Queue may not.
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        self._items.put(item)

    def close(self) -> None:
        """What was put before is still read; then every reader's loop ends."""
        self._items.put(_END)

    def __iter__(self) -> Iterator[T]:
        """The one loop shape of all controls: `for job in channel`."""
        while True:
            item = self._items.get()
            if item is _END:
                self._items.put(_END)  # for the other readers
                return
            yield item


class Slots:
    """Where jobs wait for their slot: a channel for each, from 1."""

    def __init__(self, name: str, n: int) -> None:
        self.of: dict[int, Channel[JobRun]] = {
            slot: Channel(f"{name} for slot {slot}") for slot in range(1, n + 1)
        }

    def put(self, job: JobRun) -> None:
        self.of[job.slot].put(job)

    def close(self) -> None:
        for channel in self.of.values():
            channel.close()


@dataclass(frozen=True)
class Channels:
    """The way of a job through the pilot. A job that has failed goes straight to `collected`, for its log archive."""

    free: Channel[int]
    """The numbers of slots, from 1, that may have room → job control asks for jobs for them."""
    obtained: Channel[JobRun]
    """→ payload control prepares."""
    prepared: Channel[JobRun]
    """→ data control stages in."""
    staged_in: Slots
    """→ payload control runs the payload and collects what it left, one at a time in each slot."""
    collected: Channel[JobRun]
    """→ data control stages out, and stores the log archive."""
    ended: Channel[JobRun]
    """→ job control waits until the end is told and cleans up; the slot has room again."""

    def close(self) -> None:
        for channel in (self.free, self.obtained, self.prepared, self.staged_in, self.collected, self.ended):
            channel.close()


def make(slots: int) -> Channels:
    """New channels, with all slots free."""
    channels = Channels(
        free=Channel("free"),
        obtained=Channel("obtained"),
        prepared=Channel("prepared"),
        staged_in=Slots("staged in", slots),
        collected=Channel("collected"),
        ended=Channel("ended"),
    )
    for slot in range(1, slots + 1):
        channels.free.put(slot)
    return channels
