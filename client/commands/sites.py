"""`pilotage site`: the centres that own queues and storages."""

from __future__ import annotations

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.states import QueueState

_COLUMNS = (
    Column("site", lambda site: site.name),
    Column("state", lambda site: site.state),
    Column("reason", lambda site: site.state_reason),
)


@click.group(cls=Group)
def site() -> None:
    """Sites: the centres that own queues and storages. A new queue makes its site."""


@site.command("list", epilog=examples("pilotage site list"))
@limit_option
@json_option
@with_session
def list_sites(session: Session, *, limit: int, as_json: bool) -> None:
    """List sites."""
    print_list(session.sites(), _COLUMNS, limit, as_json, "No site.")


@site.command(
    "set",
    epilog=examples("pilotage site set JINR offline --reason 'power cut'", "pilotage site set JINR online"),
)
@click.argument("name", metavar="SITE")
@click.argument("state", type=click.Choice([QueueState.ONLINE.value, QueueState.OFFLINE.value]))
@click.option("--reason", default="", metavar="TEXT", help="Shown to whoever asks why a job waits.")
@json_option
@with_session
def set_state(session: Session, *, name: str, state: str, reason: str, as_json: bool) -> None:
    """Open or close a site: while it is offline, none of its queues hands out jobs. Needs an admin's token."""
    view = session.set_site_state(name, QueueState(state), reason)
    if as_json:
        return tables.show(view)
    tables.write(f"Site {view.name} is {view.state}.")
    return None
