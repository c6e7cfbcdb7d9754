"""`pilotage group`: the tree of working groups, whose shares divide the resources."""

from __future__ import annotations

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, with_session
from client.session import Session
from client.tables import Column
from protocol.messages.requests import GroupChange, GroupSpec
from protocol.messages.views import GroupView

_SHARE = {"metavar": "N", "type": click.IntRange(min=1)}
_QUOTA = {"metavar": "N", "type": click.IntRange(min=0)}


@click.group(cls=Group)
def group() -> None:
    """Working groups: a task is paid by one. Shares count among the groups of one parent."""


@group.command("list", epilog=examples("pilotage group list"))
@json_option
@with_session
def list_groups(session: Session, *, as_json: bool) -> None:
    """Draw the tree: share, part of the whole, usage, open jobs and quota of each group.

    The part is what a group gets while all groups have jobs that wait. Usage (core-hours, of late) and open jobs
    count those of the groups below.
    """
    views = session.groups()
    if as_json:
        return tables.show(views)
    if not views:
        return tables.say("No working group yet; see: pilotage group create --help")
    branches = dict(zip((view.name for view in views), _branches(views), strict=True))
    tables.print_table(
        views,
        (
            Column("group", lambda view: branches[view.name] + view.name),
            Column("share", lambda view: view.share, right=True),
            Column("part", lambda view: f"{100 * view.fraction:.1f} %", right=True),
            Column("core-hours", lambda view: f"{view.usage / 3600:.1f}", right=True),
            Column("open jobs", lambda view: view.n_open, right=True),
            Column("at most", lambda view: view.max_open_jobs or None, right=True),
        ),
    )
    return None


def _branches(views: list[GroupView]) -> list[str]:
    """What stands before each name, so that the rows make a tree; each group comes after its parent."""
    parents = {view.name: view.parent for view in views}
    last = {view.parent: view.name for view in views}
    drawn = []
    for view in views:
        if not view.parent:
            drawn.append("")
            continue
        text = "└─ " if last[view.parent] == view.name else "├─ "
        above = view.parent
        while parents.get(above):
            text = ("   " if last[parents[above]] == above else "│  ") + text
            above = parents[above]
        drawn.append(text)
    return drawn


@group.command(
    epilog=examples(
        "pilotage group create spd --share 300",
        "pilotage group create spd.simulation --parent spd --share 30 --max-open-jobs 5000",
    )
)
@click.argument("name", metavar="GROUP")
@click.option("--parent", default="", help="The group that it is part of.")
@click.option("--share", default=100, show_default=True, help="Its share among its siblings.", **_SHARE)  # type: ignore[arg-type]
@click.option(
    "--max-open-jobs",
    default=0,
    help="Jobs formed and not ended at a time; 0: any number.",
    **_QUOTA,  # type: ignore[arg-type]
)
@json_option
@with_session
def create(session: Session, *, as_json: bool, **options: object) -> None:
    """Make a working group. Needs an admin's token."""
    _print(session.create_group(GroupSpec(**options)), as_json)  # type: ignore[arg-type]


@group.command(
    "set", epilog=examples("pilotage group set spd --share 200", 'pilotage group set spd.test --parent ""')
)
@click.argument("name", metavar="GROUP")
@click.option("--parent", help='Another parent; "": none.')
@click.option("--share", help="Another share.", **_SHARE)  # type: ignore[arg-type]
@click.option("--max-open-jobs", help="Another quota; 0: none.", **_QUOTA)  # type: ignore[arg-type]
@json_option
@with_session
def set_group(session: Session, *, name: str, as_json: bool, **options: object) -> None:
    """Give a working group another parent, share or quota. Needs an admin's token."""
    if all(value is None for value in options.values()):
        raise click.UsageError("Nothing to change: give --parent, --share or --max-open-jobs.")
    _print(session.change_group(name, GroupChange(**options)), as_json)  # type: ignore[arg-type]


@group.command(epilog=examples("pilotage group remove spd.test"))
@click.argument("name", metavar="GROUP")
@json_option
@with_session
def remove(session: Session, *, name: str, as_json: bool) -> None:
    """Remove a working group that no group, account or running task names. Needs an admin's token."""
    session.remove_group(name)
    if as_json:
        tables.show({"removed": name})
        return
    tables.write(f"The working group {name} is removed.")


def _print(view: GroupView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    tables.print_facts(
        {
            "group": view.name,
            "parent": view.parent or "none",
            "share": f"{view.share}, {100 * view.fraction:.1f} % of the whole",
            "open jobs": f"{view.n_open} of at most {view.max_open_jobs}"
            if view.max_open_jobs
            else view.n_open,
        }
    )
    return None
