"""A payload that the kernel ends because memory is short: told as that, and not as a signal that nobody explains."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from pilot import cgroups, limits, process
from protocol.errors import BY_NAME, PilotExit
from protocol.messages.pilots import Step, StepKind
from tests import control_groups
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site

LIMIT_MB = 150
GREEDY = "import time; x = bytearray(400_000_000); time.sleep(600)"
NO_MONITOR = {"PILOTAGE_LIMITS__MONITORS": "walltime"}
"""The pilot's own would be sooner."""

HOW = {
    "the payload itself": ("{python}", "-c", GREEDY),
    "a process that a shell has started": ("sh", "-c", '"$0" -c "$1"; exit $?', "{python}", GREEDY),
}


def run_within(group: Path, site: Site, *options: str, **settings: str) -> int:
    """A pilot in that group, as a batch job's is."""
    pilot = site.start(*options, **settings)
    control_groups.join(group, pilot.process.pid)
    return pilot.wait(30)


@pytest.mark.component("memory-cgroup")
@pytest.mark.parametrize("how", HOW)
def test_f16_a_payload_that_the_kernel_ends_was_short_of_memory(
    how: str, site: Site, dispatcher: Dispatcher
) -> None:
    bad, killed, good = (
        dispatcher.add(*HOW[how]),
        dispatcher.add("sh", "-c", "kill -9 $$"),
        dispatcher.add("true"),
    )
    with control_groups.limited(LIMIT_MB) as group:
        assert run_within(group, site, "--max-jobs", "3", **NO_MONITOR) == PilotExit.DONE
    end = dispatcher.attempt(bad).end
    assert end is not None and end.error == "PAYLOAD_OOM_KILLED", end
    assert "probably by the kernel" in end.error_detail, "the group is not its own"
    other = dispatcher.attempt(killed).end
    assert other is not None and other.error == "PAYLOAD_KILLED", "a later SIGKILL has nothing to do with it"
    assert dispatcher.attempt(good).state == "COMPLETED"


@pytest.mark.component("memory-cgroup")
def test_f16_a_step_that_the_kernel_ends_was_short_of_memory_too(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true", steps=[Step(StepKind.PRE, ["{python}", "-c", GREEDY])])
    with control_groups.limited(LIMIT_MB) as group:
        run_within(group, site, **NO_MONITOR)
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "PAYLOAD_OOM_KILLED" and end.error_detail.startswith("pre-1: "), (
        end
    )


def test_such_a_job_is_tried_again_with_more_memory_at_the_cost_of_the_payload() -> None:
    mine, other = BY_NAME["PAYLOAD_OOM_KILLED"], BY_NAME["PAYLOAD_MEMORY_LIMIT"]
    assert (mine.retry, mine.budget, mine.blame) == (other.retry, other.budget, other.blame)


RECORDED: Dict[str, int] = {
    "low 0\nhigh 12\nmax 310\noom 2\noom_kill 1\noom_group_kill 0\n": 1,
    "low 0\nhigh 0\nmax 310\noom 2\noom_kill 0\n": 0,
    "low 0\nhigh 0\nmax 0\noom 0\n": 0,  # before Linux 4.13
    "": 0,
}


@pytest.mark.parametrize("events", RECORDED)
def test_a_group_of_its_own_has_counted_them(events: str, tmp_path: Path) -> None:
    """The file of version 2, recorded: the tests' machine hands no memory down in that one."""
    (tmp_path / "memory.events").write_text(events)
    assert cgroups.Cgroup(tmp_path).oom_kills() == RECORDED[events]
    assert cgroups.Cgroup(tmp_path / "gone").oom_kills() == 0


def test_what_its_own_group_has_counted_is_known_after_the_end_also_if_a_child_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded group of version 2: the payload itself ended with another exit code."""
    group = tmp_path / "group"
    group.mkdir()
    (group / "cgroup.procs").touch()
    (group / "memory.events").write_text("max 310\noom 2\noom_kill 2\n")
    monkeypatch.setattr(cgroups, "make", lambda name: cgroups.Cgroup(group))
    started = process.start(
        ["sh", "-c", "exit 65"], tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "out", tmp_path / "err"
    )
    code = started.wait()
    found = limits.kernel_memory(code, started.oom_kills, started.oom_kills_around)
    assert found is not None and found.name == "PAYLOAD_OOM_KILLED"
    assert found.detail.startswith("2 of its processes") and "probably" not in found.detail


@pytest.mark.parametrize(
    ("code", "around", "is_it"),
    [(-9, 1, True), (137, 1, True), (1, 1, False), (-9, 0, False), (-15, 1, False)],
)
def test_a_group_that_others_share_counts_only_for_who_was_killed(
    code: int, around: int, is_it: bool
) -> None:
    assert (limits.kernel_memory(code, 0, around) is not None) == is_it
