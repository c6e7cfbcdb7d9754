"""F22: pilots of another version: words with fields that the server does not know, and without those that are new."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

import pytest

from pilot.server_client import ServerClient
from protocol.messages import pilots, to_wire, wire_name
from tests.faults.crew import EVERY_STEP, Habits
from tests.faults.installation import Installation

FIRST_FIELDS = {
    "PilotRegistration": ("pilot_id", "node", "version", "queue"),
    "GetJobRequest": ("request_id", "pilot_id", "queue"),
    "AttemptUpdate": ("attempt_id", "attempt_token", "seq", "moves", "outputs"),
    "Heartbeat": ("pilot_id", "attempts"),
    "HeldAttempt": ("attempt_id", "attempt_token"),
}
"""What pilots of the first version say, and nothing that came later."""


class Older(ServerClient):
    """Says what is needed, and nothing else."""

    def _post(self, path: str, word: Any, seconds: Optional[float] = None) -> Mapping[str, Any]:
        names = FIRST_FIELDS[type(word).__name__]
        return super()._post(
            path,
            {wire_name(name): getattr(word, name) for name in names if getattr(word, name) is not None},
            seconds,
        )


class Newer(ServerClient):
    """Says at each place something more that this server cannot know."""

    def _post(self, path: str, word: Any, seconds: Optional[float] = None) -> Mapping[str, Any]:
        return super()._post(path, _enriched(to_wire(word)), seconds)


def _enriched(value: Any) -> Any:
    if isinstance(value, list):
        return [_enriched(each) for each in value]
    if not isinstance(value, dict) or "adler32" in value:
        return value
    more = {"ofTomorrow": {"a": [1, None]}, "alsoNew": "x"}
    return {**{name: _enriched(each) for name, each in value.items()}, **more}


@pytest.mark.parametrize("client", [Older, Newer])
def test_f22_pilots_of_another_version_do_their_jobs(where: Installation, client: type[ServerClient]) -> None:
    queue = where.queue(lease_seconds=2, heartbeat_seconds=1)
    task = where.submit(queue, 20)
    habits = Habits(client=client, payload_seconds=(0.0, 1.5), steps=EVERY_STEP)
    with where.crew(queue, 4, habits) as crew:
        view = where.ended(task, crew)
    assert view.counts == {"COMPLETED": 20}
    _, attempts = where.rows([task])
    assert {row["error"] for row in attempts} == {None}
    where.judge(f"F22 {client.__name__.lower()} pilots", [task], crew.history)


def test_the_fields_that_an_older_pilot_leaves_out_have_defaults() -> None:
    """So that a field which is added later without one is seen here and not in the field."""
    for name, first in FIRST_FIELDS.items():
        for each in dataclasses.fields(getattr(pilots, name)):
            has_default = (each.default, each.default_factory) != (dataclasses.MISSING,) * 2
            assert each.name in first or has_default, f"{name}.{each.name}"
