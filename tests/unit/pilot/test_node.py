"""What a node has, and how its slots share it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pilot import node
from pilot.node import Node
from pilot.node.allocation import Allocation
from pilot.node.gpus import Gpu, Vendor
from protocol.errors import PilotageError
from protocol.messages import NAME_FIELD
from protocol.resources import ResourceType
from tests.machines import machine

CPU = Node("n1", 8, 4000, ResourceType.CPU)


def gpus(count: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(Vendor.NVIDIA, index, name=str(index)) for index in range(count))


def test_the_offer_of_a_slot_is_its_share_of_the_node(tmp_path: Path) -> None:
    offer = CPU.offer("Q", "user", tmp_path, 3600, slot=2, slots=2)
    assert (offer.cores, offer.memory_mb, offer.walltime_seconds, offer.queue, offer.label) == (
        4,
        2000,
        3600,
        "Q",
        "user",
    )
    assert offer.disk_mb == pytest.approx(node.free_disk_mb(tmp_path) // 2, rel=0.1)
    assert CPU.offer("Q", "", tmp_path, 0, slots=99).cores == 1


@pytest.mark.parametrize(
    ("slots", "cores", "names"),
    [
        (1, [8], ["0123"]),
        (2, [4, 4], ["01", "23"]),
        (3, [3, 3, 2], ["01", "2", "3"]),
        (4, [2, 2, 2, 2], ["0", "1", "2", "3"]),
        (5, [2, 2, 2, 1, 1], ["0", "1", "2", "3", ""]),
    ],
)
def test_cores_and_gpus_are_divided_and_none_is_given_twice_or_left(
    slots: int, cores: list[int], names: list[str]
) -> None:
    here = Node("n1", 8, 4000, ResourceType.GPU, gpus(4))
    shares = [here.share(slot, slots) for slot in range(1, slots + 1)]
    assert [share.cores for share in shares] == cores
    assert ["".join(gpu.name for gpu in share.gpus) for share in shares] == names
    assert {share.memory_mb for share in shares} == {4000 // slots}


def test_a_slot_offers_no_more_memory_than_one_process_may_have() -> None:
    here = Node("n1", 8, 4000, ResourceType.CPU, process_memory_mb=1500)
    assert [here.share(1, slots).memory_mb for slots in (1, 2, 4)] == [1500, 1500, 1000]


def test_memory_is_that_of_the_node_or_of_its_control_groups(tmp_path: Path) -> None:
    assert node.memory_mb(machine("", tmp_path / "free").root) == 64264
    assert node.memory_mb(machine("slurm-cgroup2", tmp_path / "limited").root) == 4096


def test_the_limit_of_a_process_is_seen() -> None:
    """ulimit -v, in a process of its own since it cannot be taken back."""
    code = "from pilot import node; print(node.process_memory_mb())"
    script = f"ulimit -v 3145728; exec {sys.executable} -c '{code}'"
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "3072"


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert node.cores(machine("", tmp_path / "free").root) == 3
    assert node.cores(machine("docker-cgroup1", tmp_path / "docker").root) == 2, (
        "2.5, and no job has half a core"
    )
    assert node.cores(machine("pod-cgroup2", tmp_path / "pod").root) == 1, (
        "half a core is one, or no job would run"
    )


def test_a_node_is_called_as_it_was_told_else_by_its_host_name() -> None:
    assert node.inspect("cpu", {}, "n7").name == "n7"
    assert node.inspect("cpu", {}).name == socket.gethostname()


def test_what_the_batch_system_gave_is_not_exceeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    recorded = machine("four-nvidia", tmp_path)
    given = Allocation(cores=4, memory_mb=3000, gpus=("GPU-c1b0c6e4",))
    here = node.inspect("auto", recorded.environ, "n1", given, recorded.root)
    assert (here.cores, here.memory_mb, [gpu.index for gpu in here.gpus]) == (4, 3000, [2])
    all_of_it = node.inspect(
        "auto", recorded.environ, "n1", Allocation(cores=999, memory_mb=10**9), recorded.root
    )
    assert (all_of_it.cores, all_of_it.memory_mb, len(all_of_it.gpus)) == (64, 64264, 4)


def test_a_work_directory_that_cannot_be_written_makes_the_node_unfit(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="cannot be written") as caught:
        node.check_disk(tmp_path / "none", 0)
    assert caught.value.name == "NODE_UNFIT"


def test_too_little_free_space_makes_the_node_unfit(tmp_path: Path) -> None:
    node.check_disk(tmp_path, 0)
    with pytest.raises(PilotageError, match="free_disk_mb") as caught:
        node.check_disk(tmp_path, 10**12)
    assert caught.value.name == "NODE_UNFIT"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["", "1", "my pilot/ü", "x" * 300])
@pytest.mark.parametrize("name", ["node-7.example.org", "_strange", "n" * 250])
def test_the_pilots_name_is_one_that_the_server_takes(given: str, name: str) -> None:
    import re

    made = node.pilot_name(given, name, 123, "abcdef")
    assert re.fullmatch(NAME_FIELD["pattern"], made) and len(made) <= 200  # type: ignore[arg-type]


def test_the_pilots_name_begins_with_pilot_id_and_tells_node_and_process() -> None:
    assert node.pilot_name("1", "n1", 77, "abc") == "1-n1-77-abc"
    assert node.pilot_name("", "n1", 77, "abc") == "n1-77-abc"
