"""The OpenAPI document of the native door, made from the routes and the messages themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from apispec import APISpec
from pydantic import TypeAdapter

import protocol
from protocol.messages import ErrorReply
from server.routes import Route
from server.tokens import Role
from server.wire import JSON_LINES

_REFERENCE = "#/components/schemas/{model}"


def document(routes: Iterable[Route]) -> dict[str, Any]:
    spec = APISpec(
        title="Pilotage",
        version=protocol.__version__,
        openapi_version="3.1.0",
        info={"description": "The native door: what users, operators and pilots say to the server."},
    )
    spec.components.security_scheme("token", {"type": "http", "scheme": "bearer"})
    known: set[str] = set()
    for route in routes:
        for cls in (route.body, route.lines, route.reply, ErrorReply):
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
    answer: dict[str, Any] = {"description": "done"}
    if route.reply is not None:
        answer["content"] = {
            "application/json": {"schema": {"$ref": _REFERENCE.format(model=route.reply.__name__)}}
        }
    failure = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="ErrorReply")}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.view.__name__,
        "tags": [route.role.value],
        "responses": {str(route.status): answer, "default": {"description": "failure", "content": failure}},
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"<(\w+)>", route.path)
        ],
    }
    if route.body is not None:
        content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=route.body.__name__)}}}
        if route.lines is not None:
            # Of each line; OpenAPI has no word for a sequence of them.
            content[JSON_LINES] = {"schema": {"$ref": _REFERENCE.format(model=route.lines.__name__)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.role is not Role.PUBLIC:
        operation["security"] = [{"token": []}]
    return operation
