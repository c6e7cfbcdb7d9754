"""F7, F8, F9, F11: replies that get lost, words that come twice, late and in any order, and a thousand that ask for a hundred jobs."""

from __future__ import annotations

from tests.faults import scenarios
from tests.faults.conftest import Install
from tests.faults.installation import Installation


def test_f07_sixty_lost_getjob_replies_cost_no_job_and_bring_none_twice(where: Installation) -> None:
    assert scenarios.lost_replies(where, drops=60).rounds >= 60


def test_f08_updates_whose_reply_is_lost_and_that_come_up_to_fifty_times_count_once(
    where: Installation,
) -> None:
    assert scenarios.repeated_words(where, n_jobs=25).more["reply lost"]


def test_f09_words_that_are_lost_late_and_out_of_order_move_no_job_backwards(install: Install) -> None:
    with install(extra=scenarios.SOON_UNACKNOWLEDGED) as where:
        tally = scenarios.bad_weather(where, n_jobs=25, longest_seconds=4.0)
    assert tally.more["late copy"] and tally.more["reply lost"]


def test_f11_a_thousand_requests_at_once_for_a_hundred_jobs_are_a_hundred_grants(where: Installation) -> None:
    assert scenarios.stampedes(where, rounds=1).jobs == 100
