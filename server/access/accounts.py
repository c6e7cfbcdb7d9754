"""Accounts, and the tokens that speak for them or for pilots: made, listed, revoked."""

from __future__ import annotations

import dataclasses

from protocol.errors import PilotageError
from protocol.messages.requests import AccountChange, AccountSpec, TokenSpec
from protocol.messages.views import AccountView, Page, TokenView
from server.access import groups, quotas, tokens, trail
from server.access.tokens import Role
from server.core import Core
from server.models import Account, Queue, Token, now
from server.paging import Cursor, iso, page_of

ROLES = {role.value: role for role in (Role.USER, Role.GROUP, Role.ADMIN, Role.PILOT)}
OPERATOR = "admin"
"""Who the first token speaks for: no other role may have this name, or it would own what the operator made."""


# -- accounts ---------------------------------------------------------------------------------------------------------------


def create(core: Core, spec: AccountSpec, who: str) -> AccountView:
    def work() -> Account:
        if Account.get_or_none(Account.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is an account {spec.name} already")
        return _create(spec, who)

    return _view(core.database.write(work), quotas.open_by_owner())


def _create(spec: AccountSpec, who: str) -> Account:
    groups.check_exists(spec.working_group)
    account = Account.create(
        name=spec.name, working_group=spec.working_group, max_open_jobs=spec.max_open_jobs or None
    )
    trail.note(who, "account create", spec.name, trail.facts(spec, "working_group", "max_open_jobs"))
    return account


def change(core: Core, name: str, wish: AccountChange, who: str) -> AccountView:
    """Set what the wish names. Tasks that are there stay with the group that they were registered for."""

    def work() -> Account:
        _find(name)
        changes: dict[str, object] = {}
        if wish.working_group is not None:
            groups.check_exists(wish.working_group)
            changes["working_group"] = wish.working_group
        if wish.max_open_jobs is not None:
            changes["max_open_jobs"] = wish.max_open_jobs or None
        if changes:
            Account.update(**changes).where(Account.name == name).execute()
            trail.note(who, "account set", name, trail.facts(wish, "working_group", "max_open_jobs"))
        return _find(name)

    return _view(core.database.write(work), quotas.open_by_owner())


def _find(name: str) -> Account:
    account = Account.get_or_none(Account.name == name)
    if account is None:
        raise PilotageError("NOT_FOUND", f"no account {name[:200]}; see 'pilotage account list'")
    return account


def show(name: str) -> AccountView:
    return _view(_find(name), quotas.open_by_owner())


def views() -> Page:
    open_jobs = quotas.open_by_owner()
    items = [_view(row, open_jobs) for row in Account.select().order_by(Account.name)]
    return Page(items=items, total=len(items))


def _view(account: Account, open_jobs: dict[str, int]) -> AccountView:
    return AccountView(
        name=account.name,
        created=iso(account.created),
        working_group=account.working_group,
        max_open_jobs=account.max_open_jobs or 0,
        n_open=open_jobs.get(account.name, 0),
    )


# -- tokens -----------------------------------------------------------------------------------------------------------------


def create_token(core: Core, spec: TokenSpec, who: str) -> TokenView:
    """A new token; this answer is the only place where it is to be seen."""
    role = ROLES.get(spec.role)
    if role is None:
        raise PilotageError("BAD_REQUEST", f"role: {spec.role[:40]!a}; a token is for {', '.join(ROLES)}")
    if role is Role.PILOT and spec.group:
        raise PilotageError("BAD_REQUEST", "group: a pilot token has none; its queue says what it is for")
    if role is not Role.PILOT and spec.queue:
        raise PilotageError("BAD_REQUEST", "queue: only a pilot token is for one queue")
    if spec.name == OPERATOR and role is not Role.ADMIN:
        raise PilotageError(
            "BAD_REQUEST", f"name: {OPERATOR} is the operator; take another name for the role {role.value}"
        )

    def work() -> TokenView:
        if role is Role.PILOT:
            if spec.queue and not Queue.get_or_none(Queue.name == spec.queue):
                raise PilotageError("NOT_FOUND", f"no queue {spec.queue}; see 'pilotage queue list'")
        else:
            _account_for(spec, role, who)
        text = tokens.create(
            spec.name,
            role,
            spec.queue,
            account=None if role is Role.PILOT else spec.name,
            expires=now() + spec.expires_seconds if spec.expires_seconds else None,
        )
        row = Token.get(Token.hash == tokens.hash_of(text))
        valid = f", valid until {iso(row.expires)}" if row.expires else ""
        where = f" of queue {spec.queue}" if spec.queue else ""
        trail.note(who, "token create", f"token {row.id}", f"{role.value} {spec.name}{where}{valid}")
        return dataclasses.replace(_token_view(row), token=text)

    return core.database.write(work)


def _account_for(spec: TokenSpec, role: Role, who: str) -> None:
    """The account that the token will speak for, made if it is new."""
    account = Account.get_or_none(Account.name == spec.name)
    if account is None:
        account = _create(AccountSpec(spec.name, spec.group), who)
    elif spec.group and account.working_group != spec.group:
        raise PilotageError(
            "WRONG_STATE",
            f"the account {spec.name} is in {account.working_group or 'no group'}; to change that:"
            f" pilotage account set {spec.name} --group {spec.group}",
        )
    if role is Role.GROUP and not account.working_group:
        raise PilotageError("BAD_REQUEST", f"group: {spec.name} is in no group that the token could manage")


def token_views(cursor: Cursor, name: str = "", role: str = "") -> Page:
    query = Token.select()
    if name:
        query = query.where(Token.name == name)
    if role:
        query = query.where(Token.role == role)
    return page_of(query, Token.id, cursor, _token_view)


def revoke_token(core: Core, token_id: int, who: str) -> TokenView:
    """From now on refused here, and within a second everywhere; revoked again it stays as it is."""

    def work() -> TokenView:
        row = Token.get_or_none(Token.id == token_id)
        if row is None:
            raise PilotageError("NOT_FOUND", f"no token {token_id}; see 'pilotage token list'")
        if Token.update(revoked=now()).where(Token.id == token_id, Token.revoked.is_null()).execute():
            trail.note(who, "token revoke", f"token {token_id}", f"{row.role} {row.name}")
        return _token_view(Token.get_by_id(token_id))

    view = core.database.write(work)
    core.callers.forget()
    return view


def _token_view(row: Token) -> TokenView:
    return TokenView(
        token_id=row.id,
        name=row.name,
        role=row.role,
        created=iso(row.created),
        account=row.account or "",
        queue=row.queue or "",
        expires=iso(row.expires) if row.expires is not None else None,
        revoked=iso(row.revoked) if row.revoked is not None else None,
        valid=tokens.is_valid(row),
    )
