"""The trail of administrative actions: each leaves one line in the transaction of the action, a refused one none."""

from __future__ import annotations

import logging

import pytest

from protocol.errors import PilotageError
from server.access import trail
from server.core import Core
from server.models import AdminEvent, Queue
from tests.integration.server.http import refusal
from tests.integration.server.tenants import Tenants
from tests.integration.server.world import World


def lines() -> list[tuple[str, str, str]]:
    return [(row.who, row.action, row.subject) for row in AdminEvent.select().order_by(AdminEvent.id)]


def test_each_action_leaves_a_line_with_who_and_what(core: Core, tenants: Tenants) -> None:
    carol = tenants.token("carol", "admin")
    before = len(lines())
    carol.ok("POST", "/v1/groups", {"name": "spd"})
    carol.ok("POST", "/v1/groups/spd", {"share": 5})
    carol.ok("POST", "/v1/accounts", {"name": "bob", "workingGroup": "spd"})
    carol.ok("POST", "/v1/accounts/bob", {"maxOpenJobs": 5})
    carol.ok("POST", "/v1/tokens", {"name": "bob", "role": "user"})
    carol.ok("POST", "/v1/tokens/1/revoke")
    carol.ok("POST", "/v1/storages", {"name": "S", "url": "file:///s"})
    carol.ok("POST", "/v1/queues", {"name": "Q", "storage": "S"})
    carol.ok("POST", "/v1/queues/Q/state", {"state": "drain", "reason": "a new disk"})
    carol.ok("POST", "/v1/accounts/bob", {"workingGroup": ""})
    carol.ok("POST", "/v1/groups/spd/remove")
    assert {who for who, _, _ in lines()[before:]} == {"carol"}
    assert [(action, subject) for _, action, subject in lines()[before:]] == [
        ("group create", "spd"),
        ("group set", "spd"),
        ("account create", "bob"),
        ("account set", "bob"),
        ("token create", "token 6"),
        ("token revoke", "token 1"),
        ("storage create", "S"),
        ("queue create", "Q"),
        ("queue set", "Q"),
        ("account set", "bob"),
        ("group remove", "spd"),
    ]


def test_what_users_do_to_their_tasks_is_in_it_too(core: Core, tenants: Tenants) -> None:
    bob = tenants.token("bob")
    tenants.task(bob, "t")
    World(core).form()
    before = len(lines())
    bob.ok("POST", "/v1/tasks/t/pause")
    bob.ok("POST", "/v1/tasks/t/resume")
    bob.ok("POST", "/v1/tasks/t/priority", {"priority": 5})
    bob.ok("POST", "/v1/tasks/t/cancel")
    bob.ok("POST", "/v1/tasks/t/retry", {"cancelled": True})
    assert lines()[before:] == [
        ("bob", f"task {action}", "t") for action in ("pause", "resume", "set-priority", "cancel", "retry")
    ]
    said = AdminEvent.select(AdminEvent.detail).order_by(AdminEvent.id).tuples()
    assert [detail for (detail,) in said][before : before + 3] == ["", "", "priority 5"]


def test_an_action_that_fails_leaves_no_line_and_a_line_that_fails_no_action(
    core: Core, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(core).unchanged():
        refusal(tenants.admin.post("/v1/queues", {"name": "CPU"}), 409)
        refusal(tenants.admin.post("/v1/groups/nope", {"share": 1}), 404)

    def broken(*arguments: object) -> None:
        raise PilotageError("SERVER_UNAVAILABLE", "no room for the trail")

    monkeypatch.setattr(trail, "note", broken)
    with World(core).unchanged():
        refusal(tenants.admin.post("/v1/queues", {"name": "NEW"}), 503)
        refusal(tenants.admin.post("/v1/groups", {"name": "new"}), 503)
        refusal(tenants.admin.post("/v1/tokens", {"name": "new", "role": "user"}), 503)
    assert not Queue.get_or_none(Queue.name == "NEW")


def test_a_refused_attempt_is_logged_and_not_kept(
    core: Core, tenants: Tenants, caplog: pytest.LogCaptureFixture
) -> None:
    eve = tenants.token("eve")
    with World(core).unchanged(), caplog.at_level(logging.WARNING):
        refusal(eve.post("/v1/queues/CPU/state", {"state": "offline"}), 403)
    record = next(each for each in caplog.records if "was refused" in each.getMessage())
    assert vars(record)["who"] == "eve"
    assert vars(record)["path"] == "/v1/queues/CPU/state"


def test_the_trail_is_read_in_pages_and_by_what_one_looks_for(tenants: Tenants) -> None:
    for number in range(5):
        tenants.group(f"g{number}")
    tenants.token("bob")
    assert [
        each["subject"]
        for each in tenants.admin.ok("GET", "/v1/trail?action=group%20create&limit=2")["items"]
    ] == ["g0", "g1"]
    newest = tenants.admin.ok("GET", "/v1/trail?order=newest&limit=1")
    assert newest["items"][0]["action"] == "token create"
    assert newest["total"] == 7
    assert len(tenants.admin.ok("GET", "/v1/trail?subject=g3")["items"]) == 1
    assert tenants.admin.ok("GET", "/v1/trail?who=nobody")["items"] == []
    refusal(tenants.admin.get("/v1/trail?colour=red"), 400, "BAD_REQUEST")


def test_b22_what_somebody_made_up_stands_in_it_as_text(core: Core, tenants: Tenants) -> None:
    reason = "a\r\nforged line \x1b[2J <script>"
    tenants.admin.ok("POST", "/v1/queues/CPU/state", {"state": "drain", "reason": reason})
    assert reason in tenants.admin.ok("GET", "/v1/trail?action=queue%20set")["items"][0]["detail"]
