"""The checks of a node, one by one, and that all that is wrong is told together."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pilot import building
from pilot import settings as tables
from pilot.node import Node, fitness
from pilot.node.fitness import Finding, Level
from pilot.node.gpus import Gpu, Vendor
from pilot.plugins import executors
from pilot.plugins.base import ExperimentPlugin
from pilot.server_client import clock_skew
from protocol.errors import PilotageError
from protocol.resources import ResourceType

GPUS = tuple(Gpu(Vendor.NVIDIA, index, model="H200", memory_mb=143771, name=str(index)) for index in range(2))


CPU = Node("n1", 8, 4000, ResourceType.CPU)


class Picky(ExperimentPlugin):
    def check_node(self, node: Node) -> None:
        raise PilotageError("NODE_UNFIT", "no detector geometry here")


def examined(
    work: Path,
    here: Node = CPU,
    *,
    skew: float | None = 0.0,
    unusable: dict[str, str] | None = None,
    plugin: type[ExperimentPlugin] = ExperimentPlugin,
    path: str = "",
    **settings: str,
) -> list[Finding]:
    environ = {f"PILOTAGE_{name.upper()}": value for name, value in settings.items()}
    environ |= {"PATH": path}
    given = tables.load(environ=environ, start=work)
    return fitness.examine(
        given,
        here,
        work,
        tools=building.tools(given, environ).usable,
        unusable_tools=unusable or {},
        plugin=plugin(given),
        executor=executors.load(given.items("payload", "executor"), environ),
        clock_skew=skew,
    )


def told(findings: list[Finding], check: str) -> list[tuple[str, str]]:
    return [(finding.level.value, finding.detail) for finding in findings if finding.check == check]


def test_a_node_without_fault_is_fit(tmp_path: Path) -> None:
    findings = examined(tmp_path)
    fitness.judge(findings)
    assert not [finding for finding in findings if finding.level is Level.UNFIT]


def test_all_that_is_wrong_is_told_and_not_the_first_only(tmp_path: Path) -> None:
    findings = examined(
        tmp_path,
        Node("n1", 8, 4000, ResourceType.GPU),
        skew=-1000,
        unusable={"cp": "it is Sunday"},
        plugin=Picky,
        limits__free_disk_mb="900000000",
        validation__tools="sh,no-such-program,nor-this",
        validation__mounts=f"{tmp_path}/none",
        validation__clock_skew_seconds="60",
        copytools__names="cp",
    )
    with pytest.raises(PilotageError) as caught:
        fitness.judge(findings)
    assert caught.value.name == "NODE_UNFIT"
    for words in (
        "MiB are free in",
        "1000 s ahead of the server's; 60 are allowed",
        "the program no-such-program is not on PATH",
        "the program nor-this is not on PATH",
        "none is not to be used: No such file or directory",
        "no copytool works here; allowed are cp (cp: it is Sunday)",
        "this node shows no GPU",
        "no detector geometry here",
    ):
        assert words in caught.value.detail, words
    assert caught.value.detail.count(";") >= 7


@pytest.mark.parametrize(
    ("skew", "most", "level", "words"),
    [
        (0.0, "0", "ok", "agrees"),
        (4.0, "1", "unfit", "4 s behind the server's; 1 are allowed"),
        (-4.0, "0", "ok", "agrees"),
        (86_400.0, "0", "warning", "86400 s behind the server's"),
        (-60.0, "60", "warning", "60 s ahead of the server's"),
        (None, "60", "warning", "did not say"),
    ],
)
def test_a_clock_is_warned_about_and_refused_where_a_setting_says_so(
    skew: float | None, most: str, level: str, words: str, tmp_path: Path
) -> None:
    ((found, detail),) = told(examined(tmp_path, skew=skew, validation__clock_skew_seconds=most), "clock")
    assert found == level and words in detail


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        ("Sat, 21 Nov 2026 19:47:02 GMT", 0.0),
        ("Sat, 21 Nov 2026 19:47:00 GMT", -1.0),
        ("Sat, 21 Nov 2026 19:48:02 GMT", 59.0),
        ("Fri, 20 Nov 2026 19:47:02 GMT", -86_399.0),
        ("yesterday", None),
        ("", None),
        (None, None),
        ("Sat, 21 Nov 99999 19:47:02 GMT", None),
    ],
)
def test_the_clock_is_compared_with_the_date_of_an_answer(date: str | None, skew: float | None) -> None:
    """Asked at 19:47:02.0, answered at 19:47:03.0."""
    asked = 1_795_290_422.0
    assert clock_skew(date, asked, asked + 1) == skew


def test_a_tool_that_is_there_is_told_with_its_place(tmp_path: Path) -> None:
    ((level, detail),) = told(examined(tmp_path, validation__tools="sh"), "tool")
    assert level == "ok" and detail.startswith("sh is /")


def test_a_mount_point_without_its_mount_is_seen(tmp_path: Path) -> None:
    (tmp_path / "cvmfs").mkdir()
    assert "is empty: nothing is mounted there" in fitness.why_no_mount(tmp_path / "cvmfs")
    (tmp_path / "cvmfs" / "setup.sh").touch()
    assert fitness.why_no_mount(tmp_path / "cvmfs") == ""
    assert "Not a directory" in fitness.why_no_mount(tmp_path / "cvmfs" / "setup.sh")


def test_a_mount_that_does_not_answer_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "MOUNT_SECONDS", 0.2)
    (tmp_path / "find").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "find").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    assert "does not answer within 0.2 s" in fitness.why_no_mount(Path("/net/dead"))
    assert time.monotonic() - began < 10


def test_of_the_copytools_that_were_named_each_should_work(tmp_path: Path) -> None:
    broken = {"nfs": "no mount"}
    assert told(examined(tmp_path, unusable=broken, copytools__names="cp,nfs"), "copytool") == [
        ("ok", "usable: cp"),
        ("warning", "not usable: nfs: no mount"),
    ]
    assert [level for level, _ in told(examined(tmp_path, unusable=broken), "copytool")] == ["ok", "ok"]


def test_a_gpu_pilot_needs_a_gpu_unless_a_setting_says_no(tmp_path: Path) -> None:
    without = Node("n1", 8, 4000, ResourceType.GPU)
    assert [level for level, _ in told(examined(tmp_path, without), "gpu")] == ["unfit"]
    assert [level for level, _ in told(examined(tmp_path, without, validation__gpu="no"), "gpu")] == [
        "warning"
    ]
    assert told(examined(tmp_path), "gpu") == [], "a CPU pilot needs none"


def test_each_gpu_is_told_and_slots_without_one_are_warned_about(tmp_path: Path) -> None:
    here = Node("n1", 8, 4000, ResourceType.GPU, GPUS)
    assert told(examined(tmp_path, here), "gpu") == [
        ("ok", "0: H200, 143771 MiB"),
        ("ok", "1: H200, 143771 MiB"),
    ]
    warned: list[Any] = told(examined(tmp_path, here, node_settings__slots="3"), "gpu")
    assert warned[0] == ("warning", "2 GPUs for 3 slots: some slots have none")


def test_more_slots_than_cores_are_warned_about(tmp_path: Path) -> None:
    assert told(examined(tmp_path, node_settings__slots="8"), "cores") == []
    [(level, words)] = told(examined(tmp_path, node_settings__slots="9"), "cores")
    assert (level, words[:30]) == ("warning", "8 cores for 9 slots (--slots):")


def test_a_mistake_in_a_plugin_is_no_finding(tmp_path: Path) -> None:
    class Broken(ExperimentPlugin):
        def check_node(self, node: Node) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        examined(tmp_path, plugin=Broken)


def test_an_image_of_the_queue_that_is_not_on_the_node_makes_it_unfit(tmp_path: Path) -> None:
    """Else each job would come, fail and avoid the node."""
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    image = tmp_path / "reco.sif"
    given = {"path": str(program.parent), "payload__executor": "apptainer", "payload__image": str(image)}
    findings = examined(tmp_path, **given)  # type: ignore[arg-type]
    assert told(findings, "executor") == [
        (
            "unfit",
            f"payloads cannot be run as [payload] executor says: [payload] image: {image} is not on this node",
        )
    ]
    image.touch()
    assert [level for level, _ in told(examined(tmp_path, **given), "executor")] != ["unfit"]  # type: ignore[arg-type]


def test_a_directory_for_inputs_that_cannot_be_used_is_warned_of_and_no_reason_to_stop(
    tmp_path: Path,
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    bad.mkdir()
    bad.chmod(0o777)
    assert told(examined(tmp_path), "cache") == []
    ((level, _),) = told(examined(tmp_path, cache__directory=str(good)), "cache")
    assert level == "ok"
    findings = examined(tmp_path, cache__directory=str(bad))
    fitness.judge(findings)
    ((level, detail),) = told(findings, "cache")
    assert level == "warning" and "others may write in it (chmod 700)" in detail


def test_a_file_of_patterns_that_cannot_be_read_is_warned_of_before_the_first_job_fails(
    tmp_path: Path,
) -> None:
    findings = examined(tmp_path, patterns__files=str(tmp_path / "nope.ini"))
    fitness.judge(findings)
    ((level, detail),) = told(findings, "patterns")
    assert level == "warning" and f"{tmp_path}/nope.ini cannot be read: No such file or directory" in detail
