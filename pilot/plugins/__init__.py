"""Experiment plugins: what an experiment does differently, and nothing else. The folders in here hold plugins of other kinds."""

from __future__ import annotations

from pilot.plugins.base import ExperimentPlugin
from protocol.plugins import Family
from protocol.settings import Settings

EXPERIMENTS = Family(__name__, "pilotage.plugins", "Plugin", unknown="BAD_SETTINGS", what="experiment plugin")


def names() -> tuple[str, ...]:
    return EXPERIMENTS.names()


def load(name: str, settings: Settings) -> ExperimentPlugin:
    """Build the plugin of that name; it is built once, and handed on."""
    return EXPERIMENTS.find(name, ExperimentPlugin)(settings)
