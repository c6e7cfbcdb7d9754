"""A real XRootD by the gfal2 library, by its own protocol and by WebDAV."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from tests.storages import xrootd
from tests.storages.base import Storage

PYTHON = "/usr/bin/python3"


def missing() -> Optional[str]:
    try:
        done = subprocess.run([PYTHON, "-c", "import gfal2"], capture_output=True, check=False)
    except OSError as error:
        return f"{PYTHON}: {error.strerror}"
    return None if done.returncode == 0 else f"{PYTHON} has no module gfal2"


@contextmanager
def by_root(place: Path) -> Iterator[Storage]:
    with xrootd.running(place) as storage:
        storage.tool = "gfal"
        yield storage


@contextmanager
def by_dav(place: Path) -> Iterator[Storage]:
    with by_root(place) as storage:
        storage.root = storage.root.replace("root://", "dav://").replace("//store/", "/store/")
        storage.refused = f"{storage.root}closed/"
        yield storage
