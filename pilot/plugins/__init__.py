"""Experiment plugins: what an experiment does differently, and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pilot.plugins.base import ExperimentPlugin
from protocol.errors import PilotageError
from protocol.settings import Settings

GROUP = "pilotage.plugins"
"""The entry points by which a package outside this tree brings a plugin."""


def names() -> list[str]:
    """The plugins there are: the modules of this folder (also within a zip file), and what installed packages bring."""
    return sorted({*_in_folder(), *_installed()})


def load(name: str, settings: Settings) -> ExperimentPlugin:
    """Build the plugin of that name; it is built once, and handed on."""
    if name in _in_folder():
        plugin = importlib.import_module(f"pilot.plugins.{name}").Plugin
    elif name in _installed():
        plugin = _installed()[name].load()
    else:
        raise PilotageError("BAD_SETTINGS", f"no experiment plugin {name}; there are {', '.join(names())}")
    made = plugin(settings)
    if not isinstance(made, ExperimentPlugin):
        raise PilotageError("BAD_SETTINGS", f"the plugin {name} is no ExperimentPlugin")
    return made


def _in_folder() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]


def _installed() -> dict[str, Any]:
    from importlib import metadata  # late: it reads the metadata of all that is installed

    found: Any = metadata.entry_points()
    # Python 3.9 gives a dictionary of lists.
    group = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())
    return {point.name: point for point in group}
