"""What schemathesis makes of the OpenAPI document, right and wrong, from every role: never a 5xx, and each answer as it is described.

Only answers that the document describes are right: status, media type, headers and body. More of it: PILOTAGE_CASES=1000 pytest FILE.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server import app as app_module
from server.access.tokens import Role
from server.core import Core
from server.http import openapi
from tests.integration.server.http import Speaker
from tests.integration.server.world import Bearer, World

CASES = int(os.environ.get("PILOTAGE_CASES", "8"))
"""For each operation, on each database."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ROUTES = [route for door in app_module.DOORS for route in door.routes]
SCHEMA = schemathesis.openapi.from_dict(openapi.document(ROUTES))
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
THERE: dict[str, list[str]] = {
    "task": ["t", "1"],
    "job": ["1"],
    "name": ["in", "open", "CPU", "LOCAL"],
    "pilot": ["p1"],
    "account": ["ada"],
    "group": ["spd"],
    "token": ["99"],
}
"""What there is in the world of these tests, by the names of the parts of paths."""


@schemathesis.serializer("application/gzip")
def as_bytes(context: schemathesis.SerializationContext, value: Any) -> bytes:
    return str(value).encode()


@pytest.fixture
def speaker(core: Core, client: FlaskClient, bearer: Bearer) -> Speaker:
    world = World(core)
    world.dataset(1, "open", close=False, first=500)
    world.fail(world.job_with_outputs())
    speaker = Speaker(client, bearer)
    speaker.ok("POST", "/v1/groups", {"name": "spd"})
    speaker.ok("POST", "/v1/accounts", {"name": "ada", "workingGroup": "spd"})
    return speaker


def test_every_operation_is_tried() -> None:
    assert len(OPERATIONS) == len(ROUTES)


# It does not close the files of answers that it has read.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_is_sent_the_answer_is_as_described(
    core: Core, speaker: Speaker, application: tuple[Flask, Any], bearer: Bearer, label: str
) -> None:
    operation = OPERATIONS[label]
    cases = st.one_of(
        operation.as_strategy(GenerationMode.POSITIVE), operation.as_strategy(GenerationMode.NEGATIVE)
    )

    @given(case=cases, role=st.sampled_from([*Role]), data=st.data())
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_it(case: schemathesis.Case, role: Role, data: st.DataObject) -> None:
        for part, names in THERE.items():
            if part in case.path_parameters and data.draw(st.booleans()):
                case.path_parameters[part] = data.draw(st.sampled_from(names))
        headers = {} if role is Role.PUBLIC else bearer[role]
        case.call_and_validate(headers=headers, app=application[0], checks=CHECKS)
        core.callers.forget()

    try_it()
    assert speaker.get("/v1/tasks").status_code == 200, "and the server is as well as before"
