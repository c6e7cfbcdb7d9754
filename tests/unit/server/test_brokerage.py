"""Classes of needs: equal needs are one class, and a class tells its needs again."""

from __future__ import annotations

import dataclasses
import json

import pytest

from protocol.messages import to_wire
from protocol.messages.requests import TaskSpec
from protocol.resources import Needs, ResourceType
from server.brokerage.broker import needs_in, needs_of

SPEC = TaskSpec("t", ["true"], n_jobs=1)


def key(spec: TaskSpec) -> str:
    return json.dumps(to_wire(needs_of(spec)), sort_keys=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cores": 4, "memory_mb": 100, "disk_mb": 5, "walltime_seconds": 60, "gpus": 2},
        {"resource_type": ResourceType.GPU, "queue": "GPU", "prod_source_label": "test"},
    ],
)
def test_a_class_tells_the_needs_it_was_made_of(changes: dict[str, object]) -> None:
    needs = needs_of(dataclasses.replace(SPEC, **changes))
    assert needs_in(json.dumps(to_wire(needs), sort_keys=True)) == needs


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "u"},
        {"priority": 9},
        {"command": ["false"]},
        {"max_attempts": 1},
        {"environment": {"A": "b"}},
        {"tags": ["smb"]},
    ],
)
def test_what_is_no_need_makes_no_other_class(changes: dict[str, object]) -> None:
    assert key(dataclasses.replace(SPEC, **changes)) == key(SPEC)


def test_every_need_makes_another_class() -> None:
    keys = {key(SPEC)}
    changes = {"cores": 2, "memory_mb": 1, "disk_mb": 1, "walltime_seconds": 1, "gpus": 1, "queue": "Q"}
    changes |= {"site": "S", "working_group": "W", "country_group": "C", "requires": ["root"], "image": "i"}
    for name, value in (*changes.items(), ("prod_source_label", "x"), ("resource_type", ResourceType.GPU)):
        keys.add(key(dataclasses.replace(SPEC, **{name: value})))
    assert len(keys) == 1 + len(dataclasses.fields(Needs))
