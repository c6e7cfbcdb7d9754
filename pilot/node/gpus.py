"""The GPUs of this node: which there are, which the batch system gave us, and how a payload is shown its own only.

NVIDIA: nvidia-smi, else the driver's files. AMD: the kernel's files (as ROCm itself numbers them), else rocm-smi. Who has none
of these has no GPU for us.
"""

from __future__ import annotations

import csv
import enum
import json
import logging
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from protocol.messages.pilots import GpuKind
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
TOOL_SECONDS = 20
"""Both tools take seconds when a driver is asleep; one that hangs must not keep the pilot."""
ROOT = Path("/")
LONGEST_MODEL, MOST_KINDS = 200, 100
"""What the server takes."""

_NVIDIA_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
_ROCM_QUERY = ("--showproductname", "--showmeminfo", "vram", "--showuniqueid", "--json")
_NOBODY = ("", "-1", "none", "nodevfiles", "10000")
"""What batch systems write where a job has no GPU; the number is HTCondor's."""


class Vendor(str, enum.Enum):
    NVIDIA = "nvidia"
    AMD = "amd"


VISIBLE = {Vendor.NVIDIA: "CUDA_VISIBLE_DEVICES", Vendor.AMD: "ROCR_VISIBLE_DEVICES"}
"""The variable that shows a process some GPUs of the vendor only. They reach below all libraries."""
OTHERS = ("HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Variables with the same meaning, that would be read beside ours and name GPUs of the whole node."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a part of one (MIG)."""

    vendor: Vendor
    index: int
    """As the vendor's tools number it on this node, from 0."""
    uuid: str = ""
    model: str = ""
    memory_mb: int = 0
    """0: not known."""
    name: str = ""
    """What the vendor's variable must say for it: as the batch system does, else its UUID or number."""

    def __str__(self) -> str:
        memory = f", {self.memory_mb} MiB" if self.memory_mb else ""
        return f"{self.model or f'GPU {self.index}'}{memory}"


def find(
    environ: Mapping[str, str], given: Optional[Sequence[str]] = None, root: Path = ROOT
) -> tuple[Gpu, ...]:
    """Those that this pilot may use. `given`: the names that the batch system has for them, where it gives no variable of the vendor.

    `root`: where /proc, /sys and /dev are looked for.
    """
    nvidia = _from_nvidia_smi(environ) or _from_nvidia_driver(root)
    amd = _from_kernel(root) or _from_rocm_smi(environ)
    return (
        *_allowed(nvidia, _named(environ, Vendor.NVIDIA, given)),
        *_allowed(amd, _named(environ, Vendor.AMD, given)),
    )


def environment(gpus: Sequence[Gpu]) -> dict[str, Optional[str]]:
    """Variables for a payload that is to see these GPUs and no others; None: the variable must not be there."""
    shown: dict[str, Optional[str]] = dict.fromkeys(OTHERS)
    for vendor, variable in VISIBLE.items():
        shown[variable] = ",".join(gpu.name for gpu in gpus if gpu.vendor is vendor)
    if gpus and all(gpu.vendor is Vendor.AMD for gpu in gpus):
        shown[VISIBLE[Vendor.NVIDIA]] = (
            None  # AMD's HIP heeds it too: empty would hide the GPUs that are to be seen
        )
    return shown


def kinds(gpus: Sequence[Gpu]) -> list[GpuKind]:
    """How many there are of each model, as the server is told; a model that never ends is cut."""
    found = Counter((one_line(gpu.model)[:LONGEST_MODEL], gpu.memory_mb) for gpu in gpus)
    return [GpuKind(model, count, memory_mb) for (model, memory_mb), count in found.items()][:MOST_KINDS]


# -- what the batch system gave ---------------------------------------------------------------------------------------------


def _named(environ: Mapping[str, str], vendor: Vendor, given: Optional[Sequence[str]]) -> Optional[list[str]]:
    """The names of the GPUs that are ours; None: nobody says, so all are."""
    for variable in (VISIBLE[vendor], *(OTHERS if vendor is Vendor.AMD else OTHERS[1:])):
        if variable in environ:
            return [
                each.strip() for each in environ[variable].split(",") if each.strip().lower() not in _NOBODY
            ]
    return None if given is None else list(given)


def _allowed(found: Sequence[Gpu], named: Optional[list[str]]) -> tuple[Gpu, ...]:
    if named is None or not found:
        return tuple(found)
    chosen = [_match(found, name) for name in named]
    missing = [name for name, gpu in zip(named, chosen) if gpu is None]
    if missing and len(named) == len(found) and all(name.isdigit() for name in named):
        return tuple(
            found
        )  # the node's numbers, in a container that has these GPUs only and numbers them anew
    if missing:
        logger.warning(
            "GPUs were given to this pilot that the node does not show", extra={"gpus": ", ".join(missing)}
        )
    return tuple(gpu for gpu in chosen if gpu is not None)


def _match(found: Sequence[Gpu], name: str) -> Optional[Gpu]:
    """The GPU with this number, UUID or beginning of a UUID; HTCondor also writes CUDA0."""
    if name.startswith("MIG-"):
        return Gpu(found[0].vendor, 0, name, f"MIG part of {found[0].model}", name=name)
    digits = re.fullmatch(r"(?:CUDA|OCL)?(\d+)", name)
    for gpu in found:
        if digits and gpu.index == int(digits[1]):
            return replace(gpu, name=digits[1])
        if not digits and gpu.uuid and gpu.uuid.startswith(name):
            return replace(gpu, name=name)
    return None


# -- which there are --------------------------------------------------------------------------------------------------------


def _from_nvidia_smi(environ: Mapping[str, str]) -> list[Gpu]:
    lines = _output_of("nvidia-smi", _NVIDIA_QUERY, environ).splitlines()
    found: list[Gpu] = []
    for row in csv.reader(lines, skipinitialspace=True):
        if len(row) == 4 and row[0].isdigit():
            index, uuid, model, memory = row
            found.append(Gpu(Vendor.NVIDIA, int(index), uuid, model, _whole(memory), uuid or index))
    if not found and lines:
        logger.warning("nvidia-smi lists no GPU", extra={"output": lines[0][:200]})
    return found


def _from_nvidia_driver(root: Path) -> list[Gpu]:
    """In a container, say, that has the driver and not the tool. The driver does not say how much memory there is."""
    found = []
    for number, place in enumerate(_entries(root / "proc/driver/nvidia/gpus")):
        facts = _facts(_text(place / "information"), ":")
        minor = _whole(facts.get("Device Minor", ""), number)
        uuid = facts.get("GPU UUID", "")
        uuid = "" if "?" in uuid else uuid  # a GPU that nobody has used since the start of the node
        found.append(Gpu(Vendor.NVIDIA, minor, uuid, facts.get("Model", place.name), 0, uuid or str(minor)))
    return sorted(found, key=lambda gpu: gpu.index)


def _from_kernel(root: Path) -> list[Gpu]:
    """Each node of the topology is a processor or a GPU; one that our control group may not use has no properties to be read."""
    found: list[Gpu] = []
    places = [place for place in _entries(root / "sys/class/kfd/kfd/topology/nodes") if place.name.isdigit()]
    for place in sorted(places, key=lambda each: int(each.name)):
        facts = _facts(_text(place / "properties"), " ")
        minor = facts.get("drm_render_minor", "")
        if _whole(facts.get("simd_count", "")) == 0 or not (root / f"dev/dri/renderD{minor}").exists():
            continue
        index = len(found)
        banks = (_facts(_text(bank / "properties"), " ") for bank in _entries(place / "mem_banks"))
        memory = sum(_whole(bank.get("size_in_bytes", "")) for bank in banks) // MIB
        number = _whole(facts.get("unique_id", ""))
        uuid = f"GPU-{number:016x}" if number else ""
        model = (
            _text(root / f"sys/class/drm/renderD{minor}/device/product_name").strip()
            or _text(place / "name").strip()
        )
        found.append(Gpu(Vendor.AMD, index, uuid, model, memory, str(index)))
    return found


def _from_rocm_smi(environ: Mapping[str, str]) -> list[Gpu]:
    text = _output_of("rocm-smi", _ROCM_QUERY, environ)
    try:
        cards = json.loads(text[text.index("{") :])  # older ones print warnings before it
        rows = sorted(
            (int(key[4:]), row)
            for key, row in cards.items()
            if re.fullmatch(r"card\d+", key) and isinstance(row, dict)
        )
    except (ValueError, AttributeError):
        return []
    found = []
    for index, (_, row) in enumerate(rows):
        number = re.fullmatch(r"0x([0-9a-fA-F]+)", str(row.get("Unique ID", "")))
        uuid = f"GPU-{int(number[1], 16):016x}" if number else ""
        model = str(row.get("Card Series") or row.get("Card series") or "")
        memory = _whole(str(row.get("VRAM Total Memory (B)", ""))) // MIB
        found.append(Gpu(Vendor.AMD, index, uuid, model, memory, str(index)))
    return found


def _output_of(tool: str, arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """What the tool prints; "" where there is none, or it does not answer."""
    program = shutil.which(tool, path=environ.get("PATH"))
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=TOOL_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning(f"{tool} does not answer", extra={"reason": str(error)})
        return ""
    return done.stdout


def _facts(text: str, separator: str) -> dict[str, str]:
    """Lines of a name and a value."""
    pairs = (line.partition(separator) for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _whole(text: str, otherwise: int = 0) -> int:
    return int(text) if text.isascii() and text.isdigit() else otherwise


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
