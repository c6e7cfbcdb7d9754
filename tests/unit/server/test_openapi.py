"""The OpenAPI document: whole, without a loose end, and as long as the list of routes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from protocol import messages
from protocol.messages import wire_name
from server import app, openapi
from server.tokens import Role

ROUTES = [route for door in app.DOORS for route in door.routes]
DOCUMENT = openapi.document(ROUTES)
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def parts(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(part)


def test_it_names_every_route_and_no_other() -> None:
    described = {f"{method.upper()} {path}" for method, path, _ in OPERATIONS}
    assert described == {
        f"{route.method} {route.path}".replace("<", "{").replace(">", "}") for route in ROUTES
    }


def test_it_says_what_it_is_and_can_be_sent() -> None:
    assert DOCUMENT["openapi"].startswith("3.")
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    json.dumps(DOCUMENT, allow_nan=False)


def test_every_reference_leads_to_something() -> None:
    references = {part["$ref"] for part in parts(DOCUMENT) if isinstance(part, dict) and "$ref" in part}
    assert references
    for reference in references:
        assert reference.startswith("#/")
        place = DOCUMENT
        for step in reference[2:].split("/"):
            place = place[step]
        assert place


def test_every_operation_is_whole() -> None:
    assert len({operation["operationId"] for _, _, operation in OPERATIONS}) == len(OPERATIONS)
    for method, path, operation in OPERATIONS:
        assert operation["summary"], path
        assert "default" in operation["responses"]
        assert any(code.startswith("2") for code in operation["responses"])
        assert all(response["description"] for response in operation["responses"].values())
        named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
        assert all(each["required"] for each in operation["parameters"] if each["in"] == "path")
        assert method != "get" or "requestBody" not in operation


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_each_route_is_described_with_its_role_body_and_reply(route: Any) -> None:
    operation = DOCUMENT["paths"][re.sub(r"<(\w+)>", r"{\1}", route.path)][route.method.lower()]
    assert operation["tags"] == [route.role.value]
    assert ("security" in operation) == (route.role is not Role.PUBLIC)
    if route.body is not None:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{route.body.__name__}"}
    if route.reply is not None:
        schema = operation["responses"][str(route.status)]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{route.reply.__name__}"}


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_each_schema_has_the_names_of_the_wire_and_its_bounds(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    if "properties" not in schema:
        assert "enum" in schema
        return
    cls = getattr(messages, name)
    assert set(schema["properties"]) == {wire_name(each) for each in cls.__dataclass_fields__}
    assert set(schema.get("required", ())) <= set(schema["properties"])
    for field in cls.__dataclass_fields__.values():
        shown = json.dumps(schema["properties"][wire_name(field.name)])
        for bound in ("ge", "le", "max_length"):
            if field.metadata.get(bound) is not None:
                assert str(field.metadata[bound]) in shown
