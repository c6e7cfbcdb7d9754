"""`pilotage pilot`: run a pilot here, and see which pilots the server knows.

`run`, `check`, `daemon`, `bridge`, `patterns` and `benchmark` lie with the pilot and work on a node that has neither rich nor Python 3.10, so nothing of those is loaded here.
"""

from __future__ import annotations

import click

from client.commands import Lazy, LazyGroup

COMMANDS = {
    "run": Lazy("pilot.cli:run", "run a pilot on this machine", "fast"),
    "check": Lazy("pilot.cli:check", "look whether this machine is fit for work", "fast"),
    "daemon": Lazy("pilot.cli:daemon", "start pilots on this machine again and again", "fast"),
    "bridge": Lazy("pilot.cli:bridge", "speak to the server for nodes that do not reach it", "fast"),
    "benchmark": Lazy("pilot.cli:benchmark", "measure this machine for a few seconds", "fast"),
    "patterns": Lazy("pilot.cli:patterns", "try the patterns of known errors on a text", "fast"),
    "list": Lazy("client.commands.pilots:list_pilots", "list pilots, the newest first"),
    "show": Lazy("client.commands.pilots:show", "show one pilot"),
    "drain": Lazy("client.commands.pilots:drain", "let pilots end when their jobs have"),
    "update": Lazy(
        "client.commands.pilots:update", "let the server's present pilot take the place of others"
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def pilot() -> None:
    """Pilots: the agents on worker nodes that pull jobs."""
