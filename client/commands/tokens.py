"""`pilotage token`: credentials of users, managers of groups, operators and pilots."""

from __future__ import annotations

import os
from pathlib import Path

import click

from client import tables
from client.commands import Group
from client.commands.common import Duration, examples, json_option, limit_option, print_list, with_session
from client.session import Session
from client.tables import Column
from protocol.errors import PilotageError
from protocol.messages.requests import TokenSpec
from protocol.messages.views import TokenView

ROLES = ("user", "group", "admin", "pilot")


def _state(view: TokenView) -> str:
    if view.valid:
        return "valid"
    return "revoked" if view.revoked else "expired"


_COLUMNS = (
    Column("id", lambda view: view.token_id, right=True),
    Column("name", lambda view: view.name),
    Column("role", lambda view: view.role),
    Column("queue", lambda view: view.queue or None),
    Column("state", _state),
    Column("made", lambda view: tables.when(view.created)),
    Column("expires", lambda view: tables.when(view.expires)),
)


@click.group(cls=Group)
def token() -> None:
    """Tokens: each speaks for an account, or for pilots. Needs an admin's token.

    The server keeps only hashes: a token is shown once, when it is made.
    """


@token.command(
    epilog=examples(
        "pilotage token create ada --role user --group spd --expires 30d --out ada.token",
        "pilotage token create farm --role pilot --queue CPU --out farm.token",
    )
)
@click.argument("name", metavar="NAME")
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True)
@click.option("--group", default="", help="Working group of an account that is new.")
@click.option("--queue", default="", help="A pilot token for this queue only.")
@click.option(
    "--expires", type=Duration(), metavar="TIME", help="30d, 12h, ...  [default: when it is revoked]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the token into a new file that only you can read, instead of printing it.",
)
@json_option
@with_session
def create(session: Session, *, expires: int | None, out: Path | None, as_json: bool, **options: str) -> None:
    """Make a token for the account NAME, or one for pilots.

    user: own tasks and datasets. group: also those of its working group. admin: everything. pilot: jobs of one queue or all.
    """
    # Made first: a token that could not be written would be lost.
    descriptor = None if out is None else _new_file(out)
    try:
        view = session.create_token(TokenSpec(expires_seconds=expires or 0, **options))
    except BaseException:
        if out is not None and descriptor is not None:
            os.close(descriptor)
            out.unlink()
        raise
    if descriptor is not None:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{view.token}\n")
        view.token = None
    if as_json:
        return tables.show(view)
    if view.token is not None:
        tables.write(view.token)
    until = f", valid until {tables.when(view.expires)} (UTC)" if view.expires else ""
    where = f"in {out}" if out else "shown once: keep it in a file of mode 0600"
    tables.say(f"Token {view.token_id} of {view.name}, role {view.role}{until}; {where}.")
    if view.role == "pilot":
        queue = f" -q {view.queue}" if view.queue else ""
        tables.say(f"next: pilotage pilot run --url {session.url}{queue} --token-file {out or 'FILE'}")
    else:
        tables.say(f"next: pilotage task list --server {session.url} --token-file {out or 'FILE'}")
    return None


def _new_file(path: Path) -> int:
    """A new file of mode 0600, open for writing; ALREADY_EXISTS if there is one."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise PilotageError(
            "ALREADY_EXISTS", f"there is a file {path}; a token is not written over it"
        ) from None


@token.command("list", epilog=examples("pilotage token list", "pilotage token list --role pilot"))
@click.option("--name", help="Of this account, or with this name.")
@click.option("--role", type=click.Choice(ROLES))
@limit_option
@json_option
@with_session
def list_tokens(session: Session, *, name: str | None, role: str | None, limit: int, as_json: bool) -> None:
    """List tokens without their secrets, the newest first."""
    print_list(session.tokens(name=name, role=role), _COLUMNS, limit, as_json, "No such token.")


@token.command(epilog=examples("pilotage token revoke 7", "pilotage token revoke 7 8 9"))
@click.argument("ids", type=click.IntRange(min=1), nargs=-1, required=True, metavar="ID...")
@json_option
@with_session
def revoke(session: Session, *, ids: tuple[int, ...], as_json: bool) -> None:
    """Revoke tokens: each is refused within a second everywhere."""
    views = [session.revoke_token(token_id) for token_id in ids]
    if as_json:
        return tables.show(views)
    for view in views:
        tables.write(f"Token {view.token_id} of {view.name}, role {view.role}, is revoked.")
    return None
