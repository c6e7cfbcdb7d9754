"""Files on a mounted file system, local or shared: the kernel's copy, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from copytools.base import Checksums, FileTool, Learned, Option
from copytools.copying import Plan, copy, copy_small
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

    def copy_in_small(self, files: Sequence[Tuple[str, Path]]) -> List[Optional[Learned]]:
        places = self.paths_of([url for url, _ in files])
        wanted = ((place, str(to)) for place, (_, to) in zip(places, files))
        return list(copy_small(wanted, self.algorithms, self._asked_to_stop))

    def copy_out(self, path: Path, target: str, timeout: float) -> Checksums:
        plan = Plan(Stage.OUT, self.algorithms, durable=self.options["fsync"] is True)
        return copy(path, self.path_of(target), plan, self.deadline(timeout)).checksums
