"""Which needs fit which offer, and the reasons when they do not."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.resources import Needs, Offer, ResourceType, fits, misfits

OFFER = Offer(
    ResourceType.CPU, "CPU", cores=8, memory_mb=16_000, disk_mb=100_000, walltime_seconds=3600, label="user"
)


@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"cores": 8},
        {"memory_mb": 16_000},
        {"disk_mb": 100_000},
        {"walltime_seconds": 3600},
        {"queue": "CPU"},
        {"label": "user"},
    ],
)
def test_what_is_offered_fits(needs: Dict[str, Any]) -> None:
    assert misfits(Needs(**needs), OFFER) == []
    assert fits(Needs(**needs), OFFER)


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"cores": 9}, "it needs 9 cores and 8 are offered"),
        ({"memory_mb": 16_001}, "it needs 16001 MB of memory and 16000 are offered"),
        ({"disk_mb": 100_001}, "it needs 100001 MB of disk and 100000 are offered"),
        ({"gpus": 1}, "it needs 1 GPUs and 0 are offered"),
        ({"walltime_seconds": 3601}, "it needs 3601 s of wall time and 3600 s are left"),
        ({"queue": "OTHER"}, "it is bound to the queue OTHER"),
        ({"label": "test"}, "its label is test and the pilot takes only user"),
        ({"resource_type": ResourceType.GPU}, "it needs a gpu queue and CPU is a cpu queue"),
        (
            {"image": True},
            "it names a container image, and CPU runs no containers for tasks (payload.task_images)",
        ),
    ],
)
def test_what_is_not_offered_is_told_in_words(needs: Dict[str, Any], reason: str) -> None:
    assert misfits(Needs(**needs), OFFER) == [reason]
    assert not fits(Needs(**needs), OFFER)


def test_all_reasons_are_told_and_not_only_the_first() -> None:
    assert len(misfits(Needs(ResourceType.GPU, 9, 16_001, 100_001, 3601, 1, "OTHER", "test"), OFFER)) == 8


def test_a_pilot_without_a_label_takes_every_label_and_without_a_limit_any_wall_time() -> None:
    anybody = dataclasses.replace(OFFER, label="", walltime_seconds=0)
    assert fits(Needs(label="test", walltime_seconds=10**9), anybody)


@settings(derandomize=True, database=None)
@given(st.data())
def test_who_offers_more_takes_at_least_what_who_offers_less_takes(data: st.DataObject) -> None:
    def sizes(**least: int) -> Dict[str, int]:
        names = ("cores", "memory_mb", "disk_mb", "gpus")
        return {name: data.draw(st.integers(least.get(name, 0), least.get(name, 0) + 5)) for name in names}

    needs, small = sizes(), sizes()
    large = sizes(**small)
    if fits(Needs(**needs), Offer(ResourceType.CPU, "q", **small)):
        assert fits(Needs(**needs), Offer(ResourceType.CPU, "q", **large))
