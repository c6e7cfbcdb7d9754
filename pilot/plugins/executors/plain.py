"""No executor at all: the command runs on the node as the pilot does, and sees what the pilot's account sees."""

from __future__ import annotations

from pilot.plugins.executors import base


class Executor(base.Executor):
    pass
