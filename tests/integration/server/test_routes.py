"""Every route of the application: its role, its answer, and what it says to whoever may not or asks wrongly."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol.errors import PilotageError
from protocol.messages import from_wire
from protocol.messages.views import Page
from protocol.states import SUCCESS
from server import app as app_module
from server import task_manager
from server.access.tokens import Role
from server.core import Core, Limits
from server.http.wire import RETRY_AFTER_SECONDS
from server.models import Bundle, Token
from tests.integration.server.http import BUNDLE, DIGEST, Speaker, filled, refusal
from tests.integration.server.world import Bearer, World, at_once

ROLES = {
    "public": [
        *("GET /", "GET /healthz", "GET /v1/openapi.json", "GET /v1/pilot.pyz", "GET /v1/pilot.pyz.sha256"),
        *("GET /v1/run_pilot.sh", "GET /v1/minipilot.py"),
    ],
    "pilot": [
        *(
            "POST /v1/registerPilot",
            "POST /v1/getJob",
            "POST /v1/updateJob",
            "POST /v1/updateJobs",
            "POST /v1/heartbeat",
        ),
        *("POST /v1/endPilot", "GET /v1/bundles/<digest>"),
    ],
    "user": [
        *("POST /v1/tasks", "GET /v1/tasks", "GET /v1/tasks/<task>", "POST /v1/tasks/<task>/cancel"),
        *("GET /v1/jobs", "GET /v1/jobs/<job>", "GET /v1/jobs/<job>/metrics", "POST /v1/jobs/<job>/cancel"),
        *(
            "POST /v1/datasets",
            "GET /v1/datasets",
            "GET /v1/datasets/<name>",
            "POST /v1/datasets/<name>/files",
        ),
        *("POST /v1/datasets/<name>/close", "GET /v1/datasets/<name>/files", "GET /v1/files"),
        *("PUT /v1/bundles/<digest>", "GET /v1/pilots", "GET /v1/pilots/<pilot>", "GET /v1/queues"),
        *("GET /v1/queues/<name>", "GET /v1/storages", "GET /v1/sites"),
    ],
    "admin": [
        *(
            "POST /v1/queues",
            "POST /v1/queues/<name>/state",
            "POST /v1/storages",
        ),
    ],
}
OPERATORS = {
    "user": [
        "GET /v1/accounts",
        "GET /v1/accounts/<account>",
        "GET /v1/groups",
        "GET /v1/groups/<group>",
        "GET /v1/usage",
        "GET /v1/tasks/<task>/why",
        "GET /v1/tasks/<task>/errors",
        "POST /v1/jobs/<job>/debug",
        "POST /v1/jobs/<job>/stop",
        "POST /v1/tasks/<task>/retry",
        "POST /v1/tasks/<task>/pause",
        "POST /v1/tasks/<task>/resume",
        "POST /v1/tasks/<task>/priority",
        "GET /v1/jobs/<job>/why",
        "POST /v1/jobs/<job>/retry",
        "GET /v1/nodes",
        "POST /v1/datasets/<name>/delete",
        "POST /v1/datasets/<name>/metadata",
        "GET /v1/datasets/<name>/lineage",
        *("POST /v1/containers", "GET /v1/containers", "GET /v1/containers/<name>"),
        *("POST /v1/containers/<name>/datasets", "POST /v1/containers/<name>/delete"),
    ],
    "admin": [
        *("POST /v1/tokens", "GET /v1/tokens", "POST /v1/tokens/<token>/revoke", "GET /v1/trail"),
        *("POST /v1/accounts", "POST /v1/accounts/<account>"),
        *("POST /v1/groups", "POST /v1/groups/<group>", "POST /v1/groups/<group>/remove"),
        *("POST /v1/queues/<name>", "POST /v1/queues/<name>/delete"),
        "POST /v1/queues/<name>/drainPilots",
        *("POST /v1/queues/<name>/updatePilots", "POST /v1/pilots/<pilot>/update"),
        "POST /v1/queues/<name>/nodes",
        "POST /v1/pilots/<pilot>/drain",
        "POST /v1/sites/<name>/state",
        "POST /v1/replicas",
        "POST /v1/datasets/<name>/clean",
    ],
}
"""These have tests of what they do in files of their own."""
for _role, _routes in OPERATORS.items():
    ROLES[_role] += _routes
ROUTES = [(role, *route.split(" ")) for role, routes in ROLES.items() for route in routes]
IDS = [f"{method} {path}" for _, method, path in ROUTES]
LISTS = ["/v1/tasks", "/v1/jobs", "/v1/datasets", "/v1/files", "/v1/pilots", "/v1/datasets/in/files"]


@pytest.fixture
def speaker(client: FlaskClient, bearer: Bearer) -> Speaker:
    return Speaker(client, bearer)


# -- who may ----------------------------------------------------------------------------------------------------------------


def test_the_application_has_these_routes_and_no_others(client: FlaskClient) -> None:
    app = client.application
    found = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith("/docs")
    }
    assert found == {route for routes in ROLES.values() for route in routes}


def test_api5_each_route_is_for_its_role(core: Core, client: FlaskClient, bearer: Bearer) -> None:
    """No token: 401. A token of another role: 403. Neither changes anything."""
    everybody = Speaker(client, bearer)
    with World(core).unchanged():
        for role, method, path in ROUTES:
            if role == "public":
                continue
            body: Any = {"data": BUNDLE} if method == "PUT" else {"body": {} if method == "POST" else None}
            refusal(everybody.as_(Role.PUBLIC).send(method, filled(path), **body), 401, "UNAUTHENTICATED")
            if method == "GET":
                assert everybody.as_(Role.PUBLIC).send("HEAD", filled(path)).status_code == 401
            for other in Role:
                if other.value not in (role, "admin", "public") and (role, other) != ("user", Role.GROUP):
                    reply = refusal(everybody.as_(other).send(method, filled(path), **body), 403, "FORBIDDEN")
                    assert role in reply.detail
                elif other is not Role.PUBLIC:
                    assert everybody.as_(other).send(method, filled(path), **body).status_code not in (
                        *(401, 403),
                        *range(500, 600),
                    )
            if method == "PUT":
                core.database.write(lambda: Bundle.delete().execute())


@pytest.mark.parametrize("path", [path for role, method, path in ROUTES if role == "public"])
def test_what_is_public_needs_no_token_and_minds_none(client: FlaskClient, bearer: Bearer, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}, bearer[Role.PILOT]):
        assert client.get(path, headers=headers, buffered=True).status_code == 200


def test_the_pages_for_people_are_there(client: FlaskClient) -> None:
    page = client.get("/docs/", buffered=True)
    assert page.status_code == 200
    assert b"/v1/openapi.json" in page.data
    assert client.get("/docs/../../etc/passwd").status_code == 404


WRONG_TOKENS = {
    "empty": "Bearer ",
    "no scheme": "abc",
    "another scheme": "Basic YTpi",
    "unknown": "Bearer admin-unknown",
    "1 MB long": "Bearer " + "x" * 1_000_000,
    "alg none": "Bearer eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.",
    "sql": "Bearer ' OR 1=1 --",
    "not ascii": "Bearer \xe9",
    "nul": "Bearer a\0b",
}


@pytest.mark.parametrize("case", WRONG_TOKENS)
def test_b19_a_wrong_token_is_no_token(core: Core, client: FlaskClient, case: str) -> None:
    with World(core).unchanged():
        response = client.get("/v1/tasks", headers={"Authorization": WRONG_TOKENS[case]})
        refusal(response, 401, "UNAUTHENTICATED")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("change", ["trailing space", "upper case", "cut", "hash of it"])
def test_b19_nearly_a_token_is_no_token(client: FlaskClient, bearer: Bearer, change: str) -> None:
    token = bearer.tokens[Role.ADMIN]
    wrong = {
        "trailing space": token + " x",
        "upper case": token.upper(),
        "cut": token[:-1],
        "hash of it": hashlib.sha256(token.encode()).hexdigest(),
    }[change]
    refusal(client.get("/v1/tasks", headers={"Authorization": f"Bearer {wrong}"}), 401, "UNAUTHENTICATED")


@pytest.mark.parametrize(("column", "seconds"), [("expires", 1.0), ("revoked", 1.0)])
def test_b19_an_expired_or_revoked_token_is_no_token_any_more(
    core: Core, client: FlaskClient, bearer: Bearer, column: str, seconds: float
) -> None:
    assert client.get("/v1/tasks", headers=bearer[Role.USER]).status_code == 200
    core.database.write(lambda: Token.update({column: seconds}).where(Token.role == "user").execute())
    core.callers.forget()  # as whoever revokes does; another process remembers for a second
    refusal(client.get("/v1/tasks", headers=bearer[Role.USER]), 401, "UNAUTHENTICATED")


def test_a_token_that_expires_later_is_valid(core: Core, client: FlaskClient, bearer: Bearer) -> None:
    core.database.write(lambda: Token.update(expires=1e12).execute())
    assert client.get("/v1/tasks", headers=bearer[Role.USER]).status_code == 200


def test_the_scheme_is_read_in_any_case(client: FlaskClient, bearer: Bearer) -> None:
    headers = {"Authorization": f"bEaReR {bearer.tokens[Role.USER]}"}
    assert client.get("/v1/tasks", headers=headers).status_code == 200


def test_a_pilots_token_may_be_for_one_queue_only(core: Core, speaker: Speaker) -> None:
    core.database.write(lambda: Token.update(queue="GPU").where(Token.role == "pilot").execute())
    pilot = speaker.as_(Role.PILOT)
    registration = {"pilotId": "p1", "node": "n", "version": "1"}
    ask = {"requestId": "request-1", "pilotId": "p1", "queue": "CPU"}
    refusal(pilot.post("/v1/registerPilot", {**registration, "queue": "CPU"}), 403, "FORBIDDEN")
    refusal(pilot.post("/v1/getJob", ask), 403, "FORBIDDEN")
    for queue in ("GPU", ""):
        named = pilot.ok("POST", "/v1/registerPilot", {**registration, "queue": queue, "resourceType": "gpu"})
        assert named["name"] == "GPU", "a pilot that names no queue gets that of its token"
    pilot.ok("POST", "/v1/getJob", {**ask, "queue": "GPU", "resourceType": "gpu"})


def test_a_pilot_hears_that_its_token_is_no_pilots(core: Core, speaker: Speaker) -> None:
    registration = {"pilotId": "p1", "node": "n", "version": "1", "queue": "CPU"}
    admin = speaker.as_(Role.ADMIN).ok("POST", "/v1/registerPilot", registration)
    assert admin["tokenRole"] == "admin"
    assert "tokenRole" not in speaker.as_(Role.PILOT).ok("POST", "/v1/registerPilot", registration)


# -- what each answers ------------------------------------------------------------------------------------------------------


def test_the_main_job_by_http_alone(core: Core, speaker: Speaker) -> None:
    """Each route once, in the order of life, with the names of the wire spelt out."""
    user, pilot, admin = speaker.as_(Role.USER), speaker.as_(Role.PILOT), speaker.as_(Role.ADMIN)
    world, asked = World(core), set()

    def say(who: Speaker, method: str, path: str, body: Any = None, **rest: Any) -> Any:
        path_part = path.partition("?")[0]
        asked.add((method, path_part))
        return who.ok(method, path, body, **rest)

    say(admin, "POST", "/v1/storages", {"name": "DISK", "url": "file:///disk"})
    say(
        admin, "POST", "/v1/queues", {"name": "Q", "storage": "DISK", "copytools": ["cp"], "leaseSeconds": 90}
    )
    say(admin, "POST", "/v1/queues/Q/state", {"state": "drain"})
    say(admin, "POST", "/v1/queues/Q/state", {"state": "online"})
    file = {"lfn": "a.spd", "size": 5, "url": "file:///data/a.spd", "checksums": {"md5": "0" * 32}}
    say(user, "POST", "/v1/datasets", {"name": "in", "files": [file]})
    say(user, "POST", "/v1/datasets/in/files", {"files": [{**file, "lfn": "b.spd"}]})
    assert say(user, "POST", "/v1/datasets/in/close")["state"] == "closed"
    assert say(user, "PUT", f"/v1/bundles/{DIGEST}", data=BUNDLE) == {"digest": DIGEST, "size": len(BUNDLE)}
    task = {"name": "t", "command": ["md5sum", "{input}"], "inputDataset": "in", "outputs": ["{stem}.md5"]}
    made = say(user, "POST", "/v1/tasks", {**task, "bundle": DIGEST, "prodSourceLabel": "test"})
    assert (made["taskId"], made["state"], made["nJobs"], made["owner"]) == (1, "REGISTERED", 2, "ada")
    world.form()

    queue = say(
        pilot, "POST", "/v1/registerPilot", {"pilotId": "p1", "node": "n1", "version": "1", "queue": "Q"}
    )
    assert (queue["name"], queue["leaseSeconds"], queue["copytools"]) == ("Q", 90, ["cp"])
    ask = {"requestId": "request-1", "pilotId": "p1", "queue": "Q", "node": "n1", "nJobs": 2}
    got = say(pilot, "POST", "/v1/getJob", ask)
    assert got == say(pilot, "POST", "/v1/getJob", ask)
    first, second = got["jobs"]
    assert first["bundle"] == {"digest": DIGEST, "size": len(BUNDLE)}
    assert first["prodSourceLabel"] == "test"
    assert [entry["url"] for entry in first["outputs"]] == ["file:///disk/t.out/a.md5.1"]
    asked.add(("GET", f"/v1/bundles/{DIGEST}"))
    assert pilot.get(f"/v1/bundles/{DIGEST}").data == BUNDLE
    held = [{"attemptId": job["attemptId"], "attemptToken": job["attemptToken"]} for job in (first, second)]
    answers = say(pilot, "POST", "/v1/heartbeat", {"pilotId": "p1", "attempts": held})["answers"]
    assert answers[0] == {"attemptId": 1, "state": "OBTAINED", "command": "continue"}
    moves = [{"state": state.value, "at": 1e9 + n} for n, state in enumerate(SUCCESS[3:])]
    outputs = [{"lfn": "a.md5", "size": 3, "checksums": {"md5": "1" * 32}}]
    end = {**held[0], "seq": 1, "moves": moves, "outputs": outputs, "exitCode": 0}
    assert say(pilot, "POST", "/v1/updateJob", end)["state"] == "COMPLETED"
    again = say(pilot, "POST", "/v1/updateJobs", {"updates": [end]})
    assert again == {"answers": [{"attemptId": 1, "state": "COMPLETED", "command": "continue"}]}
    assert say(user, "POST", "/v1/jobs/2/cancel")["state"] == "CANCELLED"
    assert say(pilot, "POST", "/v1/heartbeat", {"pilotId": "p1", "attempts": held[1:]})["answers"] == [
        {"attemptId": 2, "state": "CANCELLED", "command": "stop", "detail": "the job was cancelled"}
    ]
    refusal(pilot.post("/v1/updateJob", {**held[1], "seq": 1, "moves": moves[:1]}), 409, "STALE_ATTEMPT")
    assert say(pilot, "POST", "/v1/endPilot", {"pilotId": "p1", "exitCode": 0}) == {}
    world.close_tasks()

    job = say(user, "GET", "/v1/jobs/1")
    assert [line["state"] for line in job["history"]] == [state.value for state in SUCCESS]
    assert (job["inputs"][0]["lfn"], job["outputs"][0]["lfn"]) == ("a.spd", "a.md5")
    assert job["attempts"][0]["exitCode"] == 0
    assert say(user, "GET", "/v1/jobs/1/metrics")["jobId"] == 1
    shown = say(user, "GET", "/v1/tasks/t")
    assert (shown["state"], shown["outputState"], shown["nOutputs"]) == ("PARTIAL", "closed", 1)
    assert shown == say(user, "GET", "/v1/tasks/1")
    assert say(user, "POST", "/v1/tasks/t/cancel")["state"] == "PARTIAL"
    assert say(user, "GET", "/v1/datasets/t.out")["nFiles"] == 1
    assert say(user, "GET", "/v1/pilots/p1")["state"] == "ended"
    assert say(user, "GET", "/v1/queues/Q")["state"] == "online"
    for path, names in (
        ("/v1/tasks?state=PARTIAL", ["t"]),
        ("/v1/jobs?task=t&state=CANCELLED&error=CANCELLED_BY_USER", None),
        ("/v1/datasets?state=closed&name=out", ["t.out"]),
        ("/v1/datasets/in/files", None),
        ("/v1/files?scope=t.out&lfn=a.md5&dataset=t.out", None),
        ("/v1/pilots?queue=Q&state=ended", None),
        ("/v1/queues", ["CPU", "GPU", "Q"]),
        ("/v1/storages", ["DISK", "LOCAL"]),
        ("/v1/sites", ["LOCAL"]),
    ):
        page = say(user, "GET", path)
        assert len(page["items"]) == (2 if path == "/v1/datasets/in/files" else len(names or [1]))
        assert names is None or [item["name"] for item in page["items"]] == names

    for role, method, path in (route for route in ROUTES if route[0] != "public"):
        if f"{method} {path}" in OPERATORS.get(role, ()):
            continue
        parts = path.split("/")
        assert any(
            method == used
            and len(parts) == len(where.split("/"))
            and all(a == b or a.startswith("<") for a, b in zip(parts, where.split("/")))
            for used, where in asked
        ), f"{method} {path} was not asked"


def test_every_reply_is_of_its_declared_class(core: Core, speaker: Speaker) -> None:
    world = World(core)
    world.fail(world.job_with_outputs())
    speaker.ok("POST", "/v1/groups", {"name": "spd"})
    speaker.ok("POST", "/v1/accounts", {"name": "ada", "workingGroup": "spd"})
    speaker.ok("POST", "/v1/containers", {"name": "box"})
    for route in (route for door in app_module.DOORS for route in door.routes):
        if route.method == "GET" and route.reply is not None:
            path = (
                filled(route.path)
                .replace("/queues/in", "/queues/CPU")
                .replace("s/in", "s/box" if "containers" in route.path else "s/in")
            )
            read = from_wire(route.reply, speaker.ok("GET", path))
            assert isinstance(read, route.reply)
            if route.reply is Page and route.path not in ("/v1/datasets/<name>/files",):
                assert read.items


def test_the_pilot_is_fetched_with_its_digest(core: Core, client: FlaskClient) -> None:
    content = (core.state_directory / "pilot.pyz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    got = client.get("/v1/pilot.pyz", buffered=True)
    assert (got.data, got.headers["X-Content-SHA256"]) == (content, digest)
    assert client.get("/v1/pilot.pyz.sha256").text == f"{digest}  pilot.pyz\n"


def test_health_tells_the_lease_clock_in_seconds(core: Core, client: FlaskClient) -> None:
    World(core).pass_seconds(7)
    assert client.get("/healthz").get_json()["leaseClock"] == 7


# -- what is wrong with a request -------------------------------------------------------------------------------------------


def test_an_unknown_address_and_a_wrong_method_have_the_one_shape(speaker: Speaker) -> None:
    refusal(speaker.get("/v1/nope"), 404, "NOT_FOUND")
    refusal(speaker.get("/v1/tasks/a/b/c"), 404, "NOT_FOUND")
    refusal(speaker.get("/v1/%2e%2e/%2e%2e/etc/passwd"), 404, "NOT_FOUND")
    reply = refusal(speaker.send("DELETE", "/v1/tasks"), 405, "METHOD_NOT_ALLOWED")
    assert "GET" in reply.detail
    assert "POST" in reply.detail
    refusal(speaker.send("PATCH", "/v1/jobs/1"), 405, "METHOD_NOT_ALLOWED")
    refusal(speaker.send("POST", "/healthz"), 405, "METHOD_NOT_ALLOWED")


BAD_IDS = [
    "-1",
    "0",
    str(2**63),
    "9" * 30,
    "1%20OR%201=1",
    "1.0",
    "true",
    "null",
    "%D9%A1",
    "0x1",
    "1%00",
    "%00",
    "'",
]


@pytest.mark.parametrize(
    "path", ["/v1/jobs/{}", "/v1/tasks/{}", "/v1/pilots/{}", "/v1/datasets/{}", "/v1/queues/{}"]
)
def test_b14_what_is_no_id_or_name_is_not_found(core: Core, speaker: Speaker, path: str) -> None:
    world = World(core)
    world.ready()
    with world.unchanged():
        for bad in BAD_IDS:
            refusal(speaker.get(path.format(bad)), 404, "NOT_FOUND")
            for verb in ("cancel", "close", "files", "state"):
                response = speaker.post(
                    f"{path.format(bad)}/{verb}",
                    {"state": "online", "files": []} if verb in ("files", "state") else None,
                )
                assert response.status_code in (400, 404, 405)
                refusal(response, response.status_code)


def test_b14_bad_ids_in_a_query_are_refused(core: Core, speaker: Speaker) -> None:
    World(core).ready()
    for bad in BAD_IDS:
        response = speaker.get(f"/v1/jobs?task={bad}")
        refusal(response, 400 if "%00" in bad else 404)


@pytest.mark.parametrize("path", LISTS)
def test_bad_parameters_of_a_list_are_refused(core: Core, speaker: Speaker, path: str) -> None:
    World(core).dataset()
    for query in (
        *(
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=x",
            "limit=1.0",
            "limit=1e3",
            "limit=%D9%A1",
            "limit=" + "9" * 40,
        ),
        *(
            "after=-1",
            "after=x",
            "after=" + str(2**63),
            "after=1%00",
            "after=1;DROP",
            "order=random",
            "order=NEWEST",
        ),
        *("nope=1", "limits=5", "limit=5&limit=6", "after=1&after=2", "Limit=5", "colour=x", "sort=id;--"),
    ):
        reply = refusal(speaker.get(f"{path}?{query}"), 400, "BAD_REQUEST")
        assert query.partition("=")[0] in reply.detail
    for query in ("limit=1", "limit=1000", "after=0", "after=" + str(2**63 - 1), "order=newest", "limit="):
        speaker.ok("GET", f"{path}?{query}")


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/tasks?state=READY", "/v1/tasks?state=running", "/v1/jobs?state=ENDED", "/v1/jobs?error=NOPE"),
        *("/v1/datasets?state=OPEN", "/v1/pilots?state=dead", "/v1/tasks?state=RUNNING&state=FAILED"),
        *("/v1/tasks?name=%00", "/v1/tasks?name=" + "x" * 1001, "/v1/files?lfn=a%00", "/v1/pilots?queue=%00"),
        *("/v1/queues?state=online", "/v1/sites?x=1", "/v1/storages?limit=5"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(speaker: Speaker, path: str) -> None:
    refusal(speaker.get(path), 400, "BAD_REQUEST")


def test_b15_sql_text_in_a_filter_finds_nothing_and_does_nothing(core: Core, speaker: Speaker) -> None:
    world = World(core)
    world.job_with_outputs()
    text = "x'%20OR%20'1'='1'%3B%20DROP%20TABLE%20job%3B%20--"
    with world.unchanged():
        for path in (
            "/v1/tasks?name=",
            "/v1/datasets?name=",
            "/v1/files?lfn=",
            "/v1/files?scope=",
            "/v1/pilots?queue=",
        ):
            assert speaker.ok("GET", path + text)["items"] == []
        refusal(speaker.get("/v1/jobs?task=" + text), 404)
        refusal(speaker.get("/v1/files?dataset=" + text), 404)


# -- paging -----------------------------------------------------------------------------------------------------------------


def pages(speaker: Speaker, path: str, between: Any = lambda: None) -> Iterator[list[Any]]:
    """All pages of a list, one after the other."""
    after = ""
    while True:
        page = speaker.ok("GET", path + after)
        yield page["items"]
        between()
        if "nextCursor" not in page:
            return
        after = f"&after={page['nextCursor']}"


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_each_row_comes_once_while_rows_are_added(core: Core, speaker: Speaker, order: str) -> None:
    world = World(core)
    for number in range(23):
        world.task(f"t{number}", n_jobs=1)
    added = iter(range(100, 103))

    def add() -> None:
        number = next(added, None)
        if number is not None:
            world.task(f"t{number}", n_jobs=1)

    found = [
        item["taskId"] for page in pages(speaker, f"/v1/tasks?limit=5&order={order}", add) for item in page
    ]
    assert len(found) == len(set(found))
    assert set(range(1, 24)) <= set(found)
    assert found == sorted(found, reverse=order == "newest")
    if order == "oldest":
        assert len(found) == 26, "and those that came meanwhile"


@pytest.mark.parametrize(("n", "limit"), [(0, 5), (4, 5), (5, 5), (6, 5), (10, 5), (3, 1)])
def test_the_last_page_says_so(core: Core, speaker: Speaker, n: int, limit: int) -> None:
    world = World(core)
    world.dataset(n)
    sizes = [len(page) for page in pages(speaker, f"/v1/files?limit={limit}")]
    assert sum(sizes) == n
    assert all(size == limit for size in sizes[:-1])
    assert speaker.ok("GET", f"/v1/files?limit={limit}")["total"] == n


def test_a_page_has_a_hundred_rows_unless_told_otherwise(core: Core, speaker: Speaker) -> None:
    World(core).dataset(150)
    assert len(speaker.ok("GET", "/v1/files")["items"]) == 100
    assert len(speaker.ok("GET", "/v1/files?limit=1000")["items"]) == 150


# -- too large --------------------------------------------------------------------------------------------------------------


class Endless(RawIOBase):
    """A body that never ends; it fails the test when too much of it is read."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.left -= len(buffer)
        assert self.left >= 0, "the server reads on"
        buffer[:] = b" " * len(buffer)
        return len(buffer)


def endless(allowed: int) -> dict[str, Any]:
    """A request with such a body, as gunicorn hands on one in chunks."""
    environ = {"wsgi.input": Endless(allowed), "wsgi.input_terminated": True}
    return {"headers": {"Transfer-Encoding": "chunked"}, "environ_overrides": environ}


class TestSmallLimits:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(body_bytes=1000, bundle_bytes=2000)

    def test_b8_a_body_above_the_limit_is_refused_unread(self, core: Core, speaker: Speaker) -> None:
        with World(core).unchanged():
            for role, method, path in ROUTES:
                if method == "POST":
                    who = speaker.as_(Role(role))
                    refusal(who.send(method, filled(path), data=b" " * 1001), 413, "TOO_LARGE")

    def test_b8_a_body_without_a_length_is_read_no_further_than_the_limit(
        self, core: Core, speaker: Speaker
    ) -> None:
        with World(core).unchanged():
            refusal(speaker.post("/v1/tasks", **endless(100_000)), 413, "TOO_LARGE")
            refusal(speaker.send("PUT", f"/v1/bundles/{DIGEST}", **endless(2 * 2**20)), 413, "TOO_LARGE")
        assert list((core.state_directory / "bundles").iterdir()) == []

    def test_a_bundle_has_a_limit_of_its_own(self, core: Core, speaker: Speaker) -> None:
        content = bytes(2000)
        digest = hashlib.sha256(content).hexdigest()
        assert speaker.ok("PUT", f"/v1/bundles/{digest}", data=content)["size"] == 2000
        content += b"x"
        digest = hashlib.sha256(content).hexdigest()
        with World(core).unchanged():
            refusal(speaker.send("PUT", f"/v1/bundles/{digest}", data=content), 413, "TOO_LARGE")
        assert len(list((core.state_directory / "bundles").iterdir())) == 1

    def test_a_body_at_the_limit_is_taken(self, speaker: Speaker) -> None:
        body = b'{"name": "t", "command": ["true"], "nJobs": 1}'
        speaker.ok("POST", "/v1/tasks", data=body + b" " * (1000 - len(body)))


# -- bundles ----------------------------------------------------------------------------------------------------------------


def test_a_bundle_is_kept_once_and_given_to_pilots(core: Core, speaker: Speaker) -> None:
    for _ in range(2):
        speaker.ok("PUT", f"/v1/bundles/{DIGEST}", data=BUNDLE)
    for future in at_once([lambda: speaker.ok("PUT", f"/v1/bundles/{DIGEST}", data=BUNDLE)] * 4):
        future.result()
    got = speaker.as_(Role.PILOT).get(f"/v1/bundles/{DIGEST}")
    assert (got.data, got.mimetype) == (BUNDLE, "application/gzip")
    assert [path.name for path in (core.state_directory / "bundles").iterdir()] == [DIGEST]


@pytest.mark.parametrize(
    ("digest", "status"),
    [
        ("0" * 64, 400),
        (DIGEST.upper(), 400),
        (DIGEST[:-1], 400),
        ("x", 400),
        ("..%2f..%2fetc", 404),
        ("%00" + DIGEST[1:], 404),
        ("%2e%2e", 400),
    ],
)
def test_a_bundle_that_is_not_what_its_name_says_is_refused(
    core: Core, speaker: Speaker, digest: str, status: int
) -> None:
    with World(core).unchanged():
        refusal(speaker.send("PUT", f"/v1/bundles/{digest}", data=BUNDLE), status)
    assert not [
        path
        for path in Path(core.state_directory).rglob("*")
        if path.is_file() and path.stat().st_size == len(BUNDLE)
    ]
    response = speaker.get(f"/v1/bundles/{digest}")
    refusal(response, 404 if digest == "0" * 64 else status)


def test_a_bundle_for_which_there_is_no_room_is_asked_for_later(
    core: Core, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with World(core).unchanged():
        monkeypatch.setattr("server.bundles.os.fsync", no_room)
        response = speaker.send("PUT", f"/v1/bundles/{DIGEST}", data=BUNDLE)
        refusal(response, 503, "SERVER_UNAVAILABLE")
    assert response.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)


# -- when the server fails --------------------------------------------------------------------------------------------------


def test_a_failure_nobody_foresaw_is_logged_and_told_without_its_trace(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(task_manager, "tasks", broken)
    with caplog.at_level(logging.ERROR):
        response = speaker.get("/v1/tasks")
    refusal(response, 500, "SERVER_ERROR")
    assert "secret" not in response.text
    assert "a secret detail" in caplog.text


def test_a_database_that_cannot_now_is_told_as_503_with_a_time(
    core: Core, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(work: Any) -> None:
        raise PilotageError("SERVER_UNAVAILABLE", "the database says: disk full")

    monkeypatch.setattr(core.database, "write", unavailable)
    response = speaker.post("/v1/tasks", {"name": "t", "command": ["true"], "nJobs": 1})
    refusal(response, 503, "SERVER_UNAVAILABLE")
    assert response.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
    speaker.ok("GET", "/v1/tasks")
