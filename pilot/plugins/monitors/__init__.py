"""Monitors: what is measured of a payload while it runs, and what ends it. Which ones are on is a setting, [limits] monitors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Optional

from pilot.plugins.monitors.base import Look, Monitor, Payload
from protocol.errors import PilotageError
from protocol.plugins import Family

MONITORS = Family(__name__, "pilotage.monitors", "Monitor", what="monitor")

MOST_METRICS = 100
LONGEST_NAME = 100
"""What the server takes."""


class Monitors:
    """Those of one payload, used as one."""

    def __init__(self, kinds: Sequence[type[Monitor]], payload: Payload) -> None:
        self.payload = payload
        self._monitors = [kind(payload) for kind in kinds]
        self._guilty: Optional[Monitor] = None

    def sample(self, look: Look, more: Mapping[str, float]) -> dict[str, float]:
        """The numbers of all, and `more`; what no server would take is left out, so that a heartbeat is never refused."""
        found = {name: value for each in self._monitors for name, value in each.sample(look).items()}
        good = [
            (name, float(value))
            for name, value in {**found, **more}.items()
            if len(name) <= LONGEST_NAME and math.isfinite(value)
        ]
        return dict(good[:MOST_METRICS])

    def verdict(self, look: Look) -> Optional[PilotageError]:
        """The first one counts."""
        for each in self._monitors:
            found = each.verdict(look)
            if found is not None:
                self._guilty = each
                return found
        return None

    @property
    def can_explain(self) -> bool:
        """Whether the monitor that has said the verdict has more to say."""
        return self._guilty is not None and self._guilty.explains

    def explanation(self, look: Look) -> str:
        return self._guilty.explanation(look) if self._guilty is not None else ""

    def close(self) -> None:
        for each in self._monitors:
            each.close()

    def seconds_to_next(self, look: Look, period: float) -> float:
        return max(0.0, min([period, *(each.seconds_to_next(look) for each in self._monitors)]))


def names() -> tuple[str, ...]:
    return MONITORS.names()


def load(wanted: Sequence[str]) -> tuple[type[Monitor], ...]:
    """Those of these names, each once; BAD_SETTINGS for one that nobody knows."""
    return tuple(MONITORS.find(name, Monitor) for name in dict.fromkeys(wanted))
