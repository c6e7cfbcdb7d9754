"""A real control group with a limit of memory, as a batch system makes one for its job: version 1, or 2 where it hands memory down."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Iterator, Optional, Tuple

from pilot.node import quotas
from tests.waiting import wait_until


@cache
def missing() -> Optional[str]:
    try:
        with limited(64):
            return None
    except (OSError, AssertionError) as error:
        return f"no control group with a limit of memory can be made here: {error}"


@contextmanager
def limited(memory_mb: int) -> Iterator[Path]:
    """A new group below ours: `join` takes a process in. Whoever is left in it is ended."""
    parent, limit = _parent()
    group = parent / f"pilotage-test-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        (group / limit).write_text(str(memory_mb << 20))
        if (group / "memory.swappiness").exists():
            (group / "memory.swappiness").write_text("0")
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        wait_until(lambda: not (group / "cgroup.procs").read_text().split(), 10, "the group to be empty")
        group.rmdir()


def join(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def _parent() -> Tuple[Path, str]:
    """Our own group of version 1, or of version 2; and the name of the limit there."""
    for version, limit in ((1, "memory.limit_in_bytes"), (2, "memory.max")):
        for place in quotas._groups(quotas.ROOT, version, "memory"):
            handed_down = place / "cgroup.subtree_control"
            if version == 1 or (handed_down.exists() and "memory" in handed_down.read_text().split()):
                return place, limit
    raise AssertionError("no group of ours hands memory down")
