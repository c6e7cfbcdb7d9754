"""Accounts and ownership: who may change whose tasks, jobs and datasets; OWASP's API1, API3 and API5 by name."""

from __future__ import annotations

from typing import Any

import pytest

from server import app as app_module
from server.access import ownership
from server.access.tokens import Role
from server.core import Core
from server.models import Dataset
from server.routes import Route
from tests.integration.server.http import refusal
from tests.integration.server.tenants import TASK, Tenants
from tests.integration.server.world import World

FILE = {"lfn": "new.spd", "size": 5, "url": "file:///data/new.spd"}

CHANGES: dict[str, Any] = {
    "POST /v1/tasks/<task>/cancel": None,
    "POST /v1/tasks/<task>/retry": {"failed": True},
    "POST /v1/tasks/<task>/pause": None,
    "POST /v1/tasks/<task>/resume": None,
    "POST /v1/tasks/<task>/priority": {"priority": 5},
    "POST /v1/jobs/<job>/cancel": None,
    "POST /v1/jobs/<job>/retry": None,
    "POST /v1/jobs/<job>/debug": {"watch": True},
    "POST /v1/jobs/<job>/stop": None,
    "POST /v1/datasets/<name>/files": {"files": [FILE]},
    "POST /v1/datasets/<name>/close": None,
    "POST /v1/datasets/<name>/delete": None,
    "POST /v1/datasets/<name>/metadata": {"values": {"run": "7"}},
    "POST /v1/containers/<name>/datasets": {"add": ["mine"]},
    "POST /v1/containers/<name>/delete": None,
}
"""Every route that changes a thing of somebody, with a body that is right."""


def changing() -> list[Route]:
    return [
        route for door in app_module.DOORS for route in door.routes if ownership.guard_of(route) is not None
    ]


def address(route: str) -> tuple[str, str]:
    method, _, path = route.partition(" ")
    return method, path.replace("<task>", "t").replace("<job>", "1").replace(
        "s/<name>", "s/box" if "containers" in path else "s/mine"
    )


@pytest.fixture
def world(core: Core, tenants: Tenants) -> World:
    """bob of spd.sim has a task t with three jobs, and an open dataset."""
    tenants.tree()
    bob = tenants.token("bob", group="spd.sim")
    tenants.task(bob, "t")
    bob.ok("POST", "/v1/datasets", {"name": "mine"})
    bob.ok("POST", "/v1/containers", {"name": "box"})
    world = World(core)
    assert world.form() == 3
    return world


def test_every_route_that_changes_somebodys_is_in_the_list() -> None:
    assert {f"{route.method} {route.path}" for route in changing()} == set(CHANGES)


def test_a_route_that_changes_nobody_knows_whose_is_not_mounted() -> None:
    with pytest.raises(RuntimeError, match="say whose"):
        ownership.guard_of(Route("POST", "/v1/things/<thing>", Role.USER, lambda call: None))


@pytest.mark.parametrize("route", CHANGES)
def test_api1_nobody_changes_what_is_anothers(core: Core, tenants: Tenants, world: World, route: str) -> None:
    method, path = address(route)
    others = [
        tenants.token("eve"),
        tenants.token("mate", group="spd.sim"),
        tenants.token("boss of nica".replace(" ", "."), "group", group="nica"),
        tenants.token("boss.of.below", "group", group="biology"),
        tenants.token("bob.s"),
        tenants.token("BOB"),
    ]
    with world.unchanged():
        for other in others:
            refusal(other.send(method, path, CHANGES[route]), 403, "FORBIDDEN")
        for pilot in (tenants.admin.as_(Role.PILOT),):
            refusal(pilot.send(method, path, CHANGES[route]), 403, "FORBIDDEN")


@pytest.mark.parametrize("route", CHANGES)
@pytest.mark.parametrize("who", ["owner", "manager", "manager above", "admin"])
def test_owner_managers_and_admin_change_it(tenants: Tenants, world: World, route: str, who: str) -> None:
    speaker = {
        "owner": lambda: tenants.token("bob"),
        "manager": lambda: tenants.token("boss", "group", group="spd.sim"),
        "manager above": lambda: tenants.token("boss", "group", group="physics"),
        "admin": lambda: tenants.admin,
    }[who]()
    method, path = address(route)
    response = speaker.send(method, path, CHANGES[route])
    # A retry of what has not failed makes no sense, nor a look at what does not run; that is said to who may.
    may_be_senseless = route.endswith(("/retry", "/debug", "/stop"))
    assert response.status_code in ((200, 409) if may_be_senseless else (200,)), response.text


def test_the_manager_of_a_subgroup_manages_tasks_that_it_pays_for(tenants: Tenants, world: World) -> None:
    ada = tenants.token("ada", group="spd")
    tenants.task(ada, "own")
    tenants.task(ada, "sim", workingGroup="spd.sim")
    boss = tenants.token("boss", "group", group="spd.sim")
    refusal(boss.post("/v1/tasks/own/cancel"), 403, "FORBIDDEN")
    boss.ok("POST", "/v1/tasks/sim/cancel")


def test_api1_a_cascade_stops_before_what_is_anothers(tenants: Tenants, world: World) -> None:
    bob, mate = tenants.token("bob"), tenants.token("mate", group="spd.sim")
    tenants.task(bob, "second", after=["t"])
    tenants.task(mate, "third", after=["second"])
    with world.unchanged():
        reply = refusal(bob.post("/v1/tasks/t/cancel?cascade=yes"), 403, "FORBIDDEN")
        assert "task third is mate's" in reply.detail
    tenants.token("boss", "group", group="spd.sim").ok("POST", "/v1/tasks/t/cancel?cascade=yes")
    assert bob.ok("GET", "/v1/tasks/third")["state"] == "CANCELLED"


def test_everybody_with_a_users_token_may_look(tenants: Tenants, world: World) -> None:
    eve = tenants.token("eve")
    for path in (
        "/v1/tasks/t",
        "/v1/tasks",
        "/v1/jobs/1",
        "/v1/jobs?task=t",
        "/v1/datasets/mine",
        "/v1/accounts/bob",
    ):
        eve.ok("GET", path)
    assert eve.ok("GET", "/v1/datasets/mine")["owner"] == "bob"
    assert eve.ok("GET", "/v1/tasks/t")["owner"] == "bob"


def test_what_is_not_there_is_not_found_also_for_who_may_nothing(tenants: Tenants, world: World) -> None:
    eve = tenants.token("eve")
    with world.unchanged():
        for path in (
            "/v1/tasks/nope/cancel",
            "/v1/jobs/99/cancel",
            "/v1/jobs/x/retry",
            "/v1/datasets/nope/close",
        ):
            refusal(eve.post(path), 404, "NOT_FOUND")


def test_the_output_dataset_is_its_tasks_owners(core: Core, tenants: Tenants, world: World) -> None:
    tenants.token("bob").ok("POST", "/v1/tasks", {**TASK, "name": "made", "outputs": ["{job_nr}.x"]})
    assert Dataset.get(Dataset.name == "made.out").owner == "bob"


def test_what_the_first_token_submits_is_the_admins(tenants: Tenants, world: World) -> None:
    assert tenants.task(tenants.admin, "a")["owner"] == "admin"
    refusal(tenants.token("bob").post("/v1/tasks/a/cancel"), 403, "FORBIDDEN")
    second = tenants.token("carol", "admin")
    assert tenants.task(second, "c")["owner"] == "carol"


def test_two_tokens_of_one_account_are_one_owner(tenants: Tenants, world: World) -> None:
    tenants.token("bob", "user").ok("POST", "/v1/tasks/t/pause")
    tenants.token("bob", "group").ok("POST", "/v1/tasks/t/resume")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tasks", {**TASK, "name": "x", "owner": "admin"}),
        ("/v1/tasks", {**TASK, "name": "x", "usage": 0}),
        ("/v1/tasks", {**TASK, "name": "x", "boost": 1000}),
        ("/v1/tasks", {**TASK, "name": "x", "state": "COMPLETED"}),
        ("/v1/tasks", {**TASK, "name": "x", "account": "admin"}),
        ("/v1/datasets", {"name": "x", "owner": "admin"}),
        ("/v1/datasets", {"name": "x", "taskId": 1}),
        ("/v1/tasks/t/priority", {"priority": 1, "boost": 7}),
    ],
)
def test_api3_nobody_sets_what_is_not_theirs_to_set(
    tenants: Tenants, world: World, path: str, body: dict[str, Any]
) -> None:
    bob = tenants.token("bob")
    with world.unchanged():
        assert "no such field" in refusal(bob.post(path, body), 400, "BAD_REQUEST").detail


def test_api5_no_user_and_no_manager_does_what_is_the_operators(tenants: Tenants, world: World) -> None:
    people = [tenants.token("bob"), tenants.token("boss", "group", group="physics")]
    routes = [route for door in app_module.DOORS for route in door.routes if route.role is Role.ADMIN]
    assert len(routes) > 12
    with world.unchanged():
        for route in routes:
            path = route.path.replace("<account>", "bob").replace("<group>", "spd").replace("<token>", "1")
            for person in people:
                refusal(
                    person.send(route.method, path, {} if route.method == "POST" else None), 403, "FORBIDDEN"
                )


# -- accounts ---------------------------------------------------------------------------------------------------------------


def test_accounts_are_made_changed_and_listed(tenants: Tenants) -> None:
    tenants.tree()
    made = tenants.admin.ok("POST", "/v1/accounts", {"name": "ada", "workingGroup": "spd", "maxOpenJobs": 7})
    assert (made["workingGroup"], made["maxOpenJobs"], made["nOpen"]) == ("spd", 7, 0)
    changed = tenants.admin.ok("POST", "/v1/accounts/ada", {"workingGroup": "nica"})
    assert (changed["workingGroup"], changed["maxOpenJobs"]) == ("nica", 7), "what is not named stays"
    assert tenants.admin.ok("POST", "/v1/accounts/ada", {"workingGroup": ""})["workingGroup"] == ""
    assert [view["name"] for view in tenants.token("bob").ok("GET", "/v1/accounts")["items"]] == [
        "ada",
        "bob",
    ]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/accounts", {"name": "bob"}, 409),
        ("/v1/accounts", {"name": "ada", "workingGroup": "nope"}, 404),
        ("/v1/accounts", {"name": "ada", "maxOpenJobs": -1}, 400),
        ("/v1/accounts", {"name": "a/b"}, 400),
        ("/v1/accounts", {"name": "ada", "role": "admin"}, 400),
        ("/v1/accounts/nope", {"maxOpenJobs": 1}, 404),
        ("/v1/accounts/bob", {"workingGroup": "nope"}, 404),
        ("/v1/accounts/bob", {"name": "admin"}, 400),
    ],
)
def test_an_account_that_cannot_be_is_refused(
    tenants: Tenants, world: World, path: str, body: dict[str, Any], status: int
) -> None:
    with world.unchanged():
        refusal(tenants.admin.post(path, body), status)


# -- queries that nobody asked for ------------------------------------------------------------------------------------------


def test_one_thing_takes_no_query(tenants: Tenants, world: World) -> None:
    bob = tenants.token("bob")
    with world.unchanged():
        for method, path in (
            ("GET", "/v1/tasks/t?limit=5"),
            ("GET", "/v1/jobs/1?x=1"),
            ("GET", "/v1/datasets/mine?owner=eve"),
            ("POST", "/v1/tasks/t/pause?force=1"),
            ("POST", "/v1/datasets/mine/close?x"),
            ("POST", "/v1/tasks?owner=eve"),
            ("POST", "/v1/tasks/t/cancel?owner=eve"),
        ):
            refusal(
                bob.send(method, path, TASK if path.startswith("/v1/tasks?") else None), 400, "BAD_REQUEST"
            )
    assert tenants.admin.send("GET", "/healthz?t=1").status_code == 200, "a monitor may add what it likes"


# -- where files may be registered ------------------------------------------------------------------------------------------

BAD_URLS = [
    *(
        "file:///etc/shadow",
        "file:////etc/shadow",
        "file:///./etc/shadow",
        "file:///%65tc/shadow",
        "file:///proc/self/environ",
    ),
    *(
        "file:///data/../etc/shadow",
        "file:///dev/sda",
        "file:///home/ada/.ssh/id_rsa",
        "file:keys/.ssh/id",
        "file:///",
    ),
    *(
        "FILE:///etc/shadow",
        "file:%2fetc/shadow",
        "file://localhost/etc/shadow",
        "file://other/data/x",
        "file:///sys/kernel",
    ),
    *(
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.1.1/",
        "http://[fe80::1]/x",
        "https://2852039166/",
    ),
    *(
        "http://0xA9FEA9FE/",
        "http://169.254.43518/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://0251.0376.0251.0376/",
    ),
    *(
        "http://metadata.google.internal/x",
        "http://METADATA.google.internal./x",
        "http://0.0.0.0/",
        "root://169.254.169.254//x",
    ),
    *(
        "http://user:pass@host/x",
        "root://user@host//x",
        "http://host@169.254.169.254/",
        "s3://key:secret@bucket/x",
    ),
    *(
        "gopher://host/x",
        "javascript:alert(1)",
        "data:text/plain,x",
        "ssh://host/x",
        "x",
        "/data/x",
        "//host/x",
        "http:///x",
        "http://",
    ),
    *(
        "http://host:99999/x",
        "http://[::1/x",
        "http://host/a b",
        "http://host/a\nb",
        "http://host\\@169.254.169.254/",
        "http://ho\tst/",
    ),
]
GOOD_URLS = [
    *(
        "file:///data/x",
        "file:data/x",
        "file:///home/ada/x",
        "file:///dev/shm/x",
        "file:///etcetera/x",
        "file://localhost/data/x",
    ),
    *(
        "root://eos.cern.ch//eos/x",
        "https://store.example:8443/x?y=1",
        "s3://bucket/key",
        "davs://host/x",
        "http://10.0.0.7/x",
    ),
    *("http://127.0.0.1:9000/x", "http://[2001:db8::1]/x", "file:///data/a%20b"),
]


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/datasets/mine/files"])
def test_b25_api7_files_are_registered_only_from_where_files_may_lie(
    tenants: Tenants, world: World, path: str
) -> None:
    bob = tenants.token("bob")

    def body(url: str) -> dict[str, Any]:
        return {"files": [{**FILE, "url": url}], **({"name": "new"} if path == "/v1/datasets" else {})}

    with world.unchanged():
        for url in BAD_URLS:
            reply = refusal(bob.post(path, body(url)), 400, "BAD_PATH")
            assert reply.detail.startswith("files[0]: "), url
            assert "pass" not in reply.detail.replace("password", ""), "no secret comes back"
            assert "secret" not in reply.detail
            assert reply.detail.isprintable()


def test_what_is_no_such_place_is_registered(tenants: Tenants, world: World) -> None:
    every = [{**FILE, "lfn": f"{n}.spd", "url": url} for n, url in enumerate(GOOD_URLS)]
    tenants.token("bob").ok("POST", "/v1/datasets/mine/files", {"files": every})


def test_b25_a_storage_has_no_password_in_its_address(tenants: Tenants, world: World) -> None:
    with world.unchanged():
        for url in ("http://user:pass@host/x", "http://169.254.169.254/", "gopher://host/x", "file:///etc"):
            refusal(tenants.admin.post("/v1/storages", {"name": "S", "url": url}), 400)


class TestAllowedPaths:
    @pytest.fixture
    def limits(self) -> Any:
        from server.core import Limits

        return Limits(allowed_paths=("/data", "/nfs/spd/"), url_schemes=("file", "root"))

    def test_b25_only_below_what_the_operator_names(self, tenants: Tenants, world: World) -> None:
        bob = tenants.token("bob")
        names = iter(range(100))
        for url in ("file:///data/x", "file:///nfs/spd/a/b", "file:in/x", "root://host//x"):
            file = {**FILE, "lfn": f"{next(names)}", "url": url}
            bob.ok("POST", "/v1/datasets/mine/files", {"files": [file]})
        with world.unchanged():
            for url in (
                "file:///datax/x",
                "file:///data",
                "file:///nfs/x",
                "file:///nfs/spd",
                "file:///data/../etc/x",
                "s3://b/x",
            ):
                refusal(
                    bob.post("/v1/datasets/mine/files", {"files": [{**FILE, "url": url}]}), 400, "BAD_PATH"
                )


# -- JSON that says a thing twice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "x", "command": ["true"], "nJobs": 1, "nJobs": 2}',
        '{"name": "x", "name": "y", "command": ["true"], "nJobs": 1}',
        '{"name": "x", "\\u006eame": "y", "command": ["true"], "nJobs": 1}',
        '{"name": "x", "command": ["true"], "nJobs": 1, "environment": {"A": "1", "A": "2"}}',
        '{"name": "x", "command": ["true"], "nJobs": 1, "priority": NaN}',
    ],
)
def test_b13_what_is_said_twice_is_refused(tenants: Tenants, world: World, body: str) -> None:
    bob = tenants.token("bob")
    with world.unchanged():
        refusal(bob.post("/v1/tasks", data=body), 400, "BAD_REQUEST")


@pytest.mark.parametrize(
    "twice",
    ['"seq": 1, "seq": 2', '"\\u0073eq": 1, "seq": 2', '"seq" :1,"seq": 1', '"seq": 1, "attemptId": 2'],
)
def test_b13_a_pilots_word_says_each_of_its_fields_once(tenants: Tenants, world: World, twice: str) -> None:
    world.pilot()
    job = world.claim()[0]
    body = f'{{"attemptId": {job.attempt_id}, "attemptToken": "{job.attempt_token}", {twice}}}'
    with world.unchanged():
        reply = refusal(tenants.admin.post("/v1/updateJob", data=body), 400, "BAD_REQUEST")
        assert "is there twice" in reply.detail


def test_a_word_that_only_looks_as_if_it_said_a_thing_twice_is_taken(tenants: Tenants, world: World) -> None:
    world.pilot()
    job = world.claim()[0]
    body = {
        "attemptId": job.attempt_id,
        "attemptToken": job.attempt_token,
        "seq": 1,
        "errorDetail": "é \u2028",
    }
    word = {
        **body,
        "moves": [{"state": "FAILED", "at": 1.0}],
        "error": "PAYLOAD_FAILED",
        "exitCode": 1,
        "seq2": "seq",
    }
    assert tenants.admin.ok("POST", "/v1/updateJob", {**word, "zz": ["seq", "error"]})["state"] == "FAILED"
