"""Verdicts on what a payload uses."""

from __future__ import annotations

import math
from typing import Optional

import pytest

from pilot import limits
from pilot.limits import MIB
from protocol.errors import PilotageError


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (limits.walltime(99, 100), None),
        (limits.walltime(100, 100), "WALLTIME_EXCEEDED"),
        (limits.walltime(1e9, 0), None),
        (limits.cpu_time(99, 100), None),
        (limits.cpu_time(100, 100), "CPU_TIME_EXCEEDED"),
        (limits.cpu_time(1e9, 0), None),
        (limits.text(5 * MIB, 5), None),
        (limits.text(5 * MIB + 1, 5), "STDOUT_TOO_LARGE"),
        (limits.text(1 << 50, 0), None),
        (limits.work_directory(10 * MIB, 10), None),
        (limits.work_directory(10 * MIB + 1, 10), "WORK_DIRECTORY_TOO_LARGE"),
        (limits.work_directory(1 << 50, 0), None),
        (limits.work_directory(1, 10, is_whole=False), "WORK_DIRECTORY_TOO_LARGE"),
        (limits.work_directory(1, 0, is_whole=False), None),
        (limits.output("a", 3 * MIB, 3), None),
        (limits.output("a", 3 * MIB + 1, 3), "OUTPUT_TOO_LARGE"),
        (limits.looping(49, 50), None),
        (limits.looping(50, 50), "LOOPING_JOB"),
        (limits.looping(1e9, 0), None),
        (limits.processes(7, 7), None),
        (limits.processes(8, 7), "TOO_MANY_PROCESSES"),
        (limits.processes(10**6, 0), None),
        (limits.memory(150, 150, 100), None),
        (limits.memory(151, 150, 100), "PAYLOAD_MEMORY_LIMIT"),
        (limits.memory(151, 150, 0), "PAYLOAD_OUT_OF_MEMORY"),
        (limits.memory(1e9, math.inf, 0), None),
        (limits.free_disk(10, 64, grows=True), "NO_LOCAL_SPACE"),
        (limits.free_disk(10, 64, grows=False), None),
        (limits.free_disk(64, 64, grows=True), None),
        (limits.credentials(-1, "the proxy", needed=True), "CREDENTIALS_EXPIRED"),
        (limits.credentials(-1, "the proxy", needed=False), None),
        (limits.credentials(1, "the proxy", needed=True), None),
    ],
)
def test_what_passes_a_limit_gets_the_error_of_that_limit(
    found: Optional[PilotageError], error: Optional[str]
) -> None:
    assert (found.name if found else None) == error


def test_the_detail_says_what_was_used_and_what_is_allowed() -> None:
    found = limits.work_directory(30 * MIB, 10)
    assert found is not None and "30 MiB" in found.detail and "10 MiB" in found.detail


@pytest.mark.parametrize(
    ("asked", "percent", "otherwise", "share", "allowed"),
    [
        (1000, 150, 0, 8000, 1500),
        (1000, 150, 0, 1200, 1200),
        (1000, 150, 0, 950, 1000),
        (1000, 0, 700, 8000, 8000),
        (0, 150, 700, 8000, 700),
        (0, 150, 0, 8000, 8000),
        (0, 150, 0, 0, math.inf),
        (1000, 150, 0, 0, 1500),
    ],
)
def test_memory_that_was_asked_for_is_granted_and_more_only_while_the_slot_has_it(
    asked: int, percent: float, otherwise: int, share: float, allowed: float
) -> None:
    assert limits.memory_allowed(asked, percent, otherwise, share) == allowed


def test_who_grows_is_looked_at_before_the_limit_is_reached() -> None:
    assert limits.seconds_until_full(used=50, before=40, seconds=2, allowed=60) == 2
    assert limits.seconds_until_full(used=50, before=50, seconds=2, allowed=60) == math.inf
    assert limits.seconds_until_full(used=70, before=40, seconds=2, allowed=60) == 0
    assert limits.seconds_until_full(used=50, before=40, seconds=2, allowed=math.inf) == math.inf
