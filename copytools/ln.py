"""Links instead of copies, where work directory and storage lie on one node: inputs are not copied, outputs have two names."""

from __future__ import annotations

from pathlib import Path

from copytools.base import Checksums, FileTool, Option, shown
from copytools.linking import link_in, link_out
from protocol.errors import PilotageError
from protocol.values import Type


class Tool(FileTool):
    """An input is a link to the storage's own file: whoever may write there can change it while the payload reads."""

    if_named = True

    OPTIONS = {
        "hard": Option(
            Type.FLAG, "no", "inputs become hard links, on the storage's own file system, not symbolic ones"
        ),
    }

    def copy_in(self, source: str, to: Path, timeout: float) -> Checksums:
        hard = self.options["hard"] is True
        return link_in(self.path_of(source), to, self.algorithms, hard, self.deadline(timeout))

    def copy_out(self, path: Path, target: str, timeout: float) -> Checksums:
        place = self.path_of(target)
        checksums = link_out(path, place, self.algorithms, self.deadline(timeout))
        if checksums is None:
            detail = f"{shown(place)} is on another file system than {shown(path.parent)}, or that knows no hard links; use cp or mv"
            raise PilotageError("STAGE_OUT_FAILED", detail)
        return checksums
