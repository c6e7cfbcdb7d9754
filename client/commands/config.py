"""`pilotage config`: the settings of each program, their values here and where each comes from."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import click

from client import tables
from client.commands import Group
from client.commands.common import config_option, examples, json_option
from client.tables import Column
from protocol.settings import Settings, describe

PROGRAMS = {
    "client": ("client.settings", "load"),
    "pilot": ("pilot.settings", "load"),
    "daemon": ("pilot.settings", "load_daemon"),
    "server": ("server.settings", "load"),
}
"""program → module and function that loads its settings from (command_line, config)."""

_COLUMNS = (
    Column("setting", lambda row: f"[{row.section}] {row.key}"),
    Column("value", lambda row: row.value),
    Column("from", lambda row: row.origin),
)


@click.group(cls=Group)
def config() -> None:
    """Settings: files, environment and options, and which of them won."""


@config.command(
    epilog=examples("pilotage config show", "pilotage config show pilot --config etc/pilot.ini --json")
)
@click.argument(
    "programs", nargs=-1, type=click.Choice(list(PROGRAMS)), metavar="[client|pilot|daemon|server]..."
)
@config_option
@json_option
def show(programs: tuple[str, ...], settings_file: Path | None, as_json: bool) -> None:
    """Show each setting, its value, and where the value comes from.

    Secrets are hidden. A file of --config belongs to one program: name it.
    """
    if settings_file is not None and len(programs) != 1:
        raise click.UsageError(
            "--config belongs to one program: name it, as: config show pilot --config FILE"
        )
    shown = {program: describe(_load(program, settings_file)) for program in programs or PROGRAMS}
    if as_json:
        return tables.show({program: [row._asdict() for row in rows] for program, rows in shown.items()})
    for number, (program, rows) in enumerate(shown.items()):
        if number:
            tables.write("")
        tables.print_table(rows, _COLUMNS, program)
    return None


def _load(program: str, file: Path | None) -> Settings:
    # By name: the tables of pilot and server are theirs, and this is the one command that shows all of them.
    module, function = PROGRAMS[program]
    load: Callable[..., Settings] = getattr(importlib.import_module(module), function)
    return load({}, file)
