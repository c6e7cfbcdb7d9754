"""The server's doors. A route says its role, its body and its reply; the application mounts nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Request

from protocol.messages import Page
from server.core import Core
from server.tokens import Caller, Role
from server.wire import Query


@dataclass(frozen=True)
class Call:
    """What a view is given beside its body and the parts of its path."""

    core: Core
    caller: Caller
    query: Query
    request: Request


@dataclass(frozen=True)
class Route:
    """One address. `body` and `reply` are the classes of protocol.messages; None: no JSON."""

    method: str
    path: str
    role: Role
    view: Callable[..., Any]
    body: Any = None
    reply: Any = None
    status: int = 200
    filtered: bool = False
    """Its view looks at the query string and refuses what it does not know; that of a `Page` always does."""
    lines: Any = None
    """The class of each line, if the body may come as JSON lines too: then the view is given an iterator."""

    @property
    def takes_no_query(self) -> bool:
        """Lists have filters, and reports too; who asks for one thing by its name, or changes something, has none to give.

        What needs no token is left alone: monitors like to add something that no cache knows.
        """
        return self.role is not Role.PUBLIC and self.reply is not Page and not self.filtered

    @property
    def summary(self) -> str:
        return (self.view.__doc__ or self.view.__name__).strip().splitlines()[0]


@dataclass
class Door:
    """The routes of one file."""

    routes: list[Route] = field(default_factory=list)

    def route(
        self,
        method: str,
        path: str,
        role: Role,
        body: Any = None,
        reply: Any = None,
        status: int = 200,
        filtered: bool = False,
        lines: Any = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def declare(view: Callable[..., Any]) -> Callable[..., Any]:
            self.routes.append(Route(method, path, role, view, body, reply, status, filtered, lines))
            return view

        return declare
