"""Copies nothing and remembers what it was asked for: the interface at a glance, and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import List, Mapping, NamedTuple

from copytools.base import CopyTool


class Call(NamedTuple):
    verb: str
    url: str
    path: Path
    timeout: float


class Tool(CopyTool):
    schemes = ("null",)

    def __init__(self, options: Mapping[str, object]) -> None:
        super().__init__(options)
        self.calls: List[Call] = []

    def copy_in(self, source: str, to: Path, timeout: float) -> None:
        self.calls.append(Call("copy_in", source, to, timeout))

    def copy_out(self, path: Path, target: str, timeout: float) -> None:
        self.calls.append(Call("copy_out", target, path, timeout))
