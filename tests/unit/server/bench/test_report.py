"""Rows of a benchmark: medians, ratios, and whether a goal holds."""

from __future__ import annotations

import json

import pytest

from server.bench.report import Goal, Row, as_json


def row(values: list[float], goal: Goal | None = None, reference: list[float] | None = None) -> Row:
    return Row("a name", "sqlite", "jobs/s", values, reference or [], goal)


def test_a_row_tells_the_median_and_the_spread() -> None:
    wire = row([5.0, 1.0, 3.0]).wire()
    assert (wire["median"], wire["min"], wire["max"], wire["runs"]) == (3.0, 1.0, 5.0, 3)
    assert (wire["reference"], wire["ratio"], wire["goal"], wire["holds"]) == (None, None, None, None)


@pytest.mark.parametrize(
    ("goal", "holds"),
    [
        (Goal(90), True),
        (Goal(110), False),
        (Goal(110, at_least=False), True),
        (Goal(90, at_least=False), False),
        (Goal(0.8, of_reference=True), True),
        (Goal(0.9, of_reference=True), False),
        (Goal(0.8, at_least=False, of_reference=True), True),
    ],
)
def test_a_goal_bounds_the_median_or_its_ratio_to_the_reference(goal: Goal, holds: bool) -> None:
    assert row([100.0], goal, [125.0]).holds is holds


def test_a_goal_is_told_in_words() -> None:
    assert row([1.0], Goal(490)).wire()["goal"] == "≥ 490 jobs/s"
    assert (
        row([1.0], Goal(1.25, at_least=False, of_reference=True)).wire()["goal"] == "≤ 1.25 of the reference"
    )


def test_what_was_not_measured_neither_holds_nor_fails() -> None:
    assert row([], Goal(1)).holds is None
    assert row([1.0], Goal(0.8, of_reference=True)).holds is None


def test_a_figure_that_is_good_does_not_hold_when_something_beside_it_went_wrong() -> None:
    failed = row([100.0], Goal(1))
    failed.failed = True
    assert failed.holds is False


def test_json_is_rows_and_one_object_about_the_machine() -> None:
    said = json.loads(as_json([row([1.0])], {"cores": 2}))
    assert [each["name"] for each in said["rows"]] == ["a name"]
    assert said["machine"] == {"cores": 2}
