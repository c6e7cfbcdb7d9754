"""Another name of the workflow `user`."""

from __future__ import annotations

from pilot.plugins.workflows.user import Workflow

__all__ = ["Workflow"]
