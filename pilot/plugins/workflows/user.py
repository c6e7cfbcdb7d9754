"""Users' own jobs: code that nobody has tried before, from many people."""

from __future__ import annotations

from pilot.plugins.workflows import base


class Workflow(base.Workflow):
    defaults = {
        "node_settings.label": "user",
        "get_job.allow_same_user": True,  # its code is on the node already, and different users meet less often
        "limits.stdout_mb": 256,  # a program that prints without end is a mistake that its author has not seen yet
    }
