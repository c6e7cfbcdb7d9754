"""Workflows: what kind of work a pilot is for, -w. It says what is done with each job, and which defaults suit that work."""

from __future__ import annotations

from pilot.plugins.workflows.base import Workflow
from protocol.plugins import Family

WORKFLOWS = Family(__name__, "pilotage.workflows", "Workflow", what="workflow")


def names() -> tuple[str, ...]:
    return WORKFLOWS.names()


def load(name: str) -> Workflow:
    """The one of that name; BAD_SETTINGS for one that nobody knows."""
    return WORKFLOWS.find(name, Workflow)()
