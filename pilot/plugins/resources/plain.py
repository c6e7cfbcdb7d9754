"""A node without a batch system: the node itself tells all there is."""

from __future__ import annotations

from pilot.plugins.resources.base import ResourcePlugin


class Plugin(ResourcePlugin):
    pass
