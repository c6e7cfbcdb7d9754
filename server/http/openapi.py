"""The OpenAPI document of the native door, made from the routes and the messages themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from apispec import APISpec
from pydantic import TypeAdapter

import protocol
from protocol.messages.views import ErrorReply
from server.access.tokens import Role
from server.http.wire import JSON_LINES, LONGEST_VALUE, MANY, STATUS, Parameter
from server.routes import Route

_REFERENCE = "#/components/schemas/{model}"
_JSON = "application/json"
_SECURITY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token of `pilotage token create`, or one of the files admin.token and pilot.token in the state directory. "
    "The tag of an operation is the role that it takes; the roles group and admin are users too, and admin may do everything.",
}
_FAILURES = {
    400: "what was sent is wrong: the detail says where, and what would be right",
    401: "no token, or none that is valid",
    403: "the token's role does not allow this, or it is somebody else's",
    404: "there is no such thing",
    409: "it is there already, or in a state in which this cannot be",
    413: "the body is larger than the server takes",
    415: "the body is compressed, which the server does not undo",
    429: "too often: wait for the seconds of Retry-After",
    503: "not now: ask again after the seconds of Retry-After",
}
"""What each status means; any route may also answer with 500 and the same shape, which is a fault to be reported."""


def document(routes: Iterable[Route]) -> dict[str, Any]:
    spec = APISpec(
        title="Pilotage",
        version=protocol.__version__,
        openapi_version="3.1.0",
        info={"description": "The native door: what users, operators and pilots say to the server."},
    )
    spec.components.security_scheme("token", _SECURITY)
    known: set[str] = set()
    _add_schema(spec, ErrorReply, known)
    for status, meaning in _FAILURES.items():
        assert status in STATUS.values()
        spec.components.response(_failure(status), {"description": meaning, "content": _content(ErrorReply)})
    for route in routes:
        for cls in (route.body, route.lines, route.reply):
            _add_schema(spec, cls, known)
        path = re.sub(r"<(\w+)>", r"{\1}", route.path)
        spec.path(path=path, operations={route.method.lower(): _operation(route)})
    result: dict[str, Any] = spec.to_dict()
    return result


def _add_schema(spec: APISpec, cls: Any, known: set[str]) -> None:
    if cls is None or cls.__name__ in known:
        return
    schema = TypeAdapter(cls).json_schema(by_alias=True, ref_template=_REFERENCE)
    parts = {cls.__name__: schema, **schema.pop("$defs", {})}
    for name, part in parts.items():
        if name not in known:
            known.add(name)
            spec.components.schema(name, part)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.view.__name__,
        "tags": [route.role.value],
        "responses": {
            str(route.status): {"description": "done", "content": _answer(route)},
            **{
                str(status): {"$ref": f"#/components/responses/{_failure(status)}"}
                for status in _statuses(route)
            },
            "default": {"description": "failure", "content": _content(ErrorReply)},
        },
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in _parts(route)
            ),
            *(_parameter(each) for each in route.query),
        ],
    }
    body = _body(route)
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    if route.role is not Role.PUBLIC:
        operation["security"] = [{"token": []}]
    return operation


def _answer(route: Route) -> dict[str, Any]:
    if route.reply is not None:
        return _content(route.reply)
    return {route.gives: {"schema": {"type": "object"} if route.gives == _JSON else {"type": "string"}}}


def _body(route: Route) -> dict[str, Any]:
    if route.takes:
        return {route.takes: {"schema": {"type": "string", "contentMediaType": route.takes}}}
    if route.body is None:
        return {}
    content = _content(route.body)
    if route.lines is not None:
        # Of each line; OpenAPI has no word for a sequence of them.
        content |= _content(route.lines, JSON_LINES)
    return content


def _content(cls: Any, media_type: str = _JSON) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REFERENCE.format(model=cls.__name__)}}}


def _failure(status: int) -> str:
    return f"Failure{status}"


def _parts(route: Route) -> list[str]:
    return re.findall(r"<(\w+)>", route.path)


def _statuses(route: Route) -> Iterator[int]:
    """The failures that a route may answer with."""
    changes, has_body = route.method != "GET", bool(route.body or route.takes)
    if route.role is Role.PUBLIC:
        return
    yield 400
    yield from (401, 403)
    if _parts(route) or route.query or has_body:
        yield 404
    if changes:
        yield 409
    yield from (413, 415)
    yield from (429, 503)


def _parameter(each: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": LONGEST_VALUE}
    if each.choices:
        schema = {"type": "string", "enum": list(each.choices)}
    elif each.numbers is not None:
        schema = {"type": "integer", "minimum": each.numbers[0], "maximum": each.numbers[1]}
    elif each.is_day:
        schema = {"type": "string", "format": "date"}
    if each.many:
        schema = {"type": "array", "items": schema, "maxItems": MANY}
    return {"name": each.name, "in": "query", "required": False, "description": each.about, "schema": schema}
