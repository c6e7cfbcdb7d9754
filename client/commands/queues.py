"""`pilotage queue`: the computing queues for which pilots pull."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from client import tables
from client.commands import Group, common
from client.commands.common import F, examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.messages.requests import QueueChange, QueueSpec
from protocol.messages.views import QueueView
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
_SECONDS: dict[str, Any] = {"type": int, "metavar": "S"}
_TOLD_AT_THE_START = {
    *("copytools", "lease_seconds", "heartbeat_seconds", "timefloor_seconds"),
    *("pilot_settings", "unset"),
}
"""Fields that a pilot learns when it registers."""


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


_FIELDS = (
    click.option("--site", help="Where it is; one of a new name is made."),
    click.option("--gpu/--cpu", default=None, help="Whether its pilots have a GPU."),
    click.option("--tag", "--tags", "tags", multiple=True, metavar="TAG,...",
                 help="What its nodes have that jobs may require; may be repeated."),
    click.option("--country", "country_group", metavar="GROUP", help="The country group of its nodes."),
    click.option("--storage", help='Takes the outputs; "": the server\'s first.'),
    click.option("--copytool", "--copytools", "copytools", multiple=True, metavar="NAME,...",
                 help="What its pilots may copy files with, best first; may be repeated."),
    click.option("--lease-seconds", help="A pilot silent for longer loses its jobs; 0: the server's default ([queue] lease_seconds).",
                 **_SECONDS),
    click.option("--heartbeat-seconds", help="How often pilots speak; 0: the server's default ([queue] heartbeat_seconds).", **_SECONDS),
    click.option("--timefloor-seconds", help="Pilots older than this ask for no further job; 0: no limit.", **_SECONDS),
    click.option("--requeue-delay", "requeue_delay_seconds",
                 help="A lost job waits so long for its pilot before another one may have it; 0: not at all.", **_SECONDS),
    click.option("--pilot-setting", "pilot_settings", multiple=True, metavar="SECTION.KEY=VALUE",
                 help="A setting of its pilots, stronger than theirs; may be repeated."),
)  # fmt: skip
"""What a queue is made with, and what may be changed of it."""


def _with_fields(function: F) -> F:
    for option in reversed(_FIELDS):
        function = option(function)
    return function


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The fields that options were given for; a list that was given as "" is empty."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    for name in given.keys() & {"tags", "copytools", "unset"}:
        given[name] = _words(given[name])
    if "pilot_settings" in given:
        given["pilot_settings"] = common.pilot_settings(given["pilot_settings"])
    if "gpu" in given:
        given["resource_type"] = ResourceType.GPU if given.pop("gpu") else ResourceType.CPU
    return given


def _words(texts: Iterable[str]) -> list[str]:
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


@queue.command(
    epilog=examples(
        "pilotage queue create SPD_GPU --gpu --site JINR",
        "pilotage queue create LONG --lease-seconds 600",
        "pilotage queue create LHCB --pilot-setting validation.mounts=/cvmfs/lhcb.cern.ch",
    )
)
@click.argument("name", metavar="QUEUE")
@_with_fields
@json_option
@with_session
def create(session: Session, *, name: str, as_json: bool, **options: Any) -> None:
    """Define a queue. Needs an admin's token.

    What is not given: a cpu queue at the site LOCAL with the server's first storage and default times, and pilots that
    copy with any copytool that knows the address. 'pilotage queue set' changes it.
    """
    _print(session.create_queue(QueueSpec(name, **_given(options))), as_json)


@queue.command(
    "set",
    epilog=examples(
        "pilotage queue set CPU drain --reason 'power cut at 18:00'",
        "pilotage queue set CPU online",
        "pilotage queue set FARM --lease-seconds 600 --copytool nfs,cp",
        "pilotage queue set FARM --pilot-setting payload.task_images=yes --pilot-setting payload.executor=bubblewrap",
        "pilotage queue set FARM --unset payload.executor --tags ''",
    ),
)
@click.argument("name", metavar="QUEUE")
@click.argument("state", required=False, type=click.Choice([each.value for each in QueueState]))
@click.option("--reason", default="", metavar="TEXT", help="Shown to whoever asks why a job waits.")
@_with_fields
@click.option("--unset", multiple=True, metavar="SECTION.KEY",
              help="Take a setting of its pilots away; may be repeated.")  # fmt: skip
@json_option
@with_session
def set_queue(
    session: Session,
    *,
    name: str,
    state: str | None,
    reason: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Open or close a queue, or change what it was made with. Needs an admin's token.

    online hands out jobs, test one at a time; drain and offline hand out none, and leave running jobs alone. The server
    sets a queue to test by itself when too many attempts fail there, and online again; one that was closed by hand stays.

    What is not given stays; a list is replaced, '' empties it; settings of pilots are changed one by one. Pilots that run
    keep what they were told at their start.
    """
    given = _given(options)
    if not given and state is None:
        raise click.UsageError("Nothing to change: give a state, or an option.")
    if reason and state is None:
        raise click.UsageError("--reason goes with a state.")
    if given:
        view = session.change_queue(name, QueueChange(**given))
    if state is not None:
        view = session.set_queue_state(name, QueueState(state), reason)
    _print(view, as_json)
    if given.keys() & _TOLD_AT_THE_START and view.n_pilots:
        tables.say(
            f"what runs there now ({tables.some(view.n_pilots, 'pilot')}) keeps what it was told at its start; "
            f"'pilotage pilot drain --queue {name}' ends it in order"
        )


@queue.command(epilog=examples("pilotage queue delete FARM"))
@click.argument("name", metavar="QUEUE")
@json_option
@with_session
def delete(session: Session, *, name: str, as_json: bool) -> None:
    """Delete a queue that nothing uses. Needs an admin's token.

    Refused while jobs run there, pilots of it are alive, or no other queue takes the jobs of some task. What ran there
    stays in lists and usage. Tokens for this queue alone are revoked.
    """
    session.delete_queue(name)
    if as_json:
        tables.show({"deleted": name})
        return
    tables.write(f"The queue {name} is deleted.")


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
