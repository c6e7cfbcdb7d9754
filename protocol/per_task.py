"""The pilot's settings that a task may set for its own jobs: rows of the pilot's table, against which the server checks tasks.

Not among them is what protects the node and its other jobs. Where a queue sets one of these, its word counts and not the task's.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.errors import PilotageError
from protocol.redaction import one_line
from protocol.settings import EXPERIMENT, QUEUE, TASK, Setting
from protocol.values import Places, Type, nearest

_ALL = (QUEUE, TASK, EXPERIMENT)

# fmt: off
ROWS = (
    Setting("limits", "looping_seconds", Type.INTEGER, 7200,
            "a payload that touches no file and uses no CPU time for so long is looping; 0: not looked for",
            minimum=0, maximum=31_536_000, overridable=_ALL),
    Setting("limits", "memory_percent", Type.INTEGER, 150,
            "most memory of a payload, in percent of what its task asks for; 0: as much as the slot has",
            minimum=0, maximum=100_000, overridable=_ALL),
    Setting("limits", "memory_mb", Type.INTEGER, 0,
            "most memory of a payload whose task asks for none; 0: as much as the slot has",
            minimum=0, maximum=100_000_000, overridable=_ALL),
    Setting("limits", "cpu_seconds", Type.INTEGER, 0, "most CPU time of a payload; 0: no limit",
            minimum=0, maximum=1_000_000_000, overridable=_ALL),
    Setting("limits", "output_mb", Type.INTEGER, 0, "largest size of one output; 0: no limit",
            minimum=0, maximum=1_000_000_000, overridable=_ALL),
    Setting("limits", "credentials_warn_seconds", Type.INTEGER, 3600,
            "the job's log has a warning when the pilot's proxy or token ends within this",
            minimum=0, maximum=31_536_000, overridable=_ALL),
    Setting("limits", "credentials_needed", Type.FLAG, False,
            "a job ends when the pilot's proxy or token has expired", overridable=_ALL),
    Setting("copytools", "timeout_seconds", Type.INTEGER, 3600, "for one try of one file, and of a task's software",
            minimum=1, maximum=604_800, overridable=_ALL),
    Setting("services", "benchmark", Type.FLAG, False,
            "a short benchmark of the node, with the cores of the job, runs before each job's payload", overridable=_ALL),
    Setting("services", "benchmark_seconds", Type.NUMBER, 3, "about how long it takes", minimum=0.1, maximum=3600,
            overridable=_ALL),
)
# fmt: on

_BY_NAME = {".".join(row.name): row for row in ROWS}


def check(wanted: Mapping[str, str]) -> None:
    """BAD_REQUEST unless a task may set all of these, SECTION.KEY → value, and each value is one."""
    for name, text in wanted.items():
        row = _BY_NAME.get(name)
        if row is None:
            near = nearest(name[:80], list(_BY_NAME))
            may = f"did you mean {near}?" if near else f"it may set {', '.join(_BY_NAME)}"
            raise PilotageError(
                "BAD_REQUEST", f"pilotSettings: {one_line(name[:80])!r} is not for a task to set; {may}"
            )
        try:
            row.parse(text, Places(None, None))
        except ValueError as error:
            raise PilotageError("BAD_REQUEST", f"pilotSettings: {name} {error}") from None
