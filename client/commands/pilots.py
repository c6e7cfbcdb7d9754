"""`pilotage pilot list`, `show`, `drain` and `update`: what the server knows of its pilots, and how to let them end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from client import tables
from client.commands.common import examples, json_option, limit_option, print_list, say_next, with_session
from client.metrics import benchmark_line
from client.session import Session
from client.tables import Column
from protocol.messages.pilots import CacheReport, GpuKind
from protocol.messages.views import PilotsDrained, PilotView
from protocol.states import PilotState

F = TypeVar("F", bound=Callable[..., Any])

_COLUMNS = (
    Column("pilot", lambda pilot: pilot.pilot_id),
    Column("state", lambda pilot: _state(pilot)),
    Column("node", lambda pilot: pilot.node),
    Column("queue", lambda pilot: pilot.queue),
    Column("type", lambda pilot: pilot.resource_type),
    Column("cores", lambda pilot: pilot.cores, right=True),
    Column("GPUs", lambda pilot: "; ".join(map(_kind, pilot.gpu_kinds)) or pilot.gpus or ""),
    Column("running", lambda pilot: pilot.n_held, right=True),
    Column("done", lambda pilot: pilot.n_done, right=True),
    Column("last word (UTC)", lambda pilot: tables.when(pilot.last_seen)),
    Column("exit", lambda pilot: pilot.exit_code, right=True),
    Column("batch job", lambda pilot: pilot.batch_id),
    Column("from cache", lambda pilot: _hit_rate(pilot.cache) if pilot.cache else "", right=True),
)


@click.command(
    "list", epilog=examples("pilotage pilot list", "pilotage pilot list --queue GPU --state alive")
)
@click.option("--queue", metavar="QUEUE")
@click.option("--state", type=click.Choice([each.value for each in PilotState]))
@limit_option
@json_option
@with_session
def list_pilots(session: Session, *, queue: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List pilots, the newest first."""
    nothing = (
        "No such pilot." if queue or state else "No pilot was here yet; start one: pilotage pilot run --help"
    )
    print_list(session.pilots(queue=queue, state=state), _COLUMNS, limit, as_json, nothing)


@click.command(epilog=examples("pilotage pilot show PILOT"))
@click.argument("pilot_id", metavar="PILOT")
@json_option
@with_session
def show(session: Session, *, pilot_id: str, as_json: bool) -> None:
    """Show one pilot."""
    view = session.pilot(pilot_id)
    if as_json:
        return tables.show(view)
    ended = (
        None if view.exit_code is None else f"exit code {view.exit_code}: {view.reason or 'no reason given'}"
    )
    tables.print_facts(
        {
            "pilot": view.pilot_id,
            "state": _state(view),
            "ended": ended,
            "node": view.node,
            "batch job": f"{view.batch_id} of {view.batch_system}" if view.batch_id else None,
            "queue": f"{view.queue} at {view.site} ({view.resource_type})",
            "version": view.version,
            "offers": f"{view.slots} slots, {view.cores} cores, {view.memory_mb} MB of memory, {view.gpus} GPUs",
            "GPUs": ", ".join(_kind(kind) + _memory(kind) for kind in view.gpu_kinds),
            "benchmark": benchmark_line(view.benchmark),
            "jobs": f"{view.n_held} now, {view.n_done} done",
            "inputs": _of_cache(view.cache) if view.cache else None,
            "first word": tables.when(view.first_seen),
            "last word": tables.when(view.last_seen),
        }
    )
    return None


def _state(view: PilotView) -> str:
    word = "updating" if view.updating else "draining"
    return f"{view.state}, {word}" if view.draining and view.exit_code is None else view.state


def _kind(kind: GpuKind) -> str:
    return f"{kind.count} {kind.model or 'of a model that is not known'}"


def _memory(kind: GpuKind) -> str:
    return f" with {kind.memory_mb} MiB" if kind.memory_mb else ""


def _hit_rate(cache: CacheReport) -> str:
    """How many of the inputs that could have been there were; in whole percent."""
    wanted = cache.hits + cache.misses
    return f"{100 * cache.hits // wanted} %" if wanted else ""


def _of_cache(cache: CacheReport) -> str:
    wanted = cache.hits + cache.misses
    told = f"{cache.hits} of {wanted} from the node's cache"
    if wanted:
        all_bytes = cache.hit_bytes + cache.miss_bytes
        told += f" ({_hit_rate(cache)}; {tables.size(cache.hit_bytes)} of {tables.size(all_bytes)})"
    return f"{told}, which has {tables.some(cache.n_files, 'file')}, {tables.size(cache.n_bytes)}"


def _one_or_all(outdated: str) -> Callable[[F], F]:
    """Which pilots a word is for."""

    def add(command: F) -> F:
        for option in (
            json_option,
            click.option("--outdated", is_flag=True, help=outdated),
            click.option("--queue", metavar="QUEUE", help="All pilots that are in this queue now."),
            click.argument("pilot_id", required=False, metavar="PILOT"),
        ):
            command = option(command)
        return command

    return add


@click.command(
    epilog=examples(
        "pilotage pilot drain PILOT",
        "pilotage pilot drain --queue CPU",
        "pilotage pilot drain --queue CPU --outdated",
    )
)
@_one_or_all("Only those of another version than the server's: wrappers start new ones.")
@with_session
def drain(
    session: Session, *, pilot_id: str | None, queue: str | None, outdated: bool, as_json: bool
) -> None:
    """Let pilots end: they take no further job, and end when those that they hold have. Needs an admin's token."""
    _check(pilot_id, queue, outdated)
    if not queue:
        return _print_one(session.drain_pilot(str(pilot_id)), as_json)
    _print_all(
        session.drain_pilots(queue, outdated=outdated), f"of {queue} will take no further job", as_json
    )
    if not as_json:
        say_next(f"pilotage pilot list --queue {queue} --state alive")
    if not outdated and not as_json:
        say_next(f"pilotage queue set {queue} drain --reason TEXT")
    return None


@click.command(
    epilog=examples(
        "pilotage pilot update PILOT",
        "pilotage pilot update --queue CPU",
        "pilotage pilot update --queue CPU --outdated",
    )
)
@_one_or_all("Only those of another version than the server's.")
@with_session
def update(
    session: Session, *, pilot_id: str | None, queue: str | None, outdated: bool, as_json: bool
) -> None:
    """Let the server's present pilot take the place of others, when the jobs that these hold have ended. Needs an admin's token.

    The wrapper run_pilot.sh starts it at once, and so does the daemon. A pilot that was started otherwise ends with exit code 84;
    one with --max-jobs, and one that is too old to know this, ends as if it were drained.
    """
    _check(pilot_id, queue, outdated)
    if not queue:
        return _print_one(session.update_pilot(str(pilot_id)), as_json)
    told = session.update_pilots(queue, outdated=outdated)
    return _print_all(told, f"of {queue} will make way for the server's present one", as_json)


def _check(pilot_id: str | None, queue: str | None, outdated: bool) -> None:
    if bool(pilot_id) == bool(queue):
        raise click.UsageError("name a pilot, or --queue QUEUE for all that are there")
    if outdated and not queue:
        raise click.UsageError("--outdated goes with --queue")


def _print_one(view: PilotView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    tables.write(f"Pilot {view.pilot_id} is {_state(view)}, with {tables.some(view.n_held, 'job')}.")
    if view.exit_code is None:
        say_next(f"pilotage pilot show {view.pilot_id}")
    return None


def _print_all(told: PilotsDrained, will: str, as_json: bool) -> None:
    if as_json:
        return tables.show(told)
    return tables.write(f"{tables.some(told.n_pilots, 'pilot')} {will}.")
