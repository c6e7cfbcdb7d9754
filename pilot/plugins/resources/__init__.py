"""Resource plugins: what a batch system has given to the pilot. Chosen by name, or by the environment."""

from __future__ import annotations

from collections.abc import Mapping

from pilot.node.allocation import Allocation
from pilot.plugins.resources.base import ResourcePlugin
from protocol.plugins import Family

RESOURCES = Family(__name__, "pilotage.resources", "Plugin", what="resource plugin")

AUTO = "auto"
LOOKED_FOR = ("htcondor", "slurm", "pbs", "kubernetes")
"""In this order, innermost first: a glidein of HTCondor runs in a job of Slurm, and not the other way round."""
PLAIN = "plain"


def names() -> tuple[str, ...]:
    return RESOURCES.names()


def detect(environ: Mapping[str, str]) -> str:
    """The plugin whose batch system this is; plain if it is none of ours. Plugins from outside are chosen by name only."""
    there = (name for name in LOOKED_FOR if RESOURCES.find(name, ResourcePlugin).is_here(environ))
    return next(there, PLAIN)


def ask(name: str, environ: Mapping[str, str]) -> Allocation:
    """What the batch system of that name, or with "auto" the one we are in, gives us. BAD_SETTINGS for a name nobody has."""
    chosen = detect(environ) if name == AUTO else name
    return RESOURCES.find(chosen, ResourcePlugin)(environ).allocation(chosen)
