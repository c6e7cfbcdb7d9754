"""`pilotage node`: worker nodes on which jobs failed within seconds, one after the other, and that were put aside."""

from __future__ import annotations

from itertools import islice

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.states import QueueState

LOOKED_AT = 10_000
"""Pilots of a queue, the newest first, among which a node is looked for."""
_COLUMNS = (
    Column("queue", lambda node: node.queue),
    Column("node", lambda node: node.node),
    Column("state", lambda node: node.state),
    Column("quick failures", lambda node: node.quick_failures, right=True),
    Column("since (UTC)", lambda node: tables.when(node.since)),
    Column("reason", lambda node: node.reason),
)


@click.group(cls=Group)
def node() -> None:
    """Worker nodes that were put aside, or on which jobs failed within seconds."""


@node.command("list", epilog=examples("pilotage node list", "pilotage node list --queue CPU"))
@click.option("--queue", metavar="QUEUE")
@limit_option
@json_option
@with_session
def list_nodes(session: Session, *, queue: str | None, limit: int, as_json: bool) -> None:
    """List them; nodes that do well are not kept."""
    print_list(session.nodes(queue=queue), _COLUMNS, limit, as_json, "No node was put aside.")


@node.command(
    "set",
    epilog=examples(
        "pilotage node set CPU wn17 --online", "pilotage node set CPU wn17 --offline --reason 'bad disk'"
    ),
)
@click.argument("queue", metavar="QUEUE")
@click.argument("node", metavar="NODE")
@click.option("--online/--offline", default=None, help="Let it have jobs again, or put it aside.")
@click.option("--reason", default="", metavar="TEXT", help="Shown to whoever asks why a job waits.")
@json_option
@with_session
def set_state(
    session: Session, *, queue: str, node: str, online: bool | None, reason: str, as_json: bool
) -> None:
    """Lift a node that was put aside, or put one aside by hand. Needs an admin's token."""
    if online is None:
        raise click.UsageError("say --online or --offline")
    view = session.set_node_state(queue, node, QueueState.ONLINE if online else QueueState.OFFLINE, reason)
    if as_json:
        return tables.show(view)
    tables.write(f"Node {view.node} of {view.queue} is {view.state}.")
    if not online and all(pilot.node != node for pilot in islice(session.pilots(queue=queue), LOOKED_AT)):
        tables.say(
            f"Pilots of {queue} have not been seen on {node} of late: is that its name? Pilots know it by 'hostname'."
        )
    return None
