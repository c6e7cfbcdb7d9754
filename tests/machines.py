"""Machines of others, as recorded: a file per machine in tests/fixtures/machines, unpacked to files and stand-in programs.

A line `=== proc/self/cgroup` begins a file; `=== bin/nvidia-smi` a program that prints what follows. What stands before the first
of these lines says where the recording comes from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict

PLACE = Path(__file__).parent / "fixtures"


class Machine:
    """A recorded machine below a directory: `root` for files, `path` for programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ: Dict[str, str] = {"PATH": str(root / "bin")}

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("bin/"):
            text = f"#!/bin/sh\n/bin/cat <<'END OF OUTPUT'\n{text}END OF OUTPUT\n"
        path.write_text(text)
        path.chmod(0o755)


def machine(name: str, place: Path) -> Machine:
    """Unpack a recording; "" for a machine without anything."""
    made = Machine(place)
    made.write("proc/meminfo", "MemTotal:       65806340 kB\n")
    if name:
        recorded = (PLACE / "machines" / f"{name}.txt").read_text()
        parts = re.split(r"^=== (.+)\n", recorded, flags=re.MULTILINE)[1:]
        for file, text in zip(parts[::2], parts[1::2]):
            made.write(file, text)
    return made


def environment(name: str) -> Dict[str, str]:
    """What a batch system put into the environment of a job; lines that begin with # say where that comes from."""
    lines = (PLACE / "batch" / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
