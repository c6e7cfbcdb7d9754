"""The server's doors. A route says its role, its body and its reply; the application mounts nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Request

from server.access.tokens import Caller, Role
from server.core import Core
from server.http.wire import Parameter, Query


@dataclass(frozen=True)
class Call:
    """What a view is given beside its body and the parts of its path."""

    core: Core
    caller: Caller
    query: Query
    request: Request


@dataclass(frozen=True)
class Route:
    """One address. `body` and `reply` are classes of protocol.messages; None: no JSON."""

    method: str
    path: str
    role: Role
    view: Callable[..., Any]
    body: Any = None
    reply: Any = None
    status: int = 200
    query: tuple[Parameter, ...] = ()
    """What its query string may hold; its view can read nothing else."""
    lines: Any = None
    """The class of each line, if the body may come as JSON lines too: then the view is given an iterator."""
    takes: str = ""
    """The media type of a body that is no JSON, which the view reads in a stream with a limit of its own."""
    gives: str = "application/json"
    """The media type of its answer."""

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
        query: tuple[Parameter, ...] = (),
        lines: Any = None,
        takes: str = "",
        gives: str = "application/json",
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def declare(view: Callable[..., Any]) -> Callable[..., Any]:
            self.routes.append(
                Route(method, path, role, view, body, reply, status, query, lines, takes, gives)
            )
            return view

        return declare
