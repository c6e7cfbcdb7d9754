"""What a task may set of a pilot: which settings, and which values."""

from __future__ import annotations

from typing import Dict

import pytest

from pilot import settings
from protocol import per_task
from protocol.errors import PilotageError
from protocol.settings import TASK


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"limits.looping_seconds": "soon"}, "pilotSettings: limits.looping_seconds must be a whole number"),
        ({"limits.looping_seconds": "-1"}, "must be from 0 to 31536000"),
        ({"limits.loping_seconds": "1"}, "is not for a task to set; did you mean limits.looping_seconds?"),
        ({"Limits.looping_seconds": "1"}, "is not for a task to set; did you mean limits.looping_seconds?"),
        ({"payload.executor": "plain"}, "is not for a task to set; it may set limits.looping_seconds, "),
        ({"limits.monitors": "disk"}, "is not for a task to set"),
        ({"": "1"}, "is not for a task to set"),
        ({"x\x1b[2J" + "y" * 9999: "1"}, r"'x\\x1b[2Jyyy"),
        ({"limits.credentials_needed": "perhaps"}, "must be yes or no"),
    ],
)
def test_what_is_not_for_a_task_to_set_is_refused_with_what_is(wanted: Dict[str, str], said: str) -> None:
    with pytest.raises(PilotageError) as caught:
        per_task.check({"limits.cpu_seconds": "60", **wanted})
    assert caught.value.name == "BAD_REQUEST"
    assert said in caught.value.detail
    assert len(caught.value.detail) < 1000


def test_what_is_for_a_task_to_set_passes() -> None:
    per_task.check(
        {"limits.looping_seconds": "0", "services.benchmark": "yes", "services.benchmark_seconds": "1.5"}
    )


def test_the_pilot_knows_these_settings_and_marks_no_others_as_a_tasks() -> None:
    assert {row.name for row in settings.TABLE.rows if TASK in row.overridable} == {
        row.name for row in per_task.ROWS
    }
