"""The experiment's own production: many long jobs of one kind, with inputs of some size."""

from __future__ import annotations

from pilot.plugins.workflows import base


class Workflow(base.Workflow):
    defaults = {
        "node_settings.label": "managed",
        "limits.looping_seconds": 43_200,  # a simulation may write nothing for hours
        "get_job.stage_ahead": 1,  # the next input comes while cores are busy; such jobs do not mind to wait for their slot
    }
