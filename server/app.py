"""The dispatcher as a WSGI application: mounts the routes of each door, and refuses one that declares no role."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.exceptions import HTTPException

from protocol.errors import PilotageError
from server.access import ownership, tokens
from server.access.tokens import Role
from server.core import Core
from server.http import openapi
from server.http.wire import JSON_LINES, Query, error_reply, lines, parse, reply
from server.routes import Call, Route, operators, pilot, public, user

logger = logging.getLogger(__name__)

DOORS = (public.door, pilot.door, user.door, operators.door)
DOCUMENT = "/v1/openapi.json"
PAGES = "/docs"
SWAGGER = "swagger_ui"
"""Flask's name for these pages: fixed files without a secret."""
FREE = ("HEAD", "OPTIONS")
"""Methods that Flask adds by itself; HEAD passes through the route's own function."""


def create_app(core: Core) -> Flask:
    app = Flask("pilotage", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = None
    routes = [route for door in DOORS for route in door.routes]
    _refuse_without_role(routes)
    described = openapi.document(routes)
    routes.append(Route("GET", DOCUMENT, Role.PUBLIC, lambda call: described))
    for route in routes:
        app.add_url_rule(
            route.path, f"{route.method} {route.path}", _endpoint(core, route), methods=[route.method]
        )
    app.register_blueprint(get_swaggerui_blueprint(PAGES, DOCUMENT, config={"app_name": "Pilotage"}))
    app.register_error_handler(Exception, _failure)
    _refuse_undeclared(app, routes)
    return app


def _endpoint(core: Core, route: Route) -> Callable[..., Response]:
    """The function that Flask calls: who is it, may they, is the body right; then the view, and its reply in one shape."""
    guard = ownership.guard_of(route)

    def endpoint(**parts: str) -> Response:
        with core.database.reading():
            caller = (
                core.callers.who(request.headers.get("Authorization"), _address(core))
                if route.role is not Role.PUBLIC
                else tokens.NOBODY
            )
            if not caller.may(route.role):
                _refuse(core, caller, route)
            in_lines = route.lines is not None and request.mimetype == JSON_LINES
            if request.headers.get("Content-Encoding", "identity") != "identity":
                raise PilotageError(
                    "BODY_COMPRESSED", "Content-Encoding is not undone here: send the bytes as they are"
                )
            if not route.takes and not in_lines:
                _check_size(core)
            if any("\0" in part for part in parts.values()):
                raise PilotageError("NOT_FOUND", "no name contains a NUL character")
            if guard is not None and caller.role is not Role.ADMIN:
                guard(caller, parts)
            arguments: dict[str, Any] = dict(parts)
            # Monitors like to add something that no cache knows to what needs no token.
            query = Query(request, route.query, others_too=route.role is Role.PUBLIC)
            call = Call(core, caller, query, request)
            if in_lines:
                content = route.view(call, lines(route.lines, request), **arguments)
            elif route.body:
                content = route.view(call, parse(route.body, request), **arguments)
            else:
                content = route.view(call, **arguments)
        return content if isinstance(content, Response) else reply(content, route.status)

    return endpoint


def _address(core: Core) -> str:
    """Where a request comes from: the other end of the connection, or what a balancer says that we know."""
    address = str(request.environ.get("REMOTE_ADDR") or "")
    if address in core.limits.proxies:
        return request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip() or address
    return address


def _refuse(core: Core, caller: tokens.Caller, route: Route) -> None:
    if caller.role is Role.PUBLIC:
        core.callers.limit_refusals(_address(core))
        raise PilotageError(
            "UNAUTHENTICATED", f"{route.method} {route.path} needs a token of the role {route.role.value}"
        )
    if route.role is Role.ADMIN:
        logger.warning(
            "an action of administrators was refused",
            extra={
                "who": caller.name,
                "role": caller.role.value,
                "method": route.method,
                "path": request.path,
            },
        )
    raise PilotageError(
        "FORBIDDEN",
        f"{route.method} {route.path} needs the role {route.role.value}; this token has {caller.role.value}",
    )


def _check_size(core: Core) -> None:
    """Refuse a body that says it is too large, and read no more than the limit of one that does not say."""
    limit = core.limits.body_bytes
    if request.content_length is not None and request.content_length > limit:
        raise PilotageError(
            "TOO_LARGE", f"the body has {request.content_length} bytes; at most {limit} are taken at a time"
        )
    request.max_content_length = limit + 1  # one more, to see that there is more


def _failure(error: Exception) -> Response:
    """Every failure in one shape; what nobody foresaw is logged with its trace and told without it."""
    if isinstance(error, PilotageError):
        response = error_reply(error)
        if response.status_code >= 500:
            logger.error(
                "a request failed",
                extra={"method": request.method, "path": request.path, "error": str(error)},
            )
        return response
    if isinstance(error, HTTPException):
        return error_reply(_of_http(error))
    logger.exception("a request failed", extra={"method": request.method, "path": request.path})
    return error_reply(PilotageError("SERVER_ERROR", "it is in the server's log"))


def _of_http(error: HTTPException) -> PilotageError:
    if error.code == 404:
        return PilotageError(
            "NOT_FOUND", f"no such address: {request.path[:200]!a}; all of them: GET {DOCUMENT}"
        )
    if error.code == 405:
        methods = ", ".join(sorted(getattr(error, "valid_methods", None) or []))
        return PilotageError("METHOD_NOT_ALLOWED", f"{request.path[:200]!a} takes {methods}")
    if error.code == 413:
        return PilotageError("TOO_LARGE", "the body is larger than the limit")
    return PilotageError("BAD_REQUEST", str(error.description)[:500])


def _refuse_without_role(routes: list[Route]) -> None:
    for route in routes:
        if not isinstance(route.role, Role):
            raise RuntimeError(f"the route {route.path} declares no role; declare it in server/routes/")


def _refuse_undeclared(app: Flask, routes: list[Route]) -> None:
    """A route that came in by another way than a door has no role: the application does not start."""
    declared = {(method, route.path) for route in routes for method in (route.method, *FREE)}
    for rule in app.url_map.iter_rules():
        missing = {(method, rule.rule) for method in rule.methods or ()} - declared
        if missing and rule.endpoint.partition(".")[0] != SWAGGER:
            raise RuntimeError(f"the route {rule.rule} declares no role; declare it in server/routes/")
