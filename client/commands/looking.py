"""`pilotage job debug|tail|ps|ls|du|stack|stop`: look at a job that runs, and tell its payload to end."""

from __future__ import annotations

import click

from client import looking, tables
from client.commands.common import examples, json_option, say_next, with_session
from client.session import Session
from protocol.files import check_inside
from protocol.messages.requests import DebugWish
from protocol.redaction import lines, one_line

_ABOUT = {
    "ps": "Show the processes of a payload that runs.",
    "ls": "List the directory of a job that runs.",
    "du": "Show how much lies in the directory of a job that runs.",
    "stack": "Show what the processes of a payload are doing: calls, open files, and stacks where the node has a debugger.",
}


@click.command(
    epilog=examples(
        "pilotage job debug 17", "pilotage job debug 17 --file log.txt", "pilotage job debug 17 --off"
    )
)
@click.argument("job_id", type=int, metavar="ID")
@click.option("--off", is_flag=True, help="End it.")
@click.option(
    "--file", metavar="NAME", help="This file of the job's directory, and not the one changed last."
)
@json_option
@with_session
def debug(session: Session, *, job_id: int, off: bool, file: str | None, as_json: bool) -> None:
    """Let the pilot of a job send the ends of its output and of a file, until the attempt ends.

    It does so every five minutes, and every two seconds while somebody watches (pilotage job tail). For the owner and admins.
    """
    check_inside(file or "", "file")
    view = session.debug_job(job_id, DebugWish(on=not off, file=file))
    if as_json:
        return tables.show(view)
    what = "off" if off else "on"
    tables.write(
        one_line(f"Debug mode of job {job_id}, attempt {view.attempt_nr} on node {view.node}, is {what}.")
    )
    if view.at is not None and not off:
        tables.write(f"Sent {tables.when(view.at)} (UTC):")
        for name, text in (("payload.stdout", view.stdout), (view.file, view.text)):
            if name:
                tables.write(f"==> {one_line(name)} <==\n{lines(text)}")
    if not off:
        say_next(f"pilotage job tail {job_id} -f")
    return None


@click.command(
    epilog=examples(
        "pilotage job tail 17",
        "pilotage job tail 17 -f",
        "pilotage job tail 17 -f --file log.txt",
        "pilotage job tail 17 -f --latest",
    )
)
@click.argument("job_id", type=int, metavar="ID")
@click.option(
    "-f", "--follow", "forever", is_flag=True, help="Go on until the attempt ends; Ctrl-C ends it before."
)
@click.option("--file", metavar="NAME", help="A file of the job's directory.  [default: its standard output]")
@click.option("--latest", is_flag=True, help="The file that was changed last.")
@json_option
@with_session
def tail(
    session: Session, *, job_id: int, forever: bool, file: str | None, latest: bool, as_json: bool
) -> None:
    """Show the end of what a job that runs has printed, at most 16 KiB.

    Its pilot hears of it with its next heartbeat, and then sends every two seconds until a minute after the last look. All that
    was printed is in the log afterwards: pilotage job log. For the owner and admins.
    """
    if latest and file is not None:
        raise click.UsageError("--file and --latest exclude each other")
    if as_json and forever:
        raise click.UsageError("--json and --follow exclude each other")
    name = looking.LATEST if latest else check_inside(file, "file") if file is not None else None
    follower = looking.Follower(name)
    for view in looking.views(session, job_id, name, tables.say):
        if as_json:
            return tables.show(view)
        click.echo(follower.of(view), nl=False)
        if not forever:
            break
    return None


def _inspection(kind: str) -> click.Command:
    @click.command(
        kind, help=f"{_ABOUT[kind]} For the owner and admins.", epilog=examples(f"pilotage job {kind} 17")
    )
    @click.argument("job_id", type=int, metavar="ID")
    @json_option
    @with_session
    def inspect(session: Session, *, job_id: int, as_json: bool) -> None:
        found = looking.inspect(session, job_id, kind)
        if as_json:
            return tables.show(found)
        tables.write(lines(found.text or "").rstrip("\n"))
        return None

    return inspect


@click.command(epilog=examples("pilotage job stop 17"))
@click.argument("job_id", type=int, metavar="ID")
@json_option
@with_session
def stop(session: Session, *, job_id: int, as_json: bool) -> None:
    """Tell the payload of a job to end by itself (SIGTERM).

    What it makes of that counts: it may save its work and complete. To end a job whatever it does: pilotage job cancel.
    """
    view = session.stop_job(job_id)
    if as_json:
        return tables.show(view)
    tables.write(
        f"Job {view.job_id} of task {view.task} is {view.state}; its pilot hears of it with its next heartbeat."
    )
    say_next(f"pilotage job show {view.job_id}")
    return None


ALL: tuple[click.Command, ...] = (debug, tail, *(_inspection(kind) for kind in _ABOUT), stop)
