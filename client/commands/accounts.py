"""`pilotage account`: who owns tasks and datasets, in which working group and with which quota."""

from __future__ import annotations

import click

from client import tables
from client.commands import Group
from client.commands.common import examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.messages.requests import AccountChange, AccountSpec
from protocol.messages.views import AccountView

_COLUMNS = (
    Column("account", lambda view: view.name),
    Column("group", lambda view: view.working_group or None),
    Column("open jobs", lambda view: view.n_open, right=True),
    Column("at most", lambda view: view.max_open_jobs or None, right=True),
    Column("made", lambda view: tables.when(view.created)),
)
_QUOTA = {"metavar": "N", "type": click.IntRange(min=0)}


@click.group(cls=Group)
def account() -> None:
    """Accounts: each owns tasks and datasets; its tokens speak for it."""


@account.command("list", epilog=examples("pilotage account list"))
@limit_option
@json_option
@with_session
def list_accounts(session: Session, *, limit: int, as_json: bool) -> None:
    """List accounts, with their jobs that are formed and have not ended."""
    print_list(session.accounts(), _COLUMNS, limit, as_json, "No account; see: pilotage token create --help")


@account.command(epilog=examples("pilotage account create ada --group spd --max-open-jobs 1000"))
@click.argument("name", metavar="ACCOUNT")
@click.option("--group", "working_group", default="", help="Its working group pays for its tasks.")
@click.option(
    "--max-open-jobs",
    default=0,
    help="Jobs formed and not ended at a time; 0: any number.",
    **_QUOTA,  # type: ignore[arg-type]
)
@json_option
@with_session
def create(session: Session, *, as_json: bool, **options: object) -> None:
    """Make an account. Needs an admin's token."""
    _print(session.create_account(AccountSpec(**options)), as_json)  # type: ignore[arg-type]


@account.command(
    "set",
    epilog=examples("pilotage account set ada --group physics", "pilotage account set ada --max-open-jobs 0"),
)
@click.argument("name", metavar="ACCOUNT")
@click.option("--group", "working_group", help='Another working group; "": none.')
@click.option("--max-open-jobs", help="Another quota; 0: none.", **_QUOTA)  # type: ignore[arg-type]
@json_option
@with_session
def set_account(session: Session, *, name: str, as_json: bool, **options: object) -> None:
    """Give an account another group or quota. Needs an admin's token.

    Tasks that are there stay with the group that they were registered for.
    """
    if all(value is None for value in options.values()):
        raise click.UsageError("Nothing to change: give --group or --max-open-jobs.")
    _print(session.change_account(name, AccountChange(**options)), as_json)  # type: ignore[arg-type]


def _print(view: AccountView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    tables.print_facts(
        {
            "account": view.name,
            "group": view.working_group or "none",
            "open jobs": f"{view.n_open} of at most {view.max_open_jobs}"
            if view.max_open_jobs
            else view.n_open,
        }
    )
    return None
