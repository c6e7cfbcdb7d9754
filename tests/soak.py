"""The fault tests and the sustained load at their full length: `make soak`, hours on one machine; not a part of CI.

    python -m tests.soak --list
    python -m tests.soak --hours 1 --only f01-sqlite,load-postgres --results soak.json
    python -m tests.soak --scale 0.01            # a hundredth of everything, in minutes

Each part writes its row into the results as soon as it is done, so that a soak that was broken off goes on with `--only`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import postgres
from tests.acceptance.world import World
from tests.faults import scenarios
from tests.faults.crew import Habits
from tests.faults.installation import Installation, Tally, installed

ROOT = Path(__file__).parent.parent
QUICK_ARCHIVE = {"PILOTAGE_ARCHIVE__AFTER_SECONDS": "60"}
"""Under sustained load ended tasks leave the hot tables while it goes on."""
ROUND = 2000
"""Jobs of one task of the sustained load."""

Part = Callable[[Path, "postgres.Cluster | None", float, float], Tally]


@contextmanager
def cluster() -> Iterator[postgres.Cluster]:
    made = postgres.Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()


def scaled(number: float, scale: float) -> int:
    return max(2, round(number * scale))


def fault(scenario: Callable[..., Tally], extra: dict[str, str] | None = None, **sizes: float) -> Part:
    """A scenario of the fault tests, with these sizes at scale 1."""

    def part(directory: Path, on: postgres.Cluster | None, scale: float, hours: float) -> Tally:
        with installed(directory / "server", on, extra=extra or {}) as where:
            return scenario(where, **{name: scaled(size, scale) for name, size in sizes.items()})

    return part


def pilot_kills(directory: Path, on: postgres.Cluster | None, scale: float, hours: float) -> Tally:
    """Eight real pilots; with a kill in every 57 jobs each lives 20 s on average."""
    with installed(directory / "server", on, extra=scenarios.SOON_UNACKNOWLEDGED) as where:
        world = World(where.server, directory, "soak")
        try:
            n_jobs = scaled(10_000, scale)
            return scenarios.pilot_kills(where, world, max(2, n_jobs // 57), n_jobs, n_pilots=8, seconds=0.2)
        finally:
            world.close()


def by_pytest(test: str) -> Part:
    """A test that takes its length from PILOTAGE_SOAK, on both databases if it uses one."""

    def part(directory: Path, on: postgres.Cluster | None, scale: float, hours: float) -> Tally:
        began = time.monotonic()
        environment = {**os.environ, **({"PILOTAGE_SOAK": "1"} if scale >= 1 else {})}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:]
        summary = done.stdout.strip().splitlines()[-1]
        return Tally(
            test.rpartition("::")[2],
            "both",
            seconds=round(time.monotonic() - began, 1),
            more={"pytest": summary},
        )

    return part


def load(directory: Path, on: postgres.Cluster | None, scale: float, hours: float) -> Tally:
    """Jobs without a pause for `hours`: the rate, and whether the server's memory stays flat. Each round is checked."""
    began = time.monotonic()
    total = Tally("sustained load", "")
    memory: list[int] = []
    with installed(directory / "server", on, extra=QUICK_ARCHIVE) as where:
        queue = where.queue()
        while time.monotonic() - began < hours * 3600:
            task = where.submit(queue, ROUND, outputs=[])
            with where.crew(queue, 8, Habits(payload_seconds=(0.0, 0.0))) as crew:
                where.ended(task, crew, 600)
            one = where.judge("sustained load", [task], crew.history)
            total.jobs, total.attempts, total.rounds = (
                total.jobs + one.jobs,
                total.attempts + one.attempts,
                total.rounds + 1,
            )
            memory.append(_memory_mb(where))
        total.database = where.database
    total.seconds = round(time.monotonic() - began, 1)
    settled = memory[len(memory) // 4 :] or memory
    total.more = {
        "jobs_per_day": round(total.jobs / total.seconds * 86_400),
        "memory_mb_first": settled[0],
        "memory_mb_last": settled[-1],
        "memory_mb_most": max(memory),
    }
    return total


def _memory_mb(where: Installation) -> int:
    """The resident memory of all processes of the server."""
    assert where.server.process is not None
    pids = [where.server.process.pid]
    for pid in pids:
        pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


SOON = scenarios.SOON_UNACKNOWLEDGED
BOTH: dict[str, Part] = {
    "f01": fault(scenarios.server_kills, kills=100, n_jobs=10_000),
    "f04": pilot_kills,
    "f06": fault(scenarios.server_pauses, rounds=1, pause_seconds=600),
    "f07": fault(scenarios.lost_replies, drops=1000),
    "f08": fault(scenarios.repeated_words, n_jobs=500),
    "f09": fault(scenarios.bad_weather, SOON, n_jobs=1000, longest_seconds=600),
    "f11": fault(scenarios.stampedes, rounds=1000),
    "f21": fault(scenarios.cancellations, rounds=40),
    "load": load,
}
"""Parts that run on SQLite and on Postgres."""
POSTGRES_ONLY: dict[str, Part] = {"f02": fault(scenarios.database_kills, kills=30, n_jobs=3000)}
OTHERS: dict[str, Part] = {
    "storages": by_pytest("tests/conformance/test_storages.py"),
    "f03": by_pytest("tests/integration/server/test_power_cut.py"),
    "shares": by_pytest(
        "tests/integration/server/test_brokerage.py::test_groups_get_their_shares_from_three_dispatchers_that_claim_at_once"
    ),
}


def all_parts() -> dict[str, tuple[Part, bool]]:
    """Name → what is done, and whether it needs a Postgres."""
    parts = {f"{name}-sqlite": (part, False) for name, part in BOTH.items()}
    parts |= {f"{name}-postgres": (part, True) for name, part in (*BOTH.items(), *POSTGRES_ONLY.items())}
    return {**dict(sorted(parts.items())), **{name: (part, False) for name, part in OTHERS.items()}}


def run(name: str, part: Part, on_postgres: bool, scale: float, hours: float) -> dict[str, Any]:
    """One row of the results; a part that fails is a row too."""
    directory = Path(tempfile.mkdtemp(prefix="pilotage-soak-"))
    work = partial(part, directory)
    try:
        if on_postgres:
            with cluster() as on:
                tally = work(on, scale, hours)
        else:
            tally = work(None, scale, hours)
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  one part that fails must not end the others
        traceback.print_exc()
        return {
            "fault": name,
            "failed": f"{type(error).__name__}: {error}"[:2000],
            "directory": str(directory),
        }
    shutil.rmtree(directory, ignore_errors=True)
    return asdict(tally)


def table(rows: dict[str, Any]) -> str:
    """The fault table."""
    columns = ("rounds", "kills", "jobs", "attempts", "lost", "twice", "seconds")
    lines = ["| part | " + " | ".join(columns) + " | more |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | FAILED: {row['failed'].splitlines()[0][:120]} |")
            continue
        more = ", ".join(f"{key} {value}" for key, value in row["more"].items())
        lines.append(f"| {name} | {' | '.join(str(row[column]) for column in columns)} | {more} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parts = all_parts()
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--hours", type=float, default=1.0, help="length of the sustained load, on each database (1)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of the faults; 1 is the full length")
    parser.add_argument(
        "--only", default="", help="parts, with commas between; or the beginning of their names"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("soak.json"), help="rows are kept here (soak.json)"
    )
    parser.add_argument("--list", action="store_true", help="name the parts and end")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(parts))
        return 0
    wanted = [word.strip() for word in options.only.split(",") if word.strip()]
    chosen = {
        name: each
        for name, each in parts.items()
        if not wanted or any(name.startswith(word) for word in wanted)
    }
    if not chosen:
        parser.error(f"no part is called {options.only}; see --list")
    kept = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name, (part, on_postgres) in chosen.items():
        print(f"== {name}", flush=True)
        row = run(name, part, on_postgres, options.scale, options.hours)
        kept[name] = {
            **row,
            "scale": options.scale,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        }
        options.results.write_text(json.dumps(kept, indent=1) + "\n")
    print(table({name: kept[name] for name in parts if name in kept}))
    return int(any("failed" in kept[name] for name in chosen))


if __name__ == "__main__":
    sys.exit(main())
