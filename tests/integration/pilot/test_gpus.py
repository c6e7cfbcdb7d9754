"""GPUs, on machines as they were recorded: tools that print, the driver's and the kernel's files, batch systems' variables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot import node
from pilot.node import gpus
from pilot.node.gpus import Gpu, Vendor
from protocol.resources import ResourceType
from tests.fakes.dispatcher import Dispatcher
from tests.machines import machine
from tests.pilots import Site

A100 = "NVIDIA A100-SXM4-40GB"
FIRST, SECOND = "GPU-6a96bd13-70bc-6494-6d62-1b77a9a7f29f", "GPU-1f5f38b1-5c2f-8a5a-55a0-0d8f9a1b4c11"


def found(
    recorded: str, place: Path, given: tuple[str, ...] | None = None, **environ: str
) -> tuple[Gpu, ...]:
    there = machine(recorded, place)
    return gpus.find({**there.environ, **environ}, given, there.root)


def test_nvidia_smi_tells_count_model_and_memory(tmp_path: Path) -> None:
    four = found("four-nvidia", tmp_path)
    assert [(gpu.index, gpu.model, gpu.memory_mb) for gpu in four] == [(n, A100, 40960) for n in range(4)]
    assert four[0].name == FIRST, "numbers of CUDA and of nvidia-smi may differ, UUIDs do not"
    assert str(four[0]) == f"{A100}, 40960 MiB"


@pytest.mark.parametrize("recorded", ["lost-nvidia", "no-nvidia-driver"])
def test_a_sick_driver_is_no_gpu_and_its_words_are_in_the_log(
    recorded: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert found(recorded, tmp_path) == ()
    assert "nvidia-smi lists no GPU" in caplog.text


def test_without_nvidia_smi_the_driver_is_asked(tmp_path: Path) -> None:
    unused, used = found("nvidia-driver-only", tmp_path)
    assert (unused.index, unused.uuid, unused.name, unused.memory_mb) == (0, "", "0", 0)
    assert (used.index, used.name, used.model) == (1, used.uuid, "Tesla V100-PCIE-32GB")
    assert used.uuid.startswith("GPU-8f6d214d")


def test_the_kernel_tells_of_amds_gpus_that_our_group_may_use(tmp_path: Path) -> None:
    first, second = found("two-amd", tmp_path)
    assert (first.vendor, first.index, first.model, first.memory_mb) == (
        Vendor.AMD,
        0,
        "AMD Instinct MI250X",
        65520,
    )
    assert first.uuid == "GPU-5680cc1da163f62f"
    assert (second.index, second.model, second.uuid) == (1, "aldebaran", "")


def test_rocm_smi_is_asked_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    first, second = found("rocm-smi", tmp_path)
    assert (first.uuid, first.memory_mb) == ("GPU-9246ab3c5d7e8f10", 16368)
    assert first.model.startswith("Navi 21")
    assert (second.model, second.uuid) == ("Raphael", "")


@pytest.mark.parametrize("text", ["", "No AMD GPUs specified", "{broken", '{"card0": 7}', "[]", '{"card0"'])
def test_what_rocm_smi_should_not_say_is_no_gpu(text: str, tmp_path: Path) -> None:
    there = machine("", tmp_path)
    there.write("bin/rocm-smi", text + "\n")
    assert gpus.find(there.environ, None, there.root) == ()


def test_a_node_without_any_has_none(tmp_path: Path) -> None:
    assert found("", tmp_path) == ()


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        ("1", [1]),
        ("2,0", [2, 0]),
        (SECOND, [1]),
        ("GPU-c1b0c6e4", [2]),  # HTCondor shortens them
        ("CUDA3", [3]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("10000", []),  # HTCondor, for a job without GPU
        ("7", []),
    ],
)
def test_only_the_gpus_that_the_batch_system_gave_count(
    visible: str, indexes: list[int], tmp_path: Path
) -> None:
    four = found("four-nvidia", tmp_path, CUDA_VISIBLE_DEVICES=visible)
    assert [gpu.index for gpu in four] == indexes
    assert [gpu.name for gpu in four] == [word.replace("CUDA", "") for word in visible.split(",")][
        : len(indexes)
    ]


def test_the_number_for_no_gpu_gives_none_on_a_node_with_one(tmp_path: Path) -> None:
    there = machine("", tmp_path)
    there.write("bin/nvidia-smi", f"0, {FIRST}, {A100}, 40960\n")
    assert gpus.find({**there.environ, "CUDA_VISIBLE_DEVICES": "10000"}, None, there.root) == ()


def test_a_part_of_a_gpu_is_known_by_its_name_alone(tmp_path: Path) -> None:
    (part,) = found("four-nvidia", tmp_path, CUDA_VISIBLE_DEVICES="MIG-7b25b3a0-3f1c-5e0a")
    assert (part.name, part.memory_mb) == ("MIG-7b25b3a0-3f1c-5e0a", 0)


def test_gpus_of_amd_are_given_by_their_own_variable(tmp_path: Path) -> None:
    assert [gpu.index for gpu in found("two-amd", tmp_path / "a", ROCR_VISIBLE_DEVICES="1")] == [1]
    assert [gpu.index for gpu in found("two-amd", tmp_path / "b", GPU_DEVICE_ORDINAL="0")] == [0]
    assert found("two-amd", tmp_path / "c", ROCR_VISIBLE_DEVICES="") == ()
    assert len(found("two-amd", tmp_path / "d", CUDA_VISIBLE_DEVICES="")) == 2, "that is NVIDIA's"


def test_the_batch_systems_names_count_where_no_variable_does(tmp_path: Path) -> None:
    assert [gpu.index for gpu in found("four-nvidia", tmp_path / "a", ("2", "3"))] == [2, 3]
    assert [
        gpu.index for gpu in found("four-nvidia", tmp_path / "b", ("2", "3"), CUDA_VISIBLE_DEVICES="0")
    ] == [0]
    assert found("four-nvidia", tmp_path / "c", ()) == ()


def test_numbers_of_the_node_in_a_container_that_numbers_anew(tmp_path: Path) -> None:
    assert [gpu.index for gpu in found("two-amd", tmp_path, ("4", "5"))] == [0, 1]


def test_a_payload_is_shown_its_own_gpus_only(tmp_path: Path) -> None:
    nvidia = found("four-nvidia", tmp_path / "nvidia", CUDA_VISIBLE_DEVICES="3,1")
    amd = found("two-amd", tmp_path / "amd")
    gone = {"HIP_VISIBLE_DEVICES": None, "GPU_DEVICE_ORDINAL": None}
    assert gpus.environment(nvidia) == {**gone, "CUDA_VISIBLE_DEVICES": "3,1", "ROCR_VISIBLE_DEVICES": ""}
    assert gpus.environment(amd) == {**gone, "CUDA_VISIBLE_DEVICES": None, "ROCR_VISIBLE_DEVICES": "0,1"}
    assert gpus.environment(()) == {**gone, "CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}


def test_a_tool_that_hangs_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "TOOL_SECONDS", 0.2)
    there = machine("", tmp_path)
    (tmp_path / "bin").mkdir()
    os.symlink("/bin/sh", tmp_path / "bin" / "sh")
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    assert gpus.find(there.environ, None, there.root) == ()


def test_the_type_auto_follows_the_node(tmp_path: Path) -> None:
    there = machine("four-nvidia", tmp_path)
    assert node.inspect("auto", there.environ, root=there.root).resource_type is ResourceType.GPU
    hidden = {**there.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert node.inspect("auto", hidden, root=there.root).resource_type is ResourceType.CPU


def test_a_cpu_pilot_on_a_gpu_node_leaves_the_gpus_alone(tmp_path: Path) -> None:
    there = machine("four-nvidia", tmp_path)
    seen = node.inspect("cpu", there.environ, root=there.root)
    assert (seen.resource_type, seen.gpus) == (ResourceType.CPU, ())


def test_the_server_is_told_how_many_there_are_of_each_model(
    tmp_path: Path, site: Site, dispatcher: Dispatcher
) -> None:
    there = machine("four-nvidia", tmp_path / "machine")
    path = f"{there.environ['PATH']}:{site.environment['PATH']}"
    site.run("--idle", "0", PATH=path, CUDA_VISIBLE_DEVICES="0,1,2")
    (word,) = dispatcher.bodies("registerPilot")
    assert (word["gpus"], word["gpuKinds"]) == (3, [{"model": A100, "count": 3, "memoryMb": 40960}])


def test_what_a_driver_calls_its_gpus_is_bounded() -> None:
    odd = [Gpu(Vendor.NVIDIA, number, model="x\x1b" * 500 + str(number)) for number in range(300)]
    kinds = gpus.kinds([Gpu(Vendor.AMD, 0, model="\n", memory_mb=1)] * 3 + odd)
    assert [(kind.model, kind.count, kind.memory_mb) for kind in kinds[:1]] == [("\\n", 3, 1)]
    assert len(kinds) <= 100 and all(len(kind.model) <= 200 for kind in kinds)
