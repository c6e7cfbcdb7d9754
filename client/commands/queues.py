"""`pilotage queue`: the computing queues for which pilots pull."""

from __future__ import annotations

from typing import Any

import click

from client import tables
from client.commands import Group, common
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.messages import QueueSpec, QueueView
from protocol.resources import ResourceType
from protocol.states import QueueState

_COLUMNS = (
    Column("queue", lambda queue: queue.name),
    Column("site", lambda queue: queue.site),
    Column("type", lambda queue: queue.resource_type),
    Column("state", lambda queue: queue.state),
    Column("pilots", lambda queue: queue.n_pilots, right=True),
    Column("ready", lambda queue: queue.n_ready, right=True),
    Column("running", lambda queue: queue.n_held, right=True),
    Column("storage", lambda queue: queue.storage),
    Column("reason", lambda queue: queue.state_reason),
)
_DEFAULT = QueueSpec(name="x")
_SECONDS: dict[str, Any] = {"type": int, "metavar": "S", "show_default": True}


@click.group(cls=Group)
def queue() -> None:
    """Computing queues: each is a kind of resource for which pilots pull jobs."""


@queue.command("list", epilog=examples("pilotage queue list"))
@limit_option
@json_option
@with_session
def list_queues(session: Session, *, limit: int, as_json: bool) -> None:
    """List queues, with what waits and runs in each."""
    print_list(session.queues(), _COLUMNS, limit, as_json, "No queue.")


@queue.command(epilog=examples("pilotage queue show CPU"))
@click.argument("name", metavar="QUEUE")
@json_option
@with_session
def show(session: Session, *, name: str, as_json: bool) -> None:
    """Show one queue."""
    _print(session.queue(name), as_json)


@queue.command(
    epilog=examples(
        "pilotage queue create SPD_GPU --gpu --site JINR",
        "pilotage queue create LONG --lease-seconds 600",
        "pilotage queue create LHCB --pilot-setting validation.mounts=/cvmfs/lhcb.cern.ch",
    )
)
@click.argument("name", metavar="QUEUE")
@click.option("--site", default=_DEFAULT.site, show_default=True)
@click.option("--gpu", is_flag=True, help="Its pilots have a GPU.")
@click.option("--tag", "--tags", "tags", multiple=True, metavar="TAG,...",
              help="What its nodes have that jobs may require; may be repeated.")  # fmt: skip
@click.option(
    "--country", "country_group", default="", metavar="GROUP", help="The country group of its nodes."
)
@click.option("--storage", default="", help="Takes the outputs.  [default: the server's first]")
@click.option(
    "--copytool", "copytools", multiple=True, help="Copytool its pilots use; may be repeated, best first."
)
@click.option(
    "--lease-seconds",
    default=_DEFAULT.lease_seconds,
    help="A pilot silent for longer loses its jobs.",
    **_SECONDS,
)
@click.option(
    "--heartbeat-seconds", default=_DEFAULT.heartbeat_seconds, help="How often pilots speak.", **_SECONDS
)
@click.option(
    "--timefloor-seconds",
    default=0,
    help="Pilots older than this ask for no further job; 0: no limit.",
    **_SECONDS,
)
@click.option(
    "--requeue-delay",
    "requeue_delay_seconds",
    default=0,
    help="A lost job waits so long for its pilot before another one may have it.",
    **_SECONDS,
)
@click.option(
    "--pilot-setting",
    "pilot_settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="A setting of its pilots, stronger than theirs; may be repeated.",
)
@json_option
@with_session
def create(
    session: Session,
    *,
    gpu: bool,
    copytools: tuple[str, ...],
    tags: tuple[str, ...],
    pilot_settings: tuple[str, ...],
    as_json: bool,
    **options: object,
) -> None:
    """Define a queue. Needs an admin's token."""
    kind = ResourceType.GPU if gpu else ResourceType.CPU
    words = [tag.strip() for text in tags for tag in text.split(",") if tag.strip()]
    spec = QueueSpec(
        resource_type=kind,
        copytools=list(copytools),
        tags=words,
        pilot_settings=common.pilot_settings(pilot_settings),
        **options,  # type: ignore[arg-type]
    )
    _print(session.create_queue(spec), as_json)


@queue.command(
    "set",
    epilog=examples(
        "pilotage queue set CPU drain --reason 'power cut at 18:00'", "pilotage queue set CPU online"
    ),
)
@click.argument("name", metavar="QUEUE")
@click.argument("state", type=click.Choice([each.value for each in QueueState]))
@click.option("--reason", default="", metavar="TEXT", help="Shown to whoever asks why a job waits.")
@json_option
@with_session
def set_state(session: Session, *, name: str, state: str, reason: str, as_json: bool) -> None:
    """Open or close a queue. Needs an admin's token.

    online hands out jobs, test one at a time; drain and offline hand out none, and leave running jobs alone. The server
    sets a queue to test by itself when too many attempts fail there, and online again; one that was closed by hand stays.
    """
    _print(session.set_queue_state(name, QueueState(state), reason), as_json)


def _print(view: QueueView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    tables.print_facts(
        {
            "queue": f"{view.name} at {view.site}",
            "type": view.resource_type,
            "state": _state(view),
            "storage": view.storage,
            "copytools": ", ".join(view.copytools) or "any that knows the address",
            "lease": f"{view.lease_seconds} s, heartbeat every {view.heartbeat_seconds} s",
            "requeue delay": f"{view.requeue_delay_seconds} s" if view.requeue_delay_seconds else None,
            "tags": ", ".join(view.tags),
            "country": view.country_group,
            "pilots' settings": ", ".join(f"{name} = {value}" for name, value in view.pilot_settings.items()),
            "timefloor": f"{view.timefloor_seconds} s" if view.timefloor_seconds else None,
            "jobs": f"{view.n_ready} ready, {view.n_held} running",
            "pilots": view.n_pilots,
        }
    )
    return None


def _state(view: QueueView) -> str:
    by = f", by {view.state_by}" if view.state_by else ""
    return f"{view.state}{by}" + (f": {view.state_reason}" if view.state_reason else "")
