"""`pilotage usage`: who used how much, as a table, as CSV for a spreadsheet, as JSON."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
from typing import Any

import click

from client import tables
from client.commands.common import examples, json_option, with_session
from client.session import Session
from client.tables import Column
from protocol.messages import wire_name
from protocol.messages.views import UsageView


class Day(click.ParamType):
    """A day as 2026-11-01, as the server takes it."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return datetime.datetime.strptime(str(value), "%Y-%m-%d").date().isoformat()
        except ValueError:
            self.fail(f"{str(value)!r} is no day, as 2026-11-01", param, ctx)


DAY = Day()
_COLUMNS = (
    Column("attempts", lambda line: line.n_attempts, right=True),
    Column("completed", lambda line: line.n_completed, right=True),
    Column("core-hours", lambda line: f"{line.core_hours:.2f}", right=True),
    Column("in", lambda line: tables.size(line.input_bytes), right=True),
    Column("out", lambda line: tables.size(line.output_bytes), right=True),
)


@click.command(
    epilog=examples(
        "pilotage usage",
        "pilotage usage --by group --since 2026-11-01",
        "pilotage usage --by queue --csv > usage.csv",
    )
)
@click.option(
    "--by",
    type=click.Choice(["owner", "group", "queue"]),
    default="owner",
    show_default=True,
    help="What is summed up.",
)
@click.option(
    "--since", type=DAY, metavar="DAY", help="First day (UTC), as 2026-11-01.  [default: from the beginning]"
)
@click.option("--until", type=DAY, metavar="DAY", help="Last day, itself included.  [default: now]")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with bytes and hours as they are.")
@json_option
@with_session
def usage(
    session: Session, *, by: str, since: str | None, until: str | None, as_csv: bool, as_json: bool
) -> None:
    """Show core-hours and bytes of the attempts that have ended, by owner, group or queue.

    Core-hours are the cores of an attempt, times from its hand-over to its end. An attempt counts on the day of its end.
    """
    if since and until and since > until:
        raise click.UsageError(f"--since {since} is after --until {until}")
    lines = session.usage(by, since=since, until=until)
    if as_json:
        return tables.show(lines)
    if as_csv:
        tables.write(_csv(by, lines))
    elif lines:
        tables.print_table(lines, (Column(by, lambda line: line.name or "(none)"), *_COLUMNS))
    else:
        tables.say("No attempt has ended in that time.")
    return None


def _csv(by: str, lines: list[UsageView]) -> str:
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    names = [each.name for each in dataclasses.fields(UsageView)]
    writer.writerow([by, *(wire_name(name) for name in names[1:])])
    writer.writerows([getattr(line, name) for name in names] for line in lines)
    return output.getvalue().rstrip("\n")
