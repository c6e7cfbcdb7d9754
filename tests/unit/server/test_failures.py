"""Signatures of failures, and the causes that their places suggest."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.failures import LONGEST_SIGNATURE, Failures, Place, propose, signature


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("event 17 of 2000 took 3.5 s", "event 4 of 90 took 12 s"),
        ("segfault at 0x7ffe12ab in reco", "segfault at 0x0 in reco"),
        ("cannot open /scratch/job-17/in/f.spd", "cannot open /var/tmp/j/f.spd"),
        ("KeyError: 'energy'", "KeyError: 'momentum'"),
        ("root://eos.example//a/b.root is not there", "root://other.example//c.root is not there"),
        ("sha 0a1b2c3d4e differs", "sha 99aaffbb00 differs"),
    ],
)
def test_98_what_differs_from_job_to_job_is_no_part_of_a_signature(one: str, other: str) -> None:
    assert signature(one) == signature(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("terminate: 'std::bad_alloc' in reco", "terminate: 'std::logic_error' in reco"),
        ("cannot open /scratch/geometry.db", "cannot open /scratch/field.db"),
        ("exit code 1 in reco", "exit code 1 in simu"),
    ],
)
def test_98_what_tells_failures_apart_is_kept(one: str, other: str) -> None:
    assert signature(one) != signature(other)


@given(st.text(max_size=400))
def test_98_a_signature_is_a_short_line_and_its_own_signature(text: str) -> None:
    once = signature(text)
    assert len(once) <= LONGEST_SIGNATURE
    assert "\n" not in once
    assert signature(once) == once


# -- causes -----------------------------------------------------------------------------------------------------------------


def place(node: str, site: str = "JINR") -> Place:
    return Place(node, f"{site}-CPU", f"{site}-disk", site)


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["exit code 3; run 42 of 'mu'", "exit code 3; run 42 of 'mu'"], "exit code 3; run 42 of 'mu'"),
        (["exit code 3; event 17 of 2", "exit code 3; event 4 of 2"], "exit code 3; event N of N"),
        (["exit code 3", "exit code 35"], "exit code N"),
        (["KeyError: 'energy'", "KeyError: 'mass'"], "KeyError: <name>"),
        (["17 of 4", "3 of 4"], "N of N"),
        (["", ""], ""),
    ],
)
def test_98_what_all_failures_say_is_shown_as_they_say_it(texts: list[str], shown: str) -> None:
    found = Failures("PAYLOAD_FAILED", signature(texts[0]), min(texts), max(texts))
    assert found.text == shown
    assert signature(found.text) == found.signature


def failures(places: dict[Place, int], error: str = "PAYLOAD_FAILED", **numbers: int) -> Failures:
    n = sum(places.values())
    return Failures(error, "", places=Counter(places), n_attempts=n, **{"n_jobs": n, **numbers})


FINE = Counter({place("n1"): 50, place("n2"): 40, place("m1", "PNPI"): 30})


def test_98_a_node_on_which_nothing_succeeds_while_others_do_is_at_fault() -> None:
    cause = propose(failures({place("n12"): 37}), FINE, False)
    assert (cause.kind, cause.where) == ("node", ("n12",))


def test_98_jobs_that_fail_on_every_node_are_at_fault_themselves_or_what_they_read_is() -> None:
    found = failures({place("n1"): 2, place("n2"): 2, place("m1", "PNPI"): 2}, n_jobs=2, n_spread=2)
    assert propose(found, FINE, False).kind == "payload"
    assert propose(found, FINE, True).kind == "input"


@pytest.mark.parametrize(("error", "kind"), [("STAGE_OUT_FAILED", "storage"), ("NO_PROXY", "site")])
def test_98_where_all_nodes_of_a_site_fail_its_storage_or_the_site_is_at_fault(error: str, kind: str) -> None:
    found = failures({place("m1", "PNPI"): 5, place("m2", "PNPI"): 5}, error, n_recovered=10)
    cause = propose(found, Counter({place("n1"): 50}), False)
    assert cause.kind == kind
    assert cause.where[0].startswith("PNPI")


def test_98_without_any_success_on_several_nodes_the_payload_is_at_fault() -> None:
    found = failures({place("n1"): 5, place("n2"): 5}, "LOST_HEARTBEAT")
    assert propose(found, Counter(), False).kind == "payload"


def test_98_where_no_place_stands_out_the_catalogue_says_whose_fault_it_is() -> None:
    found = failures({place("n1"): 5, place("n2"): 5}, "NO_LOCAL_SPACE")
    assert propose(found, FINE, False).kind == "node"
    assert not propose(found, FINE, False).where


def test_98_where_one_node_alone_has_worked_its_place_is_no_evidence() -> None:
    found = failures({place("n1"): 5}, "NO_LOCAL_SPACE")
    alone = propose(found, Counter({place("n1"): 5}), False)
    assert "n1 alone has worked for the task" in alone.why
    assert propose(found, Counter(), False).why == alone.why
    assert "alone" not in propose(found, FINE, False).why


def test_98_one_failure_of_one_job_accuses_no_node() -> None:
    assert propose(failures({place("n12"): 1}), FINE, False).kind == "payload"
