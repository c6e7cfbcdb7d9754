"""srun: the command as a step of the Slurm job in which the pilot runs, over all its nodes, one rank each if nothing else is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from pilot.plugins.executors import base
from pilot.plugins.executors.base import Run

PROGRAM = "srun"


class Executor(base.Executor):
    starts_ranks = True

    def unusable(self) -> Optional[str]:
        if self.find(PROGRAM) is None:
            return f"{PROGRAM} is not on PATH"
        return (
            None if self.environ.get("SLURM_JOB_ID") else "this pilot runs in no Slurm job (no SLURM_JOB_ID)"
        )

    def wrap(self, run: Run) -> Run:
        nodes = self.environ.get("SLURM_JOB_NUM_NODES") or self.environ.get("SLURM_NNODES") or "1"
        ranks = run.ranks or int(nodes)
        words = [
            self.program(PROGRAM),
            "--export=ALL",
            "--input=none",
            "--kill-on-bad-exit=1",
            f"--chdir={run.directory}",
        ]
        # At the second SIGTERM within a second srun ends at once, and so do its ranks.
        words += [
            f"--nodes={min(ranks, int(nodes))}",
            f"--ntasks={ranks}",
            f"--cpus-per-task={max(1, run.cores)}",
            "--",
        ]
        return replace(run, command=(*words, *run.command))

    def explain_failure(self, exit_code: int, stderr_tail: str) -> Optional[str]:
        """Its own words; those about a rank that failed do not count, for the command has run then."""
        said = [line for line in stderr_tail.splitlines() if line.startswith(f"{PROGRAM}: error: ")]
        words = (
            "Unable to create step",
            "Unable to confirm allocation",
            "Task launch",
            "Invalid job id",
            "Unable to contact",
        )
        return "STEP_NOT_STARTED" if any(word in line for line in said for word in words) else None
