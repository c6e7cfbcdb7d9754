"""An ordinary account for tests that root runs: root may too much to see what an account is kept from."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

NOBODY = 65534
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
"""One that every account may start: root's own may lie where others do not get in."""


@contextmanager
def place_for_all() -> Iterator[Path]:
    """A new directory that every account can enter. Those of pytest are closed to others, again and again."""
    with tempfile.TemporaryDirectory(prefix="pilotage-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def ordinary_user(*places: Path) -> List[str]:
    """What stands before a command that is to run without root's rights; these directories are given to that account."""
    if os.getuid() != 0:
        return []
    for place in places:
        os.chown(place, NOBODY, NOBODY)
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
