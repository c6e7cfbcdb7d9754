"""The plugin of everybody who has no wishes of his own: all defaults."""

from __future__ import annotations

from pilot.plugins.base import ExperimentPlugin


class Plugin(ExperimentPlugin):
    pass
