"""Every experiment plugin: a hook that has nothing to say is harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot import plugins
from pilot import settings as tables
from pilot.jobrun import JobRun
from pilot.node import Node
from protocol.messages.pilots import InputFile, JobSpec
from protocol.resources import ResourceType

PLUGINS = ["generic", "spd"]


@pytest.fixture
def job(tmp_path: Path) -> JobRun:
    return JobRun(
        JobSpec(1, 1, 1, 1, 1, "t", ["echo", "{job_id}"], {"A": "{workdir}"}), tmp_path, lambda: None
    )


def test_every_plugin_of_the_tree_is_in_this_list() -> None:
    assert set(PLUGINS) <= set(plugins.names())
    folder = Path(plugins.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "base"} == set(PLUGINS)


@pytest.mark.parametrize("name", PLUGINS)
def test_without_settings_every_hook_is_harmless(name: str, job: JobRun, tmp_path: Path) -> None:
    plugin = plugins.load(name, tables.load(start=tmp_path, environ={}))
    plugin.check_node(Node("n", 1, 1, ResourceType.CPU))
    plugin.check_job(job)
    plugin.check_input(job, InputFile("a.txt", "s", "d", 1, {}, "file:///a"), tmp_path / "a.txt")
    assert plugin.in_environment(["echo"], tmp_path) == ["echo"]
    assert plugin.steps(job) == []
    assert plugin.payload_command(job, tmp_path) == ["echo", "1"]
    assert plugin.payload_environment(job, tmp_path) == {"A": str(tmp_path)}
    assert plugin.explain_failure(job, 97, "anything") is None
    assert plugin.job_metrics(job) == {}
    assert plugin.log_files(tmp_path) == []
