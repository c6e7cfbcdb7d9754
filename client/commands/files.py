"""`pilotage file`: find files in all datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.messages.views import ReplicaView
from protocol.states import ReplicaState

COLUMNS = (
    Column("lfn", lambda file: file.lfn),
    Column("dataset", lambda file: file.dataset),
    Column("state", lambda file: file.state),
    Column("size", lambda file: tables.size(file.size), right=True),
    Column("checksum", lambda file: _shortest(file.checksums)),
    Column("of job", lambda file: file.job_id, right=True),
    Column("address", lambda file: file.url),
    Column("replicas", lambda file: _replicas(file.replicas)),
)


def _replicas(replicas: Sequence[ReplicaView] | None) -> str | None:
    """How many, and what is known against some of them."""
    if replicas is None:
        return None
    wrong = [each for each in replicas if each.state != ReplicaState.GOOD]
    words = [f"{each.state}{f' on {each.storage}' if each.storage else ''}: {each.reason}" for each in wrong]
    return "; ".join([str(len(replicas)), *words])


def _shortest(checksums: Mapping[str, str]) -> str | None:
    """One checksum is enough for people; --json has all."""
    return min((f"{name}:{digits}" for name, digits in checksums.items()), key=len, default=None)


@click.group(cls=Group)
def file() -> None:
    """Files: where a logical name is registered, and where its bytes lie."""


@file.command(
    "list",
    epilog=examples("pilotage file list --lfn run-000001-00000-00.spd", "pilotage file list --scope run-1"),
)
@click.option("--lfn", metavar="NAME", help="The whole logical name.")
@click.option("--scope", metavar="SCOPE")
@click.option("--dataset", metavar="DATASET")
@limit_option
@json_option
@with_session
def list_files(
    session: Session, *, lfn: str | None, scope: str | None, dataset: str | None, limit: int, as_json: bool
) -> None:
    """List files."""
    nothing = (
        "No such file."
        if lfn or scope or dataset
        else "No file yet; register some: pilotage dataset register --help"
    )
    print_list(session.files(scope=scope, lfn=lfn, dataset=dataset), COLUMNS, limit, as_json, nothing)
