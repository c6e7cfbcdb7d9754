"""`pilotage trail`: the record of administrative actions."""

from __future__ import annotations

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column

_COLUMNS = (
    Column("when (UTC)", lambda entry: tables.when(entry.at)),
    Column("who", lambda entry: entry.who),
    Column("action", lambda entry: entry.action),
    Column("subject", lambda entry: entry.subject),
    Column("detail", lambda entry: entry.detail),
)


@click.group(cls=Group)
def trail() -> None:
    """What was done by whom: tokens, accounts, groups, queues, tasks, pilots. Needs an admin's token."""


@trail.command(
    "list",
    epilog=examples("pilotage trail list --limit 20", "pilotage trail list --who ada --action 'task cancel'"),
)
@click.option("--who", help="By this account.")
@click.option("--action", help='Such actions only, as "token create".')
@click.option("--subject", help="What it was done to.")
@limit_option
@json_option
@with_session
def list_trail(
    session: Session, *, who: str | None, action: str | None, subject: str | None, limit: int, as_json: bool
) -> None:
    """List actions, the newest first."""
    entries = session.trail(who=who, action=action, subject=subject)
    asked = who or action or subject
    nothing = "No action fits; without options all are shown." if asked else "No action was noted yet."
    print_list(entries, _COLUMNS, limit, as_json, nothing)
