"""F21: a job is cancelled before, while and after each word of its pilot."""

from __future__ import annotations

from tests.faults import scenarios
from tests.faults.installation import Installation


def test_f21_a_job_cancelled_at_any_word_is_cancelled_or_completed_and_never_both(
    where: Installation,
) -> None:
    tally = scenarios.cancellations(where, rounds=2)
    assert tally.more["cancelled"] and tally.more["completed"]
