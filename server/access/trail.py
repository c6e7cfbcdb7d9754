"""The trail of administrative actions: who did what to what, and when; written in the transaction of the action itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from protocol.errors import shorten
from protocol.messages.views import Page, TrailEntry
from server.core import Core
from server.models import AdminEvent
from server.paging import Cursor, iso, page_of

T = TypeVar("T")


def note(who: str, action: str, subject: str, detail: str = "") -> None:
    """One line: `who` is an account, `action` reads as the command does ("queue set"); inside `Database.write`. No secrets."""
    AdminEvent.create(who=who, action=action, subject=subject, detail=shorten(detail))


def noted(core: Core, who: str, action: str, subject: str, detail: str, work: Callable[[], T]) -> T:
    """Do a short work and note it, both or neither."""

    def both() -> T:
        result = work()
        note(who, action, subject, detail)
        return result

    return core.database.write(both)


def facts(message: Any, *names: str) -> str:
    """What a message says in these fields, in words; what it leaves as it is by itself is left out."""
    said = [
        each for each in fields(message) if each.name in names and getattr(message, each.name) != each.default
    ]
    return ", ".join(f"{each.name.replace('_', ' ')} {getattr(message, each.name)!s}" for each in said)


def entries(cursor: Cursor, who: str = "", action: str = "", subject: str = "") -> Page:
    query = AdminEvent.select()
    for column, value in (
        (AdminEvent.who, who),
        (AdminEvent.action, action),
        (AdminEvent.subject, subject),
    ):
        if value:
            query = query.where(column == value)
    return page_of(query, AdminEvent.id, cursor, _view)


def _view(event: AdminEvent) -> TrailEntry:
    return TrailEntry(
        entry_id=event.id,
        at=iso(event.at),
        who=event.who,
        action=event.action,
        subject=event.subject,
        detail=event.detail,
    )
