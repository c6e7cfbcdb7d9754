"""What a workflow is: the steps that a pilot takes with each job, what runs beside them, and other defaults for its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable, NamedTuple

if TYPE_CHECKING:
    from pilot.context import Context
    from pilot.jobrun import JobRun


class Steps(NamedTuple):
    """What is done with a job, one after the other, each in a thread of its own.

    A step that returns hands the job on to the next one; an error of the catalogue ends the job. `stage_out` also completes it:
    where it is replaced, `job.complete()` is its last word. A job that has failed goes past all of them.
    """

    prepare: Callable[[JobRun], None]
    stage_in: Callable[[JobRun], None]
    run: Callable[[JobRun], None]
    """One at a time in each slot."""
    stage_out: Callable[[JobRun], None]


class Workflow:
    """A workflow is a class `Workflow` in a module of this folder that derives from this one; it overrides what differs.

    What is not here is the same in all of them: how jobs are asked for, reported, watched while they run, and cleaned up after.
    """

    defaults: Mapping[str, object] = {}
    """Other defaults than the pilot's own, as {"limits.looping_seconds": 43200}. They hold where nobody has said anything."""

    def steps(self, context: Context, usual: Steps) -> Steps:
        """What this pilot does with its jobs; `usual` is what all others do: usual._replace(run=…) is another payload.

        `context.of(job)` has the settings as the job's task wants them.
        """
        return usual

    def threads(self, context: Context) -> Mapping[str, Callable[[], None]]:
        """What runs beside the controls, by name, until `context.stop` is set; one that ends before ends the pilot."""
        return {}
