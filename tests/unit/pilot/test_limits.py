"""Verdicts on what a payload uses."""

from __future__ import annotations

import pytest

from pilot.limits import MIB, Limits, Sample, next_look, verdict

LIMITS = Limits(walltime_seconds=100, disk_mb=10, stdout_mb=5, looping_seconds=50)


def test_a_payload_within_its_limits_goes_on() -> None:
    assert verdict(Sample(99, 10 * MIB, 5 * MIB, 49), LIMITS) is None


def test_without_limits_everything_is_allowed() -> None:
    assert verdict(Sample(1e9, 1 << 50, 1 << 50, 1e9), Limits()) is None


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        (Sample(100), "WALLTIME_EXCEEDED"),
        (Sample(1, disk_bytes=10 * MIB + 1), "WORK_DIRECTORY_TOO_LARGE"),
        (Sample(1, text_bytes=5 * MIB + 1), "STDOUT_TOO_LARGE"),
        (Sample(60, quiet_seconds=50), "LOOPING_JOB"),
        (Sample(100, 11 * MIB, 6 * MIB, 50), "WALLTIME_EXCEEDED"),
    ],
)
def test_the_limit_that_is_passed_names_the_error(sample: Sample, error: str) -> None:
    found = verdict(sample, LIMITS)
    assert found is not None and found.name == error


def test_the_detail_says_what_was_used_and_what_is_allowed() -> None:
    found = verdict(Sample(1, disk_bytes=30 * MIB), LIMITS)
    assert found is not None and "30 MiB" in found.detail and "10 MiB" in found.detail


def test_the_next_look_is_not_later_than_the_end_of_the_wall_time() -> None:
    assert next_look(10, LIMITS, 2) == 2
    assert next_look(99.5, LIMITS, 2) == 0.5
    assert next_look(101, LIMITS, 2) == 0
    assert next_look(1e6, Limits(), 2) == 2
