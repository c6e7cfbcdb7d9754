"""mpiexec: the command as the ranks of an MPI program, on the nodes that the MPI library finds in its batch job."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from pilot.plugins.executors import base
from pilot.plugins.executors.base import Run
from protocol.errors import PilotageError

PROGRAMS = ("mpiexec", "mpirun")


class Executor(base.Executor):
    starts_ranks = True

    def unusable(self) -> Optional[str]:
        return None if self.find(*PROGRAMS) else f"none of {', '.join(PROGRAMS)} is on PATH"

    def check(self, run: Run) -> None:
        if ":" in run.command:
            raise PilotageError(
                "BAD_COMMAND", "an argument that is a colon alone would begin another program for mpiexec"
            )

    def wrap(self, run: Run) -> Run:
        words = (self.program(*PROGRAMS), "-n", str(run.ranks or run.cores), "-wdir", str(run.directory))
        return replace(run, command=(*words, *run.command))

    def explain_failure(self, exit_code: int, stderr_tail: str) -> Optional[str]:
        words = (
            "There are not enough slots available",
            "unable to launch",
            "unable to reliably start",
            "HYDU_create_process",
        )
        return "STEP_NOT_STARTED" if any(word in stderr_tail for word in words) else None
