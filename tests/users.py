"""An ordinary account for tests that root runs: root may too much to see what an account is kept from."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

ROOT = Path(__file__).parent.parent
NOBODY = 65534
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
"""One that every account may start: root's own may lie where others do not get in."""


@contextmanager
def place_for_all() -> Iterator[Path]:
    """A new directory that every account can enter. Those of pytest are closed to others, again and again."""
    with tempfile.TemporaryDirectory(prefix="pilotage-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@functools.cache
def code_for_all() -> Path:
    """What a node needs of this tree, where every account can read it: the tree itself may lie where others do not get in."""
    place = Path(tempfile.mkdtemp(prefix="pilotage-test-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    place.chmod(0o755)
    for package in ("pilot", "protocol", "copytools"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", str(place)], check=True)
    return place


def ordinary_user(*places: Path) -> List[str]:
    """What stands before a command that is to run without root's rights; these directories are given to that account."""
    if os.getuid() != 0:
        return []
    for place in places:
        os.chown(place, NOBODY, NOBODY)
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
