"""The OpenAPI document: whole, without a loose end, and as long as the list of routes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from protocol.errors import PilotageError
from protocol.messages import wire_name
from protocol.states import JobState
from server import app
from server.access.tokens import Role
from server.http import openapi
from server.http.wire import CURSOR, JSON_LINES, STATUS, Query
from tests.messages import message

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
        assert all(
            "$ref" in response or response["description"] for response in operation["responses"].values()
        )
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


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_route_reads_no_value_of_its_query_string_that_the_document_does_not_name(route: Any) -> None:
    """It could not: `Query` knows the declared ones alone. And it declares none that it does not read."""
    operation = DOCUMENT["paths"][re.sub(r"<(\w+)>", r"{\1}", route.path)][route.method.lower()]
    described = {each["name"]: each for each in operation["parameters"] if each["in"] == "query"}
    source = inspect.getsource(route.view)
    read = set(re.findall(r"call\.query\.(?:texts?|number|day|is_yes)\(\"(\w+)\"", source))
    if "call.query.cursor()" in source:
        read |= {each.name for each in CURSOR}
    assert read == described.keys()
    assert source.count("call.query.") == len(re.findall(r"call\.query\.(?:cursor\(|\w+\(\")", source))
    assert "request.args" not in source
    assert all(each["description"] and not each["required"] for each in described.values())


def test_a_list_in_pages_names_the_values_of_each_choice() -> None:
    parameters = {each["name"]: each["schema"] for each in DOCUMENT["paths"]["/v1/jobs"]["get"]["parameters"]}
    assert parameters["state"]["enum"] == [state.value for state in JobState]
    assert parameters["limit"] == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert parameters["order"]["enum"] == ["oldest", "newest"]


def test_what_a_route_does_not_declare_it_cannot_read() -> None:
    request = Request(EnvironBuilder(query_string="limit=5").get_environ())
    with pytest.raises(PilotageError, match="no such parameter"):
        Query(request, ())
    with pytest.raises(KeyError):
        Query(request, (), others_too=True).text("limit")


def test_bodies_that_are_no_json_and_answers_that_are_none_are_named() -> None:
    paths = DOCUMENT["paths"]
    assert paths["/v1/bundles/{digest}"]["put"]["requestBody"]["content"].keys() == {"application/gzip"}
    files = paths["/v1/datasets/{name}/files"]["post"]["requestBody"]["content"]
    assert files.keys() == {"application/json", JSON_LINES}
    for path, kind in (
        ("/v1/pilot.pyz", "application/octet-stream"),
        ("/v1/bundles/{digest}", "application/gzip"),
        ("/v1/run_pilot.sh", "text/x-shellscript"),
        ("/v1/minipilot.py", "text/x-python"),
    ):
        assert paths[path]["get"]["responses"]["200"]["content"].keys() == {kind}


def test_each_failure_that_a_route_may_answer_with_is_described() -> None:
    for _, path, operation in OPERATIONS:
        codes = operation["responses"].keys() - {"200", "201", "default"}
        if "security" in operation:
            assert {"400", "401", "403", "415", "429", "503"} <= codes
            assert ("404" in codes) or "{" not in path
    described = {int(name.removeprefix("Failure")) for name in DOCUMENT["components"]["responses"]}
    assert described == set(STATUS.values()) - {405, 500}


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_each_schema_has_the_names_of_the_wire_and_its_bounds(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    if "properties" not in schema:
        assert "enum" in schema
        return
    cls = message(name)
    assert set(schema["properties"]) == {wire_name(each) for each in cls.__dataclass_fields__}
    assert set(schema.get("required", ())) <= set(schema["properties"])
    for field in cls.__dataclass_fields__.values():
        shown = json.dumps(schema["properties"][wire_name(field.name)])
        for bound in ("ge", "le", "max_length"):
            if field.metadata.get(bound) is not None:
                assert str(field.metadata[bound]) in shown
