"""Files on a mounted file system, local or shared: the kernel's copy, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from copytools.base import Checksums, FileTool, Option
from copytools.copying import Plan, copy
from copytools.failures import Stage
from protocol.values import Type


class Tool(FileTool):
    """For URLs `file:///absolute/path` and `file:under/the/data/root`."""

    OPTIONS = {
        "fsync": Option(
            Type.FLAG, "yes", "an output is on the disk, not only in memory, before it counts as stored"
        ),
    }

    def copy_in(self, source: str, to: Path, timeout: float) -> Checksums:
        plan = Plan(Stage.IN, self.algorithms)
        return copy(self.path_of(source), to, plan, self.deadline(timeout)).checksums

    def copy_out(self, path: Path, target: str, timeout: float) -> Checksums:
        plan = Plan(Stage.OUT, self.algorithms, durable=self.options["fsync"] is True)
        return copy(path, self.path_of(target), plan, self.deadline(timeout)).checksums
