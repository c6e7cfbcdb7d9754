"""`pilotage storage`: the places that take the outputs of jobs."""

from __future__ import annotations

import click

from client import tables
from client.commands import Lazy, LazyGroup
from client.commands.common import examples, json_option, limit_option, print_list, say_next, with_session
from client.session import Session
from client.tables import Column
from protocol.messages.requests import StorageSpec

_COLUMNS = (
    Column("storage", lambda storage: storage.name),
    Column("address", lambda storage: storage.url),
    Column("site", lambda storage: storage.site),
    Column("suspect files", lambda storage: storage.n_suspect or None, right=True),
    Column("bad files", lambda storage: storage.n_bad or None, right=True),
)


COMMANDS = {
    "list": Lazy("client.commands.storages:list_storages", "List storages."),
    "create": Lazy("client.commands.storages:create", "Define a storage. Needs an admin's token."),
    "check": Lazy(
        "server.commands.storages:check", "Compare storages of this machine with the catalogue.", "server"
    ),
    "clean": Lazy(
        "server.commands.storages:clean",
        "Remove old logs, old outputs, what deleted datasets left.",
        "server",
    ),
    "usage": Lazy(
        "server.commands.storages:usage", "Show files and bytes by storage, dataset or task.", "server"
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def storage() -> None:
    """Storages: where pilots put the outputs and logs of jobs."""


@click.command("list", epilog=examples("pilotage storage list"))
@limit_option
@json_option
@with_session
def list_storages(session: Session, *, limit: int, as_json: bool) -> None:
    """List storages."""
    print_list(session.storages(), _COLUMNS, limit, as_json, "No storage.")


@click.command(
    epilog=examples(
        "pilotage storage create NFS file:///nfs/spd/outputs   # the same path on every node",
        "pilotage storage create DATA file:outputs             # below SCRIPT_PREFIX of each node",
    )
)
@click.argument("name", metavar="STORAGE")
@click.argument("url", metavar="URL")
@click.option(
    "--site",
    default="",
    metavar="SITE",
    help="Whose pilots are near it: they get jobs with inputs there first.",
)
@json_option
@with_session
def create(session: Session, *, name: str, url: str, site: str, as_json: bool) -> None:
    """Define a storage. Needs an admin's token."""
    view = session.create_storage(StorageSpec(name=name, url=url, site=site))
    if as_json:
        return tables.show(view)
    tables.write(f"Storage {view.name}: {view.url}")
    say_next(f"pilotage queue create QUEUE --storage {view.name}")
    return None
