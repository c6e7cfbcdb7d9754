"""Any work: the settings as they are. What other workflows do differently, they do differently from this one."""

from __future__ import annotations

from pilot.plugins.workflows import base


class Workflow(base.Workflow):
    pass
