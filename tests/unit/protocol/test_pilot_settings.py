"""What a queue and a task may set of a pilot: which settings, and which values."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from pilot import plugins
from pilot.plugins import executors
from protocol import pilot_settings
from protocol.errors import PilotageError
from protocol.settings import QUEUE, TASK


def refusal(level: str, wanted: Dict[str, str]) -> str:
    with pytest.raises(PilotageError) as caught:
        pilot_settings.check(level, {"limits.cpu_seconds": "60", **wanted})
    assert caught.value.name == "BAD_REQUEST"
    assert len(caught.value.detail) < 1000
    return caught.value.detail


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"limits.looping_seconds": "soon"}, "pilotSettings: limits.looping_seconds must be a whole number"),
        ({"limits.looping_seconds": "-1"}, "must be from 0 to 31536000"),
        ({"limits.loping_seconds": "1"}, "is not for a task to set; did you mean limits.looping_seconds?"),
        ({"Limits.looping_seconds": "1"}, "is not for a task to set; did you mean limits.looping_seconds?"),
        ({"payload.executor": "plain"}, "is not for a task to set; its queue may"),
        ({"limits.max_jobs": "1"}, "is not for a task to set; pilot.ini on the node may"),
        ({"limits.x": "1"}, "is not for a task to set; of [limits] it may set looping_seconds, "),
        ({"": "1"}, "it is SECTION.KEY, and the sections are limits, copytools, services"),
        ({"x\x1b[2J" + "y" * 9999: "1"}, r"'x\\x1b[2Jyyy"),
        ({"limits.credentials_needed": "perhaps"}, "must be yes or no"),
    ],
)
def test_what_is_not_for_a_task_to_set_is_refused_with_what_is(wanted: Dict[str, str], said: str) -> None:
    assert said in refusal(TASK, wanted)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"payload.exekutor": "plain"}, "is not for a queue to set; did you mean payload.executor?"),
        ({"node_settings.slots": "2"}, "is not for a queue to set; pilot.ini on the node may"),
        ({"payload.zzz": "2"}, "of [payload] it may set executor, image, "),
        (
            {"payload.executor": "srun, aptainer"},
            "payload.executor 'aptainer' is not known; did you mean apptainer?",
        ),
        (
            {"payload.executor": "docker"},
            "there are apptainer, bubblewrap, mpiexec, plain, srun, and those of pac",
        ),
        ({"limits.monitors": "dsk"}, "did you mean disk?"),
        ({"experiment.plugin": "lhcb"}, "experiment.plugin 'lhcb' is not known; there are generic, spd, "),
        ({"limits.executor": "plain"}, "did you mean payload.executor?"),
        ({"nothing": "2"}, "it is SECTION.KEY, and the sections are node_settings, get_job, limits, "),
        ({"get_job.stage_ahead": "11"}, "get_job.stage_ahead must be from 0 to 10, not '11'"),
        ({"validation.gpu": "maybe"}, "validation.gpu must be yes or no, not 'maybe'"),
        ({"node_settings.cache_directory": "cache"}, "must be an absolute path here"),
    ],
)
def test_what_is_not_for_a_queue_to_set_is_refused_with_what_is(wanted: Dict[str, str], said: str) -> None:
    assert said in refusal(QUEUE, wanted)


def test_what_is_for_a_task_to_set_passes() -> None:
    pilot_settings.check(
        TASK,
        {"limits.looping_seconds": "0", "services.benchmark": "yes", "services.benchmark_seconds": "1.5"},
    )


def test_a_queue_may_set_what_a_task_may_and_more() -> None:
    pilot_settings.check(QUEUE, {"limits.looping_seconds": "0", "payload.executor": "srun, apptainer"})
    assert all(QUEUE in row.overridable for row in pilot_settings.ROWS if TASK in row.overridable)


def test_the_plugins_that_are_named_here_are_those_of_the_pilot() -> None:
    assert set(pilot_settings.EXECUTORS) == set(executors.EXECUTORS.names())
    assert set(pilot_settings.EXPERIMENTS) == set(plugins.EXPERIMENTS.names())


def test_a_plugin_of_a_package_that_is_installed_here_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd-1.dist-info").mkdir()
    (tmp_path / "odd-1.dist-info" / "METADATA").write_text("Name: odd\nVersion: 1\n")
    (tmp_path / "odd-1.dist-info" / "entry_points.txt").write_text("[pilotage.executors]\nodd = odd\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pilot_settings.check(QUEUE, {"payload.executor": "odd, apptainer"})


@pytest.mark.parametrize(
    ("said", "lets"),
    [({}, False), ({"payload.task_images": "Yes"}, True), ({"payload.task_images": "?"}, False)],
)
def test_a_queue_lets_tasks_name_images_if_it_says_so(said: Dict[str, str], lets: bool) -> None:
    assert pilot_settings.lets_tasks_name_images(said) is lets
