"""Slot control: the payloads of one slot, one after the other; where nothing is staged beside them, a job goes all its way here.

To hand a job from thread to thread takes longer than the steps of one that ends within milliseconds.
"""

from __future__ import annotations

from pilot import control
from pilot.context import Context
from pilot.jobrun import JobRun
from pilot.plugins.workflows.base import Steps


def goes_all_the_way(context: Context, job: JobRun) -> bool:
    return job.is_brisk or not context.settings.integer("get_job", "stage_ahead")


def run_jobs(context: Context, slot: int, steps: Steps) -> None:
    def all_the_way(job: JobRun) -> None:
        for step in steps:
            step(job)

    channels = context.channels
    for job in channels.staged_in.of[slot]:
        if goes_all_the_way(context, job):
            control.pass_on(job, f"slot {slot}", all_the_way, channels.ended, channels.collected)
        else:
            control.pass_on(job, f"slot {slot}", steps.run, channels.collected, channels.collected)
