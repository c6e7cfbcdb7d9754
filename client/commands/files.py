"""`pilotage file`: find files in all datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.errors import PilotageError
from protocol.messages.views import FileView, JobView, ReplicaView
from protocol.states import ReplicaState

MOST_SHOWN = 20
"""Files of one name, and inputs of one job."""

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


@file.command(epilog=examples("pilotage file show run-000001-00000-00.md5 --dataset md5.out"))
@click.argument("lfn", metavar="LFN")
@click.option("--scope", metavar="SCOPE")
@click.option("--dataset", metavar="DATASET")
@json_option
@with_session
def show(session: Session, *, lfn: str, scope: str | None, dataset: str | None, as_json: bool) -> None:
    """Show a file: what it is, where it lies, and which job made it of which files. In several scopes: each of them."""
    found = list(islice(session.files(scope=scope, lfn=lfn, dataset=dataset), MOST_SHOWN))
    if not found:
        raise PilotageError("NOT_FOUND", f"no file {lfn!a}", advice="pilotage file list --help")
    shown = [(each, _job(session, each.job_id)) for each in found]
    if as_json:
        return tables.show([{"file": each, "madeBy": job} for each, job in shown])
    for index, (each, job) in enumerate(shown):
        if index:
            tables.write("")
        tables.print_facts({**_facts(each), **_origin(each, job)})
    return None


def _job(session: Session, job_id: int | None) -> JobView | None:
    """The job that made a file; None if it was registered, or if the job was pruned from the archive."""
    if job_id is None:
        return None
    try:
        return session.job(job_id)
    except PilotageError as error:
        if error.name != "NOT_FOUND":
            raise
        return None


def _facts(view: FileView) -> dict[str, object]:
    return {
        "file": view.lfn,
        "scope": view.scope,
        "dataset": view.dataset,
        "state": view.state,
        "size": tables.size(view.size),
        **view.checksums,
        "address": view.url,
    }


def _origin(view: FileView, job: JobView | None) -> dict[str, object]:
    if view.job_id is None:
        return {"made by": "registration"}
    if job is None:
        return {
            "made by": f"job {view.job_id}, which was pruned; see pilotage dataset lineage {view.dataset}"
        }
    last = next((each for each in reversed(job.attempts or ()) if each.error is None), None)
    inputs = [f"{each.lfn} ({each.dataset})" for each in job.inputs or ()]
    more = f" and {len(inputs) - MOST_SHOWN} more" if len(inputs) > MOST_SHOWN else ""
    return {
        "made by": f"job {job.job_id} of task {job.task_id} ({job.task})",
        "on node": last.node if last else None,
        "made of": ", ".join(inputs[:MOST_SHOWN]) + more,
    }
