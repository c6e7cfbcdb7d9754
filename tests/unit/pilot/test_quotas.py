"""Limits of control groups, on trees as they were found on machines of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.node import quotas
from tests.machines import machine

GIB = 1 << 30


@pytest.mark.parametrize(
    ("recorded", "cores", "memory"),
    [
        ("slurm-cgroup2", None, 4 * GIB),
        ("docker-cgroup1", 2.5, GIB),
        ("hybrid-cgroup1", None, 2 * GIB),
        ("pod-cgroup2", 0.5, GIB // 2),
        ("", None, None),
    ],
)
def test_the_least_limit_of_all_groups_around_the_process_counts(
    recorded: str, cores: float, memory: int, tmp_path: Path
) -> None:
    root = machine(recorded, tmp_path).root
    assert (quotas.cores(root), quotas.memory_bytes(root)) == (cores, memory)


def test_a_quota_above_the_own_group_counts(tmp_path: Path) -> None:
    recorded = machine("slurm-cgroup2", tmp_path)
    recorded.write("sys/fs/cgroup/system.slice/cpu.max", "400000 100000\n")
    assert quotas.cores(recorded.root) == 4.0


def test_limits_of_groups_beside_the_own_one_do_not_count(tmp_path: Path) -> None:
    recorded = machine("slurm-cgroup2", tmp_path)
    recorded.write("sys/fs/cgroup/system.slice/slurmstepd.scope/job_4712/memory.max", "1024\n")
    recorded.write("sys/fs/cgroup/system.slice/slurmstepd.scope/job_4712/cpu.max", "1000 100000\n")
    assert (quotas.cores(recorded.root), quotas.memory_bytes(recorded.root)) == (None, 4 * GIB)


@pytest.mark.parametrize("own", ["/../../other", "/gone/away", "/"])
def test_a_group_that_cannot_be_seen_is_taken_for_the_top_of_what_can(own: str, tmp_path: Path) -> None:
    recorded = machine("pod-cgroup2", tmp_path)
    recorded.write("proc/self/cgroup", f"0::{own}\n")
    assert quotas.memory_bytes(recorded.root) == GIB // 2


@pytest.mark.parametrize("text", ["", "max", "a lot", "100000", "100000 0", "-1 100000", "1 2 3"])
def test_what_is_no_quota_is_no_limit(text: str, tmp_path: Path) -> None:
    recorded = machine("pod-cgroup2", tmp_path)
    recorded.write("sys/fs/cgroup/cpu.max", text)
    assert quotas.cores(recorded.root) is None


@pytest.mark.parametrize(
    ("recorded", "name"), [("slurm-cgroup2", "memory.events"), ("hybrid-cgroup1", "memory.oom_control")]
)
def test_what_the_kernel_has_ended_is_counted_by_the_innermost_group(
    recorded: str, name: str, tmp_path: Path
) -> None:
    made = machine(recorded, tmp_path)
    assert quotas.memory_events(made.root) is None
    places = {path.parent for path in made.root.rglob("memory.*")}
    for place in places:
        (place / name).write_text("oom_kill 0\n")
    assert quotas.memory_events(made.root) == max(places, key=lambda place: len(place.parts)) / name
