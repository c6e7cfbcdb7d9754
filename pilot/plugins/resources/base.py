"""What a batch system may tell a pilot that runs in it: each hook is one fact, and by default it is not told."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Optional

from pilot.node.allocation import Allocation
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

COMMAND_SECONDS = 10.0
"""A busy batch system may not answer; the pilot then works without what it would have said."""


class ResourcePlugin:
    """A plugin is a class `Plugin(ResourcePlugin)` in a module of this folder; it overrides what its batch system tells.

    All of it is about this node and this job. A hook never raises: what cannot be read is not told.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    @classmethod
    def is_here(cls, environ: Mapping[str, str]) -> bool:
        """Whether this environment is that of a job of the batch system."""
        return False

    def batch_id(self) -> str:
        """What the batch system's commands call this job; "" if it is not told."""
        return ""

    def nodes(self) -> tuple[str, ...]:
        """All nodes of the job."""
        return ()

    def cores(self) -> int:
        """Of this node, for this pilot; 0 if it is not told."""
        return 0

    def memory_mb(self) -> int:
        """Of this node, for this pilot; 0 if it is not told."""
        return 0

    def gpus(self) -> Optional[tuple[str, ...]]:
        """Numbers or UUIDs, where CUDA_VISIBLE_DEVICES and its like are not set; None if it is not told."""
        return None

    def seconds_left(self) -> Optional[float]:
        """Until the batch system ends the job; None if it is not told, or never."""
        return None

    def queue(self) -> str:
        """The queue or partition of the batch system."""
        return ""

    def allocation(self, name: str) -> Allocation:
        """All of it at once, from the plugin of that name."""
        return Allocation(
            system=name,
            batch_id=self.batch_id()[:200],
            nodes=self.nodes(),
            cores=self.cores(),
            memory_mb=self.memory_mb(),
            gpus=self.gpus(),
            seconds_left=self.seconds_left(),
            queue=self.queue(),
        )

    # -- for plugins --------------------------------------------------------------------------------------------------------

    def text(self, *names: str) -> str:
        """The first of these variables that is there and not empty."""
        return next((self.environ[name].strip() for name in names if self.environ.get(name, "").strip()), "")

    def number(self, *names: str) -> int:
        """The same as a whole number; 0 where it is none."""
        text = self.text(*names)
        return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0

    def output_of(self, program: str, *arguments: str) -> str:
        """What a command of the batch system prints; "" if it is not on this node, fails, or takes too long."""
        path = shutil.which(program, path=self.environ.get("PATH"))
        if path is None:
            return ""
        try:
            done = subprocess.run(
                [path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=COMMAND_SECONDS, check=True, env=dict(self.environ),
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning(f"{program} does not answer", extra={"reason": one_line(str(error))})
            return ""
        return done.stdout


def seconds_of(text: str) -> Optional[float]:
    """A time as batch systems write it: 90, 1:30, 1:00:00, 2-12:30:00; None for UNLIMITED and all that is no time."""
    days, _, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in (days or "0", *parts)) or len(parts) > 3:
        return None
    hours, minutes, seconds = (["0", "0", *parts] if len(parts) < 3 else parts)[-3:]
    return float(int(days or 0) * 86_400 + int(hours) * 3600 + int(minutes) * 60 + int(seconds))
