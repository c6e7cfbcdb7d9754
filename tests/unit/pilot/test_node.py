"""What a node has, read from files that look like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot import node
from pilot.node import Node
from protocol.errors import PilotageError
from protocol.messages import NAME_FIELD
from protocol.resources import ResourceType

CPU = Node("n1", 8, 4000, ResourceType.CPU)


def test_the_offer_of_a_slot_is_its_share_of_the_node(tmp_path: Path) -> None:
    offer = CPU.offer("Q", "user", tmp_path, 3600, share=2)
    assert (offer.cores, offer.memory_mb, offer.walltime_seconds, offer.queue, offer.label) == (
        4,
        2000,
        3600,
        "Q",
        "user",
    )
    assert offer.disk_mb == pytest.approx(node.free_disk_mb(tmp_path) // 2, rel=0.1)
    assert CPU.offer("Q", "", tmp_path, 0, share=99).cores == 1


def test_memory_is_that_of_the_container_if_it_has_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemFree: 1 kB\nMemTotal:       2097152 kB\n")
    assert node.memory_mb(meminfo, tmp_path / "none") == 2048
    (tmp_path / "memory.max").write_text("max\n")
    assert node.memory_mb(meminfo, tmp_path) == 2048
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    assert node.memory_mb(meminfo, tmp_path) == 1024


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert node.inspect("cpu", {}).cores == 3


def test_without_nvidia_smi_the_driver_is_asked(tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    assert node.find_gpus({"PATH": ""}, tmp_path) == ("0000:01:00.0",)
    assert node.find_gpus({"PATH": ""}, tmp_path / "none") == ()


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
