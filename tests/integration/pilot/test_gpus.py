"""GPUs as a stand-in for nvidia-smi lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot import node
from protocol.resources import ResourceType


def smi(place: Path, text: str) -> dict:  # type: ignore[type-arg]
    """An environment whose PATH has an nvidia-smi that says this."""
    place.mkdir(exist_ok=True)
    program = place / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    program.chmod(0o755)
    return {"PATH": str(place)}


TWO = "GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)"


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path) -> None:
    assert node.find_gpus(smi(tmp_path, TWO), tmp_path / "none") == ("NVIDIA H200", "NVIDIA H200")
    assert node.find_gpus(smi(tmp_path, "No devices were found"), tmp_path / "none") == ()


@pytest.mark.parametrize(("visible", "n_gpus"), [("1", 1), ("0,1", 2), ("", 0), ("-1", 0), ("GPU-2", 1)])
def test_only_the_gpus_that_the_batch_system_gave_count(visible: str, n_gpus: int, tmp_path: Path) -> None:
    environ = {**smi(tmp_path, TWO), "CUDA_VISIBLE_DEVICES": visible}
    assert len(node.find_gpus(environ, tmp_path / "none")) == n_gpus


def test_the_type_auto_follows_the_node(tmp_path: Path) -> None:
    assert node.inspect("auto", smi(tmp_path, TWO)).resource_type is ResourceType.GPU
    without = smi(tmp_path, "nothing")
    assert node.inspect("auto", {**without, "CUDA_VISIBLE_DEVICES": ""}).resource_type is ResourceType.CPU


def test_a_cpu_pilot_on_a_gpu_node_leaves_the_gpus_alone(tmp_path: Path) -> None:
    found = node.inspect("cpu", smi(tmp_path, TWO))
    assert (found.resource_type, found.gpus) == (ResourceType.CPU, ())


def test_a_gpu_pilot_without_a_gpu_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = node.inspect("gpu", {**smi(tmp_path, ""), "CUDA_VISIBLE_DEVICES": ""})
    assert found.resource_type is ResourceType.GPU
    assert "shows no GPU" in caplog.text
