"""JSON that a payload has left in its work directory: read with bounds, and only from a plain file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from copytools import checksum


def read(path: Path, largest: int, *, strictly: bool = True) -> dict[str, Any]:
    """An object; OSError for what is no plain file, ValueError or RecursionError for what is too large or no JSON object.

    Unless `strictly` it may have NaN and infinities in it, as Python itself writes them.
    """
    with open(checksum.open_plain(path), "rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest // 1024} KiB")
    found = json.loads(data, parse_constant=_refuse if strictly else None)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"it has {name} in it, which is no JSON")
