"""Outputs are moved, not copied: for work directories on the storage's own file system."""

from __future__ import annotations

import os
from pathlib import Path

from copytools.base import Checksums, Deadline, FileTool
from copytools.copying import Plan, copy, identity, refuse_other_bytes, reread, withdraw
from copytools.failures import End, Stage, translated
from copytools.linking import link_out
from protocol.errors import PilotageError


class Tool(FileTool):
    """Inputs are copied, as cp does: another attempt may need them, and a link would let the payload change them.

    An output gets its name on the storage first and loses its old one last: until then it can be tried again.
    """

    if_named = True

    def copy_in(self, source: str, to: Path, timeout: float) -> Checksums:
        return copy(
            self.path_of(source), to, Plan(Stage.IN, self.algorithms), self.deadline(timeout)
        ).checksums

    def copy_out(self, path: Path, target: str, timeout: float) -> Checksums:
        place, deadline = self.path_of(target), self.deadline(timeout)
        with translated(Stage.OUT, End.SOURCE, path):
            stored = identity(os.stat(path, follow_symlinks=False))
        checksums = link_out(path, place, self.algorithms, deadline)
        if checksums is None:
            checksums = self._copied(path, place, deadline)
        withdraw(path, stored)
        return checksums

    def _copied(self, path: Path, place: Path, deadline: Deadline) -> Checksums:
        """On another file system; read again there, before the only other copy goes."""
        plan = Plan(Stage.OUT, self.algorithms, durable=True, hash_source=True)
        copied = copy(path, place, plan, deadline)
        try:
            with translated(Stage.OUT, End.TARGET, place):
                stored = reread(place, self.algorithms, deadline)
        except PilotageError:
            withdraw(place, copied.made)
            raise
        refuse_other_bytes(place, copied, stored)
        return copied.checksums
