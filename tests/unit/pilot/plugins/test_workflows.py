"""Workflows: their names, and whose word counts more than their defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot import settings as tables
from pilot.plugins import workflows
from pilot.plugins.workflows.base import Steps, Workflow
from protocol.errors import PilotageError
from protocol.settings import Settings


def loaded(place: Path, name: str = "", **environ: str) -> Settings:
    given = {"node_settings__workflow": name or None}
    named = {f"PILOTAGE_{key}": value for key, value in environ.items()}
    return tables.load(given, start=place, environ=named)


@pytest.mark.parametrize(
    ("name", "label", "looping", "ahead", "same"),
    [
        ("", "user", 7200, 0, False),
        ("generic", "user", 7200, 0, False),
        ("production", "managed", 43_200, 1, False),
        ("user", "user", 7200, 0, True),
        ("analysis", "user", 7200, 0, True),
    ],
)
def test_141_a_workflow_has_defaults_that_suit_its_work(
    name: str, label: str, looping: int, ahead: int, same: bool, tmp_path: Path
) -> None:
    found = loaded(tmp_path, name)
    assert found.text("node_settings", "label") == label
    assert found.integer("limits", "looping_seconds") == looping
    assert found.integer("get_job", "stage_ahead") == ahead
    assert found.flag("get_job", "allow_same_user") is same


def test_what_somebody_has_said_counts_more_than_a_workflow(tmp_path: Path) -> None:
    (tmp_path / "pilot.ini").write_text("[limits]\nlooping_seconds = 7200\n")
    found = loaded(tmp_path, "production", NODE_SETTINGS__LABEL="user")
    assert found.integer("limits", "looping_seconds") == 7200, "also where it is the usual default"
    assert found.text("node_settings", "label") == "user"
    assert found.integer("get_job", "stage_ahead") == 1
    assert found.origin("get_job", "stage_ahead") == "workflow production"


def test_a_name_that_nobody_has_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        PilotageError, match="no workflow nope; there are analysis, generic, production, user"
    ) as caught:
        loaded(tmp_path, "nope")
    assert caught.value.name == "BAD_SETTINGS"


def test_a_default_for_a_setting_that_there_is_not_names_the_workflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = type("Wrong", (Workflow,), {"defaults": {"limits.loping_seconds": 1}})
    monkeypatch.setattr(workflows, "load", lambda name: wrong())
    with pytest.raises(PilotageError, match=r"workflow generic: there is no setting limits\.loping_seconds"):
        loaded(tmp_path)


@pytest.mark.parametrize("name", workflows.names())
def test_all_of_ours_do_with_jobs_what_is_usual_and_nothing_beside(name: str) -> None:
    workflow, usual = workflows.load(name), Steps(*[print] * 4)
    assert workflow.steps(None, usual) == usual  # type: ignore[arg-type]
    assert workflow.threads(None) == {}  # type: ignore[arg-type]
