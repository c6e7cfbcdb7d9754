"""Pilots are woken at a pace that leaves the dispatcher time for others."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from server.waiting.gate import AT_ONCE_SECONDS, Gate


class Loop:
    """Time that goes on by itself from one call to the next."""

    def __init__(self) -> None:
        self.now = 100.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._calls, (self.now + seconds, len(self._calls), action))

    def run(self) -> None:
        while self._calls:
            self.now, _, action = heapq.heappop(self._calls)
            action()


def passed(n: int, per_second: float) -> list[float]:
    """When each of `n` actions passed that came together."""
    loop = Loop()
    gate = Gate(lambda: loop.now, loop.later, per_second)
    times: list[float] = []
    for _ in range(n):
        gate.let(lambda: times.append(loop.now - 100))
    loop.run()
    return times


def test_a_few_pass_at_once() -> None:
    assert passed(10, 100) == [0.0] * 10


def test_of_many_no_more_pass_than_so_many_a_second_and_all_of_them() -> None:
    times = passed(500, 100)
    assert len(times) == 500
    assert times == sorted(times)
    assert abs(times[-1] - (5 - AT_ONCE_SECONDS)) < 0.05


def test_they_pass_in_the_order_in_which_they_came() -> None:
    loop, seen = Loop(), []
    gate = Gate(lambda: loop.now, loop.later, 10)
    for number in range(20):
        gate.let(lambda number=number: seen.append(number))  # type: ignore[misc]
    loop.run()
    assert seen == list(range(20))


def test_after_a_pause_a_few_pass_at_once_again_and_no_more() -> None:
    loop = Loop()
    gate = Gate(lambda: loop.now, loop.later, 100)
    for begin in (100.0, 1000.0):
        times: list[float] = []
        loop.now = begin
        for _ in range(15):
            gate.let(lambda times=times: times.append(loop.now))  # type: ignore[misc]
        assert len(times) in (10, 11)
        loop.run()
        assert len(times) == 15
