"""Fair share as a rule over plain data: what each branch gets in the long run, whatever the order in which it gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import pytest

from server.brokerage.shares import Share, turns

TREE = {
    "spd": Share(share=60),
    "theory": Share(share=40),
    "reco": Share("spd", share=75),
    "mc": Share("spd", share=25),
}


def handed_out(
    tree: Mapping[str, Share], waiting: Collection[str], n: int, cost: Mapping[str, float] | None = None
) -> Counter[str]:
    """Core-seconds per group after `n` jobs, each given to the group whose turn it is."""
    tree, used = dict(tree), Counter[str]()
    for _ in range(n):
        first = turns(tree, waiting)[0]
        seconds = (cost or {}).get(first, 1.0)
        tree[first] = replace(tree.get(first, Share()), usage=tree.get(first, Share()).usage + seconds)
        used[first] += seconds  # type: ignore[assignment]
    return used


def fractions(used: Counter[str]) -> dict[str, float]:
    total = sum(used.values())
    return {name: used[name] / total for name in used}


def test_shares_nest() -> None:
    got = fractions(handed_out(TREE, ["reco", "mc", "theory"], 10_000))
    assert got == pytest.approx({"reco": 0.45, "mc": 0.15, "theory": 0.40}, abs=0.002)


def test_what_a_branch_does_not_use_is_shared_by_its_siblings() -> None:
    got = fractions(handed_out(TREE, ["reco", "theory"], 10_000))
    assert got == pytest.approx({"reco": 0.6, "theory": 0.4}, abs=0.002)


def test_shares_count_in_core_seconds_and_not_in_jobs() -> None:
    got = fractions(handed_out(TREE, ["mc", "theory"], 10_000, {"mc": 9.0}))
    assert got == pytest.approx({"mc": 0.6, "theory": 0.4}, abs=0.002)


def test_a_group_that_nobody_defined_has_the_usual_share_beside_the_others() -> None:
    tree = {"a": Share(share=300)}
    assert turns(tree, ["", "a"]) == ["", "a"]
    assert turns({"a": Share(share=300, usage=2.0)}, ["", "a"])[0] == ""


def test_who_has_used_much_waits_until_the_others_have_caught_up() -> None:
    tree = {"a": Share(usage=100.0), "b": Share()}
    used = handed_out(tree, ["a", "b"], 100)
    assert used == {"b": 100}


def test_a_circle_among_parents_ends() -> None:
    assert set(turns({"a": Share("b"), "b": Share("a")}, ["a", "b"])) == {"a", "b"}


def test_without_use_the_order_is_the_same_each_time() -> None:
    assert turns(TREE, ["theory", "mc", "reco"]) == turns(TREE, ["reco", "theory", "mc"])
