"""What the copytool xrdcp costs beside plain xrdcp of the same file, in turn on a real server: python -m tests.bench.xrdcp [--json]

Goal: at most 100 ms a file, in each direction. The tool asks for the file's size before, hashes what came, and has each upload
verified by the server's checksum; plain xrdcp does none of that.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

import copytools
from copytools.base import CopyTool
from tests.storages import xrootd
from tests.storages.base import Storage
from tests.users import place_for_all

RUNS = 15
SIZES = {"1 MiB": 1 << 20, "64 MiB": 1 << 26}
GOAL_MS = 100.0


def main() -> None:
    rows = measured()
    if "--json" in sys.argv[1:]:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print("{name:<22} {reference:7.1f} ms plain  {median:7.1f} ms by the tool  {more:+7.1f} ms ({min:+.1f} to {max:+.1f})  {holds}".format(**row))  # fmt: skip


def measured() -> List[Dict[str, object]]:
    rows = []
    with place_for_all() as place, tempfile.TemporaryDirectory() as node, xrootd.running(place) as storage:
        tool = copytools.load("xrdcp", storage.options)
        for size_name, size in SIZES.items():
            path = Path(node, "source")
            path.write_bytes(os.urandom(size))
            storage.write("source", path.read_bytes())
            for way in (_In(tool, storage, path), _Out(tool, storage, path)):
                rows.append(_row(f"{way.name}, {size_name}", Path(node), way))
            storage.clear()
    return rows


class _Way:
    """One direction, by xrdcp itself and by the tool."""

    name: str

    def __init__(self, tool: CopyTool, storage: Storage, source: Path) -> None:
        self.tool, self.storage, self.source = tool, storage, source

    def plain(self, to: Path) -> None:
        raise NotImplementedError

    def ours(self, to: Path) -> None:
        raise NotImplementedError


class _In(_Way):
    name = "in"

    def plain(self, to: Path) -> None:
        _plain(self.storage.url("source"), str(to))

    def ours(self, to: Path) -> None:
        self.tool.copy_in(self.storage.url("source"), to, 600)


class _Out(_Way):
    name = "out"

    def plain(self, to: Path) -> None:
        _plain(str(self.source), self.storage.url(to.name))

    def ours(self, to: Path) -> None:
        self.tool.copy_out(self.source, self.storage.url(to.name), 600)


def _row(name: str, node: Path, way: _Way) -> Dict[str, object]:
    """Milliseconds of both, in turn; what the tool takes more, pair by pair."""
    pairs = []
    for number in range(RUNS):
        pair = []
        for which, work in (("plain", way.plain), ("ours", way.ours)):
            target = node / f"{name.replace(' ', '')}-{which}-{number}"
            began = time.perf_counter()
            work(target)
            pair.append((time.perf_counter() - began) * 1000)
            target.unlink(missing_ok=True)
        pairs.append(pair)
    more = [ours_ms - plain_ms for plain_ms, ours_ms in pairs]
    return {
        "name": f"xrdcp {name}", "unit": "ms", "runs": RUNS,
        "reference": statistics.median(pair[0] for pair in pairs), "median": statistics.median(pair[1] for pair in pairs),
        "more": statistics.median(more), "min": min(more), "max": max(more), "goal": f"<= {GOAL_MS:g} ms more",
        "holds": statistics.median(more) <= GOAL_MS,
    }  # fmt: skip


def _plain(source: str, target: str) -> None:
    subprocess.run(["xrdcp", "--nopbar", source, target], check=True, capture_output=True)


if __name__ == "__main__":
    main()
