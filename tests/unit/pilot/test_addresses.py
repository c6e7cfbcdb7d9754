"""Addresses that a queue's nodes reach by another way."""

from __future__ import annotations

import pytest

from pilot.addresses import directory, rewritten, rules
from protocol.errors import PilotageError

RULES = rules(
    ["root://eos.example//store -> file:///eos/store", "root://eos.example//store/ -> never:", "davs://a/ -> davs://b:8/"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("root://eos.example//store/run-1/a%20b.spd", "file:///eos/store/run-1/a%20b.spd"),
        ("root://eos.example//store-2/a", "root://eos.example//store-2/a"),
        ("root://eos.example//store", "root://eos.example//store"),
        ("davs://a/x", "davs://b:8/x"),
        ("file:///eos/store/a", "file:///eos/store/a"),
    ],
)
def test_the_first_rule_that_fits_up_to_a_slash_is_taken(url: str, expected: str) -> None:
    assert rewritten(url, RULES) == expected


@pytest.mark.parametrize("text", ["root://a", "root://a => file:///b", "/a -> file:///b", "root://a ->", ""])
def test_what_is_no_rule_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(PilotageError) as caught:
        rules([text])
    assert caught.value.name == "BAD_SETTINGS"
    assert "write root://eos.example//store -> file:///eos/store" in str(caught.value)


def test_a_storage_is_where_its_outputs_go() -> None:
    """Also one that a rule names as a whole: whether its directory is mounted is looked at there."""
    assert directory("root://eos.example//store", RULES) == "file:///eos/store"
    assert directory("root://eos.example//store/run/", RULES) == "file:///eos/store/run"
    assert directory("file:///other", RULES) == "file:///other" and directory("", RULES) == ""
