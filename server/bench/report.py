"""What a benchmark found: a row per figure with its spread, its reference and its goal; a table for people, JSON for programs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 2000
"""Columns where standard output is no terminal: a row stays one line."""
PACKAGES = ("Flask", "gunicorn", "peewee", "psycopg", "pydantic")


@dataclass(frozen=True)
class Goal:
    """A bound for a row's median, or for its ratio to the reference."""

    bound: float
    at_least: bool = True
    of_reference: bool = False

    def text(self, unit: str) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g} {'of the reference' if self.of_reference else unit}"

    def holds(self, value: float | None) -> bool | None:
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass
class Row:
    """One figure. CPU is milliseconds per cycle: of the server and the database together, and of the clients."""

    name: str
    database: str
    unit: str
    values: list[float]
    reference: list[float] = field(default_factory=list)
    goal: Goal | None = None
    cpu: list[float] = field(default_factory=list)
    reference_cpu: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    note: str = ""
    failed: bool = False
    """Something beside the figure went wrong, as the note says."""

    @property
    def median(self) -> float | None:
        return _median(self.values)

    @property
    def ratio(self) -> float | None:
        value, reference = self.median, _median(self.reference)
        return value / reference if value is not None and reference else None

    @property
    def holds(self) -> bool | None:
        if self.goal is None:
            return None
        held = self.goal.holds(self.ratio if self.goal.of_reference else self.median)
        return False if held is not None and self.failed else held

    def wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "database": self.database,
            "median": _rounded(self.median),
            "min": _rounded(min(self.values, default=None)),
            "max": _rounded(max(self.values, default=None)),
            "runs": len(self.values),
            "unit": self.unit,
            "reference": _rounded(_median(self.reference)),
            "ratio": _rounded(self.ratio),
            "goal": self.goal.text(self.unit) if self.goal else None,
            "holds": self.holds,
            "cpuMs": _rounded(_median(self.cpu)),
            "referenceCpuMs": _rounded(_median(self.reference_cpu)),
            "clientCpuMs": _rounded(_median(self.client_cpu)),
            "note": self.note,
        }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _rounded(value: float | None) -> float | None:
    """Three digits; nobody measures more."""
    if value is None or value == 0:
        return value
    return float(f"{value:.3g}") if abs(value) < 1000 else float(round(value))


def machine(postgres: str | None, quick: bool, directory: Path) -> dict[str, Any]:
    """Where it was measured, and with what."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "mayUse": sorted(os.sched_getaffinity(0)),
        "memoryMb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "kernel": platform.release(),
        "fileSystem": _file_system(directory),
        "fileLimit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "loadBefore": round(os.getloadavg()[0], 2),
        "quick": quick,
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "postgres": postgres,
        **{name.lower(): _version(name) for name in PACKAGES},
        "pilotage": _version("pilotage"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- showing ----------------------------------------------------------------------------------------------------------


def as_json(rows: list[Row], facts: dict[str, Any]) -> str:
    return json.dumps({"rows": [row.wire() for row in rows], "machine": facts}, indent=2, ensure_ascii=False)


def show(rows: list[Row], facts: dict[str, Any]) -> None:
    """A table on standard output."""
    console = Console(
        width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False, emoji=False
    )
    console.print(_table(rows))
    console.print(
        "CPU: milliseconds a cycle of server and database together (of the reference), and of the clients."
    )
    console.print(", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, "")))
    for row in rows:
        if row.note:
            console.print(f"{row.name} ({row.database}): {row.note}")


def _table(rows: list[Row]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "DATABASE"):
        grid.add_column(title, overflow="fold")
    for title in ("MEDIAN", "MIN-MAX", "UNIT", "REFERENCE", "RATIO", "CPU", "CLIENT"):
        grid.add_column(title, justify="left" if title == "UNIT" else "right", no_wrap=True)
    grid.add_column("GOAL", overflow="fold")
    for row in rows:
        wire = row.wire()
        cpu = _text(wire["cpuMs"]) + (f" ({_text(wire['referenceCpuMs'])})" if row.reference_cpu else "")
        grid.add_row(
            *(row.name, row.database, _text(wire["median"])),
            f"{_text(wire['min'])}-{_text(wire['max'])}" if len(row.values) > 1 else "",
            *(row.unit, _text(wire["reference"]), _text(wire["ratio"]), cpu, _text(wire["clientCpuMs"])),
            _verdict(row),
        )
    return grid


def _verdict(row: Row) -> Text:
    if row.goal is None:
        return Text("")
    style, word = {True: ("green", "yes"), False: ("red", "NO"), None: ("dim", "not measured")}[row.holds]
    return Text.assemble(f"{row.goal.text(row.unit)}: ", (word, style))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
