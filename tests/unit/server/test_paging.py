"""How times are written."""

from __future__ import annotations

import pytest

from server.paging import iso


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (1e9 + 0.0005, "2001-09-09T01:46:40.000Z"),
        (1e11, "5138-11-16T09:46:40.000Z"),
    ],
)
def test_a_time_is_written_in_utc_to_the_millisecond(seconds: float, text: str) -> None:
    assert iso(seconds) == text
