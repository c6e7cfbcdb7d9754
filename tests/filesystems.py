"""Other file systems for tests: a second one (another device), and small ones that fill up, run out of inodes or are read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Iterator, Optional

import pytest

SHM = Path("/dev/shm")


def _other_device(place: Path) -> bool:
    try:
        return os.access(place, os.W_OK) and place.stat().st_dev != os.stat(tempfile.gettempdir()).st_dev
    except FileNotFoundError:
        return False


@cache
def no_mount() -> Optional[str]:
    """None where this process may mount a tmpfs, else why not."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mount") is None:
        return "mount is not on PATH"
    try:
        with mounted("size=1m"):
            return None
    except subprocess.CalledProcessError as error:
        return f"mount refused: {error.stderr.strip()}"


def no_second() -> Optional[str]:
    """None where a second file system can be had (an own tmpfs, or /dev/shm), else why not."""
    if _other_device(SHM) or no_mount() is None:
        return None
    return f"{SHM} is not another writable device than {tempfile.gettempdir()}, and {no_mount()}"


@contextmanager
def mounted(options: str = "size=64m") -> Iterator[Path]:
    """A tmpfs of our own, gone afterwards; e.g. "size=1m" (fills up), "nr_inodes=5", "ro". Needs root."""
    place = Path(tempfile.mkdtemp(prefix="pilotage-fs-"))
    try:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        try:
            yield place
        finally:
            # Lazily: a test that failed may have left a process in there.
            subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True, text=True)
    finally:
        place.rmdir()


@pytest.fixture
def second_filesystem() -> Iterator[Path]:
    """A directory on another device than tmp_path: rename() across them answers EXDEV. NOT RUN where there is none."""
    from tests.components import require

    require("second-filesystem")
    if no_mount() is None:
        with mounted() as place:
            yield place
        return
    place = Path(tempfile.mkdtemp(prefix="pilotage-fs-", dir=SHM))
    yield place
    shutil.rmtree(place)
