"""`pilotage bench`: measure this installation on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import click

from protocol.errors import PilotageError
from server.bench import data as rows_of_data
from server.bench import dispatch as rows_of_dispatch
from server.bench import pilot as rows_of_pilot
from server.bench import postgres, report, stage

F = TypeVar("F", bound=Callable[..., Any])


def _options(rows: ModuleType, quick: str) -> Callable[[F], F]:
    """What every benchmark takes; `rows` has the ROWS by their names, and their sizes FULL, QUICK and TINY."""
    names = ", ".join(rows.ROWS)

    def checked(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> list[str]:
        for name in value:
            if name not in rows.ROWS:
                raise click.UsageError(f"--only {name}: there is {names}")
        return list(value or rows.ROWS)

    def add(command: F) -> F:
        for option in (
            click.option("--sizes", type=click.Choice(["full", "quick", "tiny"]), hidden=True),
            click.option("--json", "as_json", is_flag=True, help="print JSON"),
            click.option(
                "--runs", type=click.IntRange(1, 100), help="runs of each figure (default: 5, with --quick 3)"
            ),
            click.option(
                "--only",
                "names",
                multiple=True,
                metavar="NAME",
                callback=checked,
                help=f"measure this only; may be given again: {names}",
            ),
            click.option(
                "--quick", is_flag=True, help=f"{quick}: fewer runs, smaller numbers, no figures to quote"
            ),
        ):
            command = option(command)
        return command

    return add


def _sizes(rows: ModuleType, quick: bool, sizes: str | None, runs: int | None) -> Any:
    chosen = getattr(rows, (sizes or ("quick" if quick else "full")).upper())
    return chosen if runs is None else dataclasses.replace(chosen, runs=runs)


def _print(rows: list[report.Row], facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(report.as_json(rows, facts))
    else:
        report.show(rows, facts)


@click.group(
    epilog="""\b
Examples:
  pilotage bench dispatch --quick
  pilotage bench pilot --quick
"""
)
def bench() -> None:
    """Measure how fast this version is on this machine."""


@bench.command(
    short_help="The dispatcher: rates, flatness, many pilots.",
    epilog="""\b
Examples:
  pilotage bench dispatch --quick
  pilotage bench dispatch --only life-cycle --database sqlite --runs 9
  pilotage bench dispatch --json > dispatch.json
""",
)
@_options(rows_of_dispatch, "below a minute")
@click.option(
    "--database",
    default="both",
    metavar="KIND",
    help="sqlite, postgres (a cluster of its own), both (default), or postgresql://USER@HOST/NAME of a server "
    "where databases may be made",
)
def dispatch(
    quick: bool, names: list[str], database: str, runs: int | None, as_json: bool, sizes: str | None
) -> None:
    """Measure the dispatcher: life cycles by HTTP beside a reference, and what must not slow them down.

    It starts servers in temporary directories, and Postgres if need be, and ends and removes all of it.
    """
    signal.signal(signal.SIGTERM, _end)
    _print(*_measure(database, _sizes(rows_of_dispatch, quick, sizes, runs), names), as_json)


@bench.command(
    short_help="The pilot: jobs that do nothing, gaps, its weight.",
    epilog="""\b
Examples:
  pilotage bench pilot --quick
  pilotage bench pilot --only gap --runs 9
  python3 -m venv peers && peers/bin/pip install parsl celery redis distributed hyperqueue
  pilotage bench pilot --only no-op --peers peers/bin/python --json > pilot.json
""",
)
@_options(rows_of_pilot, "about a minute")
@click.option(
    "--peers",
    metavar="PYTHON",
    help="also measure Parsl, Celery (with redis-server), dask.distributed and HyperQueue, as this Python has them",
)
def pilot(
    quick: bool,
    names: list[str],
    peers: str | None,
    runs: int | None,
    as_json: bool,
    sizes: str | None,
) -> None:
    """Measure a pilot on a server with SQLite: jobs that do nothing, the time between two payloads, memory and CPU.

    It starts what it needs in temporary directories, and ends and removes all of it.
    """
    chosen = _sizes(rows_of_pilot, quick, sizes, runs)
    signal.signal(signal.SIGTERM, _end)
    with stage.directory() as directory:
        facts = report.machine(None, chosen is not rows_of_pilot.FULL, directory)
        with stage.Stage(directory, "sqlite", None) as each:
            rows = rows_of_pilot.measure(each, chosen, names, peers, _say)
    _print(rows, facts, as_json)


@bench.command(
    short_help="Data: files copied, hashed, registered, made.",
    epilog="""\b
Examples:
  pilotage bench data --quick
  pilotage bench data --only copy --only daq --runs 9
  pilotage bench data --only registration --files 10
""",
)
@_options(rows_of_data, "about a minute, 3 GB of disk")
@click.option(
    "--files",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="large files to register (50; with --quick 4)",
)
def data(
    quick: bool, names: list[str], files: int | None, runs: int | None, as_json: bool, sizes: str | None
) -> None:
    """Measure what moves bytes: copytool cp, checksums, registration, the Data API, the DAQ emulator, each beside a reference.

    It works in a temporary directory (TMPDIR), which should lie on the disk that counts, and removes it. At full size files
    have 2 GiB, and 110 GB have to be free.
    """
    chosen = _sizes(rows_of_data, quick, sizes, runs)
    if files is not None:
        chosen = dataclasses.replace(chosen, files=files)
    signal.signal(signal.SIGTERM, _end)
    with stage.directory() as directory:
        facts = report.machine(None, chosen is not rows_of_data.FULL, directory)
        with stage.Stage(directory, "sqlite", None) as each:
            rows = rows_of_data.measure(each, chosen, names, _say)
    _print(rows, facts, as_json)


def _end(number: int, frame: object) -> None:
    """Ended from outside: in order, so that nothing is left running."""
    sys.exit(128 + number)


def _measure(
    database: str, sizes: rows_of_dispatch.Sizes, names: list[str]
) -> tuple[list[report.Row], dict[str, Any]]:
    rows: list[report.Row] = []
    with contextlib.ExitStack() as started:
        directory = started.enter_context(stage.directory())
        server = _postgres(database, started)
        facts = report.machine(
            server.version() if server else None, sizes is not rows_of_dispatch.FULL, directory
        )
        facts["databaseCpuSeen"] = server is None or server.pid is not None
        for kind in ("sqlite", "postgres"):
            on = server if kind == "postgres" else None
            if (kind == "sqlite" and database in ("sqlite", "both")) or on is not None:
                with stage.Stage(directory, kind, on) as each:
                    rows += rows_of_dispatch.measure(each, sizes, names, _say)
    return rows, facts


def _postgres(database: str, started: contextlib.ExitStack) -> postgres.Postgres | None:
    if database == "sqlite":
        return None
    if database.startswith(("postgresql://", "postgres://")):
        return postgres.given(database)
    if database == "both" and postgres.binaries() is None:
        _say("no Postgres was found to start: SQLite only")
        return None
    if database in ("postgres", "both"):
        return started.enter_context(postgres.own())
    raise PilotageError(
        "BAD_SETTINGS",
        f"--database {database[:60]!a}: it takes sqlite, postgres, both or a postgresql:// URL",
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
