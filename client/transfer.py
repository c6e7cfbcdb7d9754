"""Bringing a stored file here: by the copytool for its address, verified, and leaving no half file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import copytools
from copytools import checksum
from protocol.errors import PilotageError
from protocol.redaction import one_line

TIMEOUT_SECONDS = 3600.0
"""For one file."""


def copy_in(
    url: str,
    to: Path,
    size: int | None = None,
    checksums: Mapping[str, str] | None = None,
    data_root: Path | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Copy the file at `url` to `to`, which must not exist; it gets its name when it is whole and verified.

    Raises the copytool's error, or STAGE_IN_FAILED if size or checksum are not the registered ones.
    """
    part = to.with_name(f".{to.name[:200]}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        learn = [name for name in checksum.available() if name in (checksums or {})][:1]
        tool = copytools.for_url(url, (), {"checksums": learn, "data_root": data_root})
        learned = tool.until(asked_to_stop).copy_in(url, part, TIMEOUT_SECONDS) or {}
        problem = wrong(part, size, checksums or {}, learned)
        if problem:
            raise PilotageError("STAGE_IN_FAILED", f"{one_line(url)}: {problem}")
        _publish(part, to)
    except FileExistsError:
        raise PilotageError("ALREADY_EXISTS", f"{one_line(str(to))} is there already") from None
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, to: Path) -> None:
    """Give the file its name; unlike a rename, a link never replaces what somebody put there meanwhile."""
    try:
        os.link(part, to)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        part.rename(to)  # a file system without links


def wrong(
    path: Path, size: int | None, checksums: Mapping[str, str], learned: Mapping[str, str] | None = None
) -> str:
    """What is wrong with a file here, in words; "" if size and checksums are the registered ones.

    A checksum that the copytool learned on the way saves reading the file again.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found} bytes, {size} are registered"
    usable = [name for name in checksum.available() if name in checksums]
    if not usable:
        return ""
    name = next((each for each in usable if each in (learned or {})), usable[0])
    digits = (learned or {}).get(name) or checksum.of(path, (name,))[name]
    return "" if digits == checksums[name] else f"its {name} is {digits}, {checksums[name]} is registered"
