"""Every route against what FAULTS.md lists for all of them: bodies that lie, ids that are none, and what a server must not tell.

The list of routes is the application's own, so a new route is tested from its first day. Fields of bodies: test_bodies.py;
tokens: test_tokens.py; floods: test_limits.py; bytes on the wire: test_worker.py.
"""

from __future__ import annotations

import gzip
import json
import logging
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from server import app as app_module
from server.access.tokens import Role
from server.core import Core
from server.routes import Route
from tests.integration.server.http import Speaker, filled, refusal
from tests.integration.server.world import Bearer, World

ROUTES = [route for door in app_module.DOORS for route in door.routes]
PRIVATE = [route for route in ROUTES if route.role is not Role.PUBLIC]
WITH_BODY = [route for route in PRIVATE if route.body or route.takes]
WITH_PARTS = [route for route in PRIVATE if "<" in route.path]


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.fixture
def speaker(core: Core, client: FlaskClient, bearer: Bearer) -> Speaker:
    return Speaker(client, bearer)


def speaking_for(speaker: Speaker, route: Route) -> Speaker:
    return speaker.as_(Role.PILOT if route.role is Role.PILOT else Role.ADMIN)


# -- bodies -----------------------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(10 * 2**20))
FIELDS = 100_000
METRICS_TOO_LARGE = 17 * 2**20
BODIES: dict[str, tuple[dict[str, str], bytes, int]] = {
    "b07 gzip": ({"Content-Encoding": "gzip"}, BOMB, 415),
    "b07 gzip twice": ({"Content-Encoding": "gzip, gzip"}, gzip.compress(BOMB), 415),
    "b07 zstd": ({"Content-Encoding": "zstd"}, b"\x28\xb5\x2f\xfd", 415),
    "b07 gzip without a word of it": ({"Content-Type": "application/json"}, BOMB, 400),
    "b11 100,000 form fields": (
        {"Content-Type": "application/x-www-form-urlencoded"},
        b"&".join(b"a%d=1" % number for number in range(FIELDS)),
        400,
    ),
    "b11 100,000 parts": (
        {"Content-Type": "multipart/form-data; boundary=x"},
        b"".join(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(FIELDS)) + b"--x--\r\n",
        400,
    ),
    "b12 nested 100,000 deep": ({}, b"[" * FIELDS + b"]" * FIELDS, 400),
    "b13 not a number": ({}, b"NaN", 400),
    "b13 a list": ({}, b"[{}]", 400),
    "b13 a lone surrogate": ({}, b'"\\ud800"', 400),
    "b13 a number of 1 MB": ({}, b"1" * 2**20, 400),
    "b13 a million elements": ({}, b"[" + b"1," * 999_999 + b"1]", 400),
    "an unknown character set": ({"Content-Type": "application/json; charset=utf-7"}, b"+AHsAfQ-", 400),
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_b07_to_b13_a_body_that_is_none_is_refused_cheaply_on_every_route(
    core: Core, speaker: Speaker, what: str
) -> None:
    headers, data, status = BODIES[what]
    with World(core).unchanged():
        for route in WITH_BODY:
            who = speaking_for(speaker, route)
            began = time.process_time()
            response = who.send(route.method, filled(route.path), data=data, headers=headers)
            assert response.status_code == status, (name_of(route), response.text[:300])
            refusal(response, status)
            assert time.process_time() - began < 1.0, name_of(route)


def test_b07_without_encoding_the_word_for_it_does_no_harm(speaker: Speaker) -> None:
    body = {"name": "t", "command": ["true"], "nJobs": 1}
    assert speaker.post("/v1/tasks", body, headers={"Content-Encoding": "identity"}).status_code == 201


def test_a_body_where_none_is_expected_is_not_looked_at(core: Core, speaker: Speaker) -> None:
    World(core).ready()
    for route in PRIVATE:
        if route.method == "GET":
            who = speaking_for(speaker, route)
            path = filled(route.path)
            assert (
                who.send("GET", path, data=b"\xff" * 1000).status_code
                == who.send("GET", path).status_code
                < 500
            ), path


# -- ids --------------------------------------------------------------------------------------------------------------------

BAD_PARTS = [
    *("-1", "0", str(2**63), "9" * 400, "1%20OR%201=1", "1.0", "true", "null", "%D9%A1", "0x1", "%00", "1%00"),
    *("'", "%27%3B%20DROP%20TABLE%20job%3B--", "..", "%2e%2e", "%2e%2e%2fetc", "%5c..%5c", "%0d%0aX:%20y", "%1b[2J"),
    *("%e2%80%ae", "%ff%fe", "%c0%ae", "{{7*7}}", "%3Cscript%3E", "%s%n", "~", "*", "a" * 5000),
]  # fmt: skip


@pytest.mark.parametrize("route", WITH_PARTS, ids=name_of)
def test_b14_b15_a_part_of_an_address_that_is_no_id_or_name_finds_nothing(
    core: Core, speaker: Speaker, route: Route
) -> None:
    world = World(core)
    world.job_with_outputs()
    who = speaking_for(speaker, route)
    with world.unchanged():
        for bad in BAD_PARTS:
            path = "/".join(bad if part.startswith("<") else part for part in route.path.split("/"))
            for body in ({}, {"state": "online", "node": "n", "files": [], "priority": 1}):
                rest: dict[str, Any] = {"body": body if route.method == "POST" else None}
                if route.takes:
                    rest = {"data": b"x"}
                response = who.send(route.method, path, **rest)
                assert response.status_code in (400, 404, 405), (path[:80], response.text[:300])
                reply = refusal(response, response.status_code)
                assert reply.detail.isprintable()
                assert len(reply.detail) < 1000


# -- heartbeats -------------------------------------------------------------------------------------------------------------


def test_b28_heartbeats_that_make_no_sense_change_nothing_that_they_should_not(
    core: Core, speaker: Speaker
) -> None:
    world = World(core)
    world.ready(2)
    held = world.claim()[0]
    world.say(held)
    pilot = speaker.as_(Role.PILOT)
    right = {"attemptId": held.attempt_id, "attemptToken": held.attempt_token}

    def beat(attempts: list[Any], **rest: Any) -> Any:
        return pilot.post("/v1/heartbeat", {"pilotId": "p1", "attempts": attempts}, **rest)

    stranger = {"attemptId": 99, "attemptToken": held.attempt_token}
    with world.unchanged(ignore={"last_seen", "left_out"}):
        answers = beat([stranger]).get_json()["answers"]
        assert answers == [{"attemptId": 99, "state": "", "command": "stop"}], "a job that was never claimed"
    with world.unchanged():
        refusal(beat([{**right, "metrics": {"cpu" * 40: 1.0}}]), 400)
        data = json.dumps({"pilotId": "p1", "attempts": [{**right, "metrics": {"x": 1}}]})
        large = data.replace('"x"', '"' + "x" * METRICS_TOO_LARGE + '"')
        refusal(pilot.post("/v1/heartbeat", data=large), 413, "TOO_LARGE")
        refusal(beat([{**right, "metrics": {f"m{number}": 1.0 for number in range(1000)}}]), 400)
    for cpu in (100.0, 50.0, -1.0):  # its CPU time goes backwards: told as it is, nothing is reckoned with it
        assert (
            beat([{**right, "metrics": {"cpuSeconds": cpu}}]).get_json()["answers"][0]["command"]
            == "continue"
        )
    assert len(beat([right] * 3).get_json()["answers"]) == 3, "the same attempt several times"
    assert world.state(held.job_id).value == "OBTAINED"


def test_b28_a_pilot_with_the_name_of_a_living_one_on_another_node_is_refused(
    core: Core, speaker: Speaker
) -> None:
    world = World(core)
    world.pilot()
    again = {"pilotId": "p1", "version": "1", "queue": "CPU"}
    with world.unchanged():
        refusal(speaker.as_(Role.PILOT).post("/v1/registerPilot", {**again, "node": "elsewhere"}), 409)


# -- what a server must not tell (OWASP API 6 to 9) ------------------------------------------------------------------------


def everything(speaker: Speaker, client: FlaskClient) -> list[Any]:
    """An answer of each route, right or wrong, and of what is no route."""
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answers = []
    for route in ROUTES:
        path = filled(route.path)
        for method in (route.method, "OPTIONS", "HEAD", "TRACE"):
            answers.append(speaking_for(speaker, route).send(method, path, headers=origin))
    for path in ("/nope", "/docs/", "/console", "/?__debugger__=yes&cmd=resource&f=debugger.js"):
        answers.append(client.get(path, headers=origin, buffered=True))
    return answers


def test_api8_no_answer_lets_another_site_in_or_tells_of_the_inside(
    speaker: Speaker, client: FlaskClient
) -> None:
    for answer in everything(speaker, client):
        names = {name.lower() for name, _ in answer.headers}
        assert not {name for name in names if name.startswith("access-control-")}
        assert not {"set-cookie", "x-powered-by"} & names
        assert "Traceback" not in answer.get_data(as_text=True)
        assert "werkzeug" not in answer.get_data(as_text=True).lower()
        assert answer.status_code < 500


def test_api8_the_application_is_not_in_debug_mode(client: FlaskClient) -> None:
    assert not client.application.debug
    assert not client.application.testing
    assert client.application.secret_key is None, "there are no sessions to be forged"


@pytest.mark.parametrize("route", PRIVATE, ids=name_of)
def test_api9_there_is_no_other_version_of_a_route(speaker: Speaker, route: Route) -> None:
    path = filled(route.path)
    for other in ("/v0", "/v2", "/api/v0", "/V1", "/v1/v1", "//v1", "/v1.0", "/internal", "/beta", ""):
        reply = refusal(speaker.send(route.method, path.replace("/v1", other, 1)), 404, "NOT_FOUND")
        assert reply.detail.isprintable()


def test_api6_what_costs_much_is_bounded(core: Core, speaker: Speaker) -> None:
    """A task, a page, a request and a bundle have limits, whoever asks."""
    body = {"name": "t", "command": ["true"]}
    with World(core).unchanged():
        refusal(speaker.post("/v1/tasks", {**body, "nJobs": 10**9}), 400)
        refusal(speaker.post("/v1/tasks", {**body, "nJobs": 1, "outputs": ["{job_nr}"] * 10_000}), 400)
        refusal(speaker.get("/v1/tasks?limit=1000000"), 400)
        refusal(
            speaker.as_(Role.PILOT).post(
                "/v1/getJob", {"requestId": "request-1", "pilotId": "p", "queue": "CPU", "nJobs": 10**6}
            ),
            400,
        )


def test_a_refusal_is_one_line_in_the_log_at_most(speaker: Speaker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for path in ("/v1/tasks/a%0d%0aERROR%20forged", "/v1/jobs/x", "/nope"):
            caplog.clear()
            refusal(speaker.get(path), 404)
            assert len(caplog.records) <= 1
