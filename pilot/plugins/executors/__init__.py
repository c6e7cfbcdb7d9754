"""Executors: how a payload and its steps are run. Several may be named; the first is the outermost: `srun, apptainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

from pilot.plugins.executors.base import Executor, Run
from protocol.errors import PilotageError
from protocol.plugins import Family

EXECUTORS = Family(__name__, "pilotage.executors", "Executor", what="executor")


class Chain:
    """The executors of a queue, used as one."""

    def __init__(self, executors: Sequence[Executor]) -> None:
        self.executors = tuple(executors)

    @property
    def isolates(self) -> bool:
        return any(each.isolates for each in self.executors)

    @property
    def takes_images(self) -> bool:
        return any(each.takes_images for each in self.executors)

    def unusable(self) -> Optional[str]:
        return next((reason for each in self.executors if (reason := each.unusable())), None)

    def check(self, run: Run) -> None:
        if run.image and not self.takes_images:
            raise PilotageError(
                "QUEUE_WITHOUT_CONTAINERS", "it runs payloads without an image; the task names one"
            )
        for each in self.executors:
            each.check(run)

    def wrap(self, run: Run, is_step: bool = False) -> Run:
        """From the inside out. What starts a parallel program is left out for a step."""
        readable = tuple(dict.fromkeys(path.absolute() for path in run.readable))
        run = replace(run, readable=readable)
        for each in reversed(self.executors):
            if not (is_step and each.starts_ranks):
                run = each.wrap(run)
        return run

    def explain_failure(self, exit_code: int, stderr_tail: str) -> Optional[str]:
        return next(
            (name for each in self.executors if (name := each.explain_failure(exit_code, stderr_tail))), None
        )


def names() -> tuple[str, ...]:
    return EXECUTORS.names()


def load(wanted: Sequence[str], environ: Mapping[str, str]) -> Chain:
    """Those of these names; BAD_SETTINGS for one that nobody knows."""
    return Chain([EXECUTORS.find(name, Executor)(environ) for name in wanted])
