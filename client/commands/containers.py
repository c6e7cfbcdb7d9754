"""`pilotage dataset container`: named lists of datasets, over which a task may run."""

from __future__ import annotations

from collections.abc import Sequence

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, say_next, with_session
from client.session import Session
from client.tables import Column
from protocol.messages.requests import ContainerSpec
from protocol.messages.views import ContainerView

_COLUMNS = (
    Column("container", lambda container: container.name),
    Column("datasets", lambda container: container.n_datasets, right=True),
    Column("owner", lambda container: container.owner),
    Column("created (UTC)", lambda container: tables.when(container.created)),
)
_DATASETS = (
    Column("dataset", lambda dataset: dataset.name),
    Column("state", lambda dataset: dataset.state),
    Column("files", lambda dataset: dataset.n_files, right=True),
    Column("size", lambda dataset: tables.size(dataset.size), right=True),
)


@click.group(cls=Group)
def container() -> None:
    """Containers: named lists of datasets, over which a task may run."""


@container.command(epilog=examples("pilotage dataset container create runs-2026 run-1 run-2"))
@click.argument("name", metavar="NAME")
@click.argument("datasets", nargs=-1, metavar="DATASET...")
@json_option
@with_session
def create(session: Session, *, name: str, datasets: Sequence[str], as_json: bool) -> None:
    """Make a container of datasets, in the order in which tasks read them."""
    _print(session.create_container(ContainerSpec(name, list(datasets))), as_json)
    if not as_json:
        say_next(f"pilotage task submit --input {name} -- COMMAND '{{input}}'")


@container.command(epilog=examples("pilotage dataset container add runs-2026 run-3"))
@click.argument("name", metavar="NAME")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@json_option
@with_session
def add(session: Session, *, name: str, datasets: Sequence[str], as_json: bool) -> None:
    """Add datasets at the end; tasks that were submitted before are not changed."""
    _print(session.change_container(name, add=datasets), as_json)


@container.command(epilog=examples("pilotage dataset container remove runs-2026 run-2"))
@click.argument("name", metavar="NAME")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@json_option
@with_session
def remove(session: Session, *, name: str, datasets: Sequence[str], as_json: bool) -> None:
    """Take datasets out of a container; they themselves stay."""
    _print(session.change_container(name, remove=datasets), as_json)


@container.command(epilog=examples("pilotage dataset container show runs-2026"))
@click.argument("name", metavar="NAME")
@json_option
@with_session
def show(session: Session, *, name: str, as_json: bool) -> None:
    """Show a container and its datasets."""
    _print(session.container(name), as_json)


@container.command("list", epilog=examples("pilotage dataset container list --name 2026"))
@click.option("--name", metavar="TEXT", help="A part of the name.")
@limit_option
@json_option
@with_session
def list_containers(session: Session, *, name: str | None, limit: int, as_json: bool) -> None:
    """List containers, the newest first."""
    print_list(session.containers(name=name), _COLUMNS, limit, as_json, "No such container.")


@container.command(epilog=examples("pilotage dataset container delete runs-2026"))
@click.argument("name", metavar="NAME")
@json_option
@with_session
def delete(session: Session, *, name: str, as_json: bool) -> None:
    """Remove a container; its datasets stay."""
    session.delete_container(name)
    if as_json:
        return tables.show({"deleted": name})
    tables.write(f"The container {name} is deleted; its datasets stay.")
    return None


def _print(view: ContainerView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    if view.datasets:
        tables.print_table(view.datasets, _DATASETS, f"Container {view.name}")
    else:
        tables.write(f"Container {view.name} lists no dataset.")
    return None
