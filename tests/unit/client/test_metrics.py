"""Numbers over time as lines of a table."""

from __future__ import annotations

from client.metrics import Line, lines_of, sparkline
from protocol.messages.views import AttemptMetrics, MetricPoint


def test_the_lines_of_an_attempt_end_with_the_last_numbers() -> None:
    points = [MetricPoint("t1", {"b": 1.0}), MetricPoint("t2", {"b": 2.0, "a": 5.0})]
    found = lines_of(AttemptMetrics(1, 1, "RUNNING", {"b": 3.0}, points))
    assert found == [Line("a", [5.0]), Line("b", [1.0, 2.0, 3.0])]


def test_a_curve_goes_from_the_least_to_the_most_and_fits_its_column() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([1]) == "▁"
    curve = sparkline([0.0] * 500 + [9.0] + [0.0] * 499, width=20)
    assert len(curve) == 20 and curve.count("█") == 1
