"""Lists in pages that stay right while rows are added: each page begins after the last id of the one before."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.messages.views import Page


@dataclass(frozen=True)
class Cursor:
    """Which page: the rows after the one with id `after`, at most `limit`; newest first if `descending`."""

    after: int | None = None
    limit: int = 100
    descending: bool = False


def page_of(query: Any, key: Any, cursor: Cursor, view: Callable[[Any], Any]) -> Page:
    return page_of_all(query, key, cursor, lambda rows: [view(row) for row in rows])


def page_of_all(
    query: Any,
    key: Any,
    cursor: Cursor,
    views: Callable[[Sequence[Any]], list[Any]],
    total: int | None = None,
) -> Page:
    """The same where all rows of a page are shaped together; `total` if it is known, since to count is to read them all."""
    total = query.count() if total is None else total
    rows = rows_after(query, key, cursor)
    shown = rows[: cursor.limit]
    more = len(rows) > cursor.limit
    return Page(
        items=views(shown),
        total=total,
        next_cursor=getattr(shown[-1], key.name) if more else None,
    )


def rows_after(query: Any, key: Any, cursor: Cursor) -> list[Any]:
    """The rows of a page in its order, and one more if there is one."""
    if cursor.after is not None:
        query = query.where(key < cursor.after if cursor.descending else key > cursor.after)
    return list(query.order_by(key.desc() if cursor.descending else key).limit(cursor.limit + 1))


def iso(seconds: float) -> str:
    """A time as people and programs read it: UTC, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
