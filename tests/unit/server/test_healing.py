"""The rules of self-healing: how their file is read, and how much more memory a job gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BY_NAME, CATALOGUE, PilotageError, Retry
from server import dispatcher, healing, settings
from server.healing import Healing, Rule, stepped

OWN = {"QUEUE_WITHOUT_CONTAINERS": Rule(Retry.ELSEWHERE, times=2, avoid_queue=True)}
"""Without an operator's word: where no node of the same queue would do better."""


def rules(tmp_path: Path, text: str) -> Healing:
    path = tmp_path / "rules.ini"
    path.write_text(text)
    return Healing(healing.read(path))


def test_98_without_rules_the_catalogue_says_how_each_error_is_tried_again() -> None:
    for entry in CATALOGUE:
        assert Healing().rule_for(entry) == OWN.get(entry.name, Rule(entry.retry))


def test_98_a_rule_goes_before_the_servers_own(tmp_path: Path) -> None:
    found = rules(tmp_path, "[QUEUE_WITHOUT_CONTAINERS]\nretry = never\n")
    assert found.rule_for(BY_NAME["QUEUE_WITHOUT_CONTAINERS"]).retry is Retry.NEVER


def test_98_a_rule_for_an_error_goes_before_one_for_its_blame(tmp_path: Path) -> None:
    found = rules(
        tmp_path,
        "[blame storage]\nretry = later\npause_seconds = 60\n[Stage_In_Failed]\nretry = elsewhere\navoid = queue\ntimes = 1\n",
    )
    assert found.rule_for(BY_NAME["STAGE_IN_FAILED"]) == Rule(Retry.ELSEWHERE, 1, avoid_queue=True)
    assert found.rule_for(BY_NAME["STAGE_OUT_FAILED"]) == Rule(Retry.LATER, 3, pause_seconds=60)
    assert found.rule_for(BY_NAME["PAYLOAD_FAILED"]) == Rule(BY_NAME["PAYLOAD_FAILED"].retry)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[PAYLOAD_FALED]\nretry = now\n", "line 1: .*did you mean PAYLOAD_FAILED"),
        ("[blame ghost]\nretry = now\n", "line 1: .*blame"),
        ("[PAYLOAD_FAILED]\ntimes = 2\n", "line 1: a rule needs retry"),
        ("[PAYLOAD_FAILED]\nretry = sometimes\n", "line 2: retry must be one of never, now"),
        ("[PAYLOAD_FAILED]\nretry = now\ntimes = 0\n", "line 3: times must be from 1 to 100"),
        ("[PAYLOAD_FAILED]\nretry = now\nfactor = 2\n", "factor goes with retry = more memory only"),
        ("[PAYLOAD_FAILED]\nretry = now\ncolour = 2\n", "line 3: no key colour in a rule"),
    ],
)
def test_98_a_wrong_rule_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PilotageError, match=said):
        rules(tmp_path, text)


# -- memory -----------------------------------------------------------------------------------------------------------------

MORE = Rule(Retry.MORE_MEMORY)


@pytest.mark.parametrize(
    ("needed", "peak", "largest", "gets"),
    [
        (1000, 0, 64_000, 2048),
        (1000, 1500, 64_000, 3072),
        (0, 500, 64_000, 1024),
        (0, 0, 64_000, 4096),
        (1000, 0, 1800, 1800),
        (1000, 0, 1000, 1000),
        (1000, 0, 0, 0),
    ],
)
def test_98_more_memory_is_more_than_was_used_and_no_more_than_there_is(
    needed: int, peak: float, largest: int, gets: int
) -> None:
    assert Healing().memory(MORE, needed, peak, largest) == gets


def test_98_the_operators_limit_goes_before_the_largest_pilot() -> None:
    assert Healing(memory_limit_mb=3000).memory(MORE, 2000, 0, 64_000) == 3000
    assert Healing(memory_limit_mb=8000).memory(MORE, 2000, 0, 0) == 4096
    assert Healing().memory(Rule(Retry.MORE_MEMORY, factor=1.5, limit_mb=2500), 2000, 0, 64_000) == 2500


@given(st.integers(1, 10**9))
def test_98_steps_are_few_and_never_less(size: int) -> None:
    assert size <= stepped(size) <= size * 1.34 + 1
    assert stepped(size) == stepped(stepped(size))


def test_98_the_server_does_not_start_with_rules_that_it_cannot_read(tmp_path: Path) -> None:
    given = {"healing__rules": str(tmp_path / "none.ini"), "server__state_directory": str(tmp_path / "state")}
    with pytest.raises(PilotageError, match="none.ini: cannot be read"):
        dispatcher.serve(settings.load(given, None, {}, tmp_path))
    assert not (tmp_path / "state").exists()
