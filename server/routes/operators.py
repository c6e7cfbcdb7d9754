"""The native door for operators: tokens, accounts, working groups and the trail of what was done."""

from __future__ import annotations

from typing import Any

from protocol.messages.requests import AccountChange, AccountSpec, GroupChange, GroupSpec, TokenSpec
from protocol.messages.views import AccountView, GroupView, Page, TokenView
from server.access import accounts, groups, trail
from server.access.tokens import Role
from server.http.wire import CURSOR, Parameter, path_id
from server.routes import Call, Door

door = Door()


@door.route("POST", "/v1/tokens", Role.ADMIN, TokenSpec, TokenView, 201)
def create_token(call: Call, spec: TokenSpec) -> TokenView:
    """Make a token; this answer alone shows it."""
    return accounts.create_token(call.core, spec, call.caller.name)


@door.route(
    "GET",
    "/v1/tokens",
    Role.ADMIN,
    None,
    Page,
    query=(
        *CURSOR,
        Parameter("name", "the account, or the name of a pilot token"),
        Parameter("role", "the role that it gives", tuple(accounts.ROLES)),
    ),
)
def list_tokens(call: Call) -> Page:
    """Tokens without their secrets, by name or role."""
    cursor = call.query.cursor()
    return accounts.token_views(cursor, call.query.text("name"), call.query.text("role"))


@door.route("POST", "/v1/tokens/<token>/revoke", Role.ADMIN, None, TokenView)
def revoke_token(call: Call, token: str) -> TokenView:
    """Revoke a token: it is refused within a second everywhere."""
    return accounts.revoke_token(call.core, path_id(token, "token"), call.caller.name)


@door.route("GET", "/v1/accounts", Role.USER, None, Page)
def list_accounts(call: Call) -> Page:
    """All accounts, with their open jobs."""
    return accounts.views()


@door.route("POST", "/v1/accounts", Role.ADMIN, AccountSpec, AccountView, 201)
def create_account(call: Call, spec: AccountSpec) -> AccountView:
    """Make an account."""
    return accounts.create(call.core, spec, call.caller.name)


@door.route("GET", "/v1/accounts/<account>", Role.USER, None, AccountView)
def show_account(call: Call, account: str) -> AccountView:
    """One account."""
    return accounts.show(account)


@door.route("POST", "/v1/accounts/<account>", Role.ADMIN, AccountChange, AccountView)
def change_account(call: Call, wish: AccountChange, account: str) -> AccountView:
    """Give an account another working group or quota."""
    return accounts.change(call.core, account, wish, call.caller.name)


@door.route("GET", "/v1/groups", Role.USER, None, Page)
def list_groups(call: Call) -> Page:
    """The tree of working groups, each before those below it."""
    return groups.views()


@door.route("POST", "/v1/groups", Role.ADMIN, GroupSpec, GroupView, 201)
def create_group(call: Call, spec: GroupSpec) -> GroupView:
    """Make a working group."""
    return groups.create(call.core, spec, call.caller.name)


@door.route("GET", "/v1/groups/<group>", Role.USER, None, GroupView)
def show_group(call: Call, group: str) -> GroupView:
    """One working group."""
    return groups.show(group)


@door.route("POST", "/v1/groups/<group>", Role.ADMIN, GroupChange, GroupView)
def change_group(call: Call, wish: GroupChange, group: str) -> GroupView:
    """Give a working group another parent, share or quota."""
    return groups.change(call.core, group, wish, call.caller.name)


@door.route("POST", "/v1/groups/<group>/remove", Role.ADMIN, None, None)
def remove_group(call: Call, group: str) -> dict[str, Any]:
    """Remove a working group that nothing uses."""
    groups.remove(call.core, group, call.caller.name)
    return {}


@door.route(
    "GET",
    "/v1/trail",
    Role.ADMIN,
    None,
    Page,
    query=(
        *CURSOR,
        Parameter("who", "the account"),
        Parameter("action", "the words of the command, such as queue set"),
        Parameter("subject", "what it was done to"),
    ),
)
def list_trail(call: Call) -> Page:
    """What was done by whom, by account, action or subject."""
    cursor = call.query.cursor()
    who, action, subject = call.query.text("who"), call.query.text("action"), call.query.text("subject")
    return trail.entries(cursor, who, action, subject)
