"""Working groups: a tree without circles, who may use which, what a quota leaves waiting, and who manages whom."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.states import JobState
from server.access import groups, quotas
from server.access.tokens import Caller, Role
from server.core import Core
from server.models import Task, WorkingGroup
from tests.integration.server.http import refusal
from tests.integration.server.tenants import Tenants
from tests.integration.server.world import World, at_once, giving_back, refusing

# -- the tree ---------------------------------------------------------------------------------------------------------------


def test_groups_are_listed_as_a_tree_with_their_part_of_the_whole(core: Core, tenants: Tenants) -> None:
    tenants.group("spd", share=300)
    tenants.group("nica", share=100)
    tenants.group("spd.sim", "spd", share=30)
    tenants.group("spd.ana", "spd", share=10)
    core.database.write(lambda: WorkingGroup.update(usage=7.0).where(WorkingGroup.parent == "spd").execute())
    listed = tenants.token("bob").ok("GET", "/v1/groups")["items"]
    assert [(view["name"], view["fraction"], view["usage"]) for view in listed] == [
        ("nica", 0.25, 0.0),
        ("spd", 0.75, 14.0),
        ("spd.ana", 0.1875, 7.0),
        ("spd.sim", 0.5625, 7.0),
    ]
    assert tenants.token("bob").ok("GET", "/v1/groups/spd.ana") == listed[2]
    refusal(tenants.token("bob").get("/v1/groups/nope"), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "wish", "status"),
    [
        ("/v1/groups", {"name": "spd"}, 409),
        ("/v1/groups", {"name": "new", "parent": "nope"}, 404),
        ("/v1/groups", {"name": "new", "share": 0}, 400),
        ("/v1/groups", {"name": "new", "usage": 1e9}, 400),
        ("/v1/groups", {"name": "../new"}, 400),
        ("/v1/groups/nope", {"share": 1}, 404),
        ("/v1/groups/spd", {"parent": "nope"}, 404),
        ("/v1/groups/spd", {"parent": "spd"}, 400),
        ("/v1/groups/spd", {"parent": "spd.sim"}, 400),
        ("/v1/groups/physics", {"parent": "spd.sim"}, 400),
        ("/v1/groups/spd", {"share": -1}, 400),
        ("/v1/groups/spd", {"maxOpenJobs": -1}, 400),
        ("/v1/groups/spd", {"name": "other"}, 400),
        ("/v1/groups/physics/remove", None, 409),
        ("/v1/groups/nope/remove", None, 404),
    ],
)
def test_a_change_that_would_spoil_the_tree_is_refused(
    core: Core, tenants: Tenants, path: str, wish: Any, status: int
) -> None:
    tenants.tree()
    with World(core).unchanged():
        refusal(tenants.admin.post(path, wish), status)


def test_a_group_moves_with_what_is_below_it_and_keeps_what_is_not_named(tenants: Tenants) -> None:
    tenants.tree()
    tenants.admin.ok("POST", "/v1/groups/spd", {"share": 7, "maxOpenJobs": 5})
    moved = tenants.admin.ok("POST", "/v1/groups/spd", {"parent": "biology"})
    assert (moved["parent"], moved["share"], moved["maxOpenJobs"]) == ("biology", 7, 5)
    assert tenants.admin.ok("GET", "/v1/groups/spd.sim")["fraction"] == 0.5
    assert tenants.admin.ok("POST", "/v1/groups/spd", {"parent": "", "maxOpenJobs": 0})["maxOpenJobs"] == 0
    assert "parent" not in (WorkingGroup.get_by_id("spd").parent or "")


def test_two_moves_at_once_make_no_circle(core: Core, tenants: Tenants) -> None:
    tenants.group("a")
    tenants.group("b")

    def move(name: str, parent: str) -> Any:
        return giving_back(lambda: groups.change(core, name, groups.GroupChange(parent=parent), "admin"))

    at_once([move("a", "b"), move("b", "a")])
    parents = {row.name: row.parent for row in WorkingGroup.select()}
    assert sorted(parents.values(), key=str) in ([None, "a"], [None, "b"], ["a", None], ["b", None])


@pytest.mark.parametrize("user", ["a group below", "an account", "a task"])
def test_a_group_that_is_used_is_not_removed(core: Core, tenants: Tenants, user: str) -> None:
    tenants.group("spd")
    if user == "a group below":
        tenants.group("sim", "spd")
    elif user == "an account":
        tenants.token("bob", group="spd")
    else:
        tenants.task(tenants.admin, "t", workingGroup="spd")
    with World(core).unchanged():
        refusal(tenants.admin.post("/v1/groups/spd/remove"), 409, "WRONG_STATE")
    core.database.write(lambda: Task.update(ended=1.0).execute())
    if user == "a task":
        assert tenants.admin.ok("POST", "/v1/groups/spd/remove") == {}
        refusal(tenants.admin.get("/v1/groups/spd"), 404)


# -- who pays ---------------------------------------------------------------------------------------------------------------


def test_a_task_is_paid_by_its_owners_group_unless_it_names_one_below(core: Core, tenants: Tenants) -> None:
    tenants.tree()
    bob = tenants.token("bob", group="spd")
    assert tenants.task(bob, "t1")["workingGroup"] == "spd"
    assert tenants.task(bob, "t2", workingGroup="spd.sim")["workingGroup"] == "spd.sim"
    assert tenants.task(tenants.admin, "t3", workingGroup="biology")["workingGroup"] == "biology"
    assert tenants.task(tenants.admin, "t4")["workingGroup"] == ""
    with World(core).unchanged():
        for other in ("physics", "nica", "biology"):
            reply = refusal(
                bob.post("/v1/tasks", {"name": "x", "command": ["true"], "nJobs": 1, "workingGroup": other}),
                403,
            )
            assert "spd" in reply.detail
        refusal(
            bob.post("/v1/tasks", {"name": "x", "command": ["true"], "nJobs": 1, "workingGroup": "nope"}), 404
        )
        alone = {"name": "x", "command": ["true"], "nJobs": 1, "workingGroup": "spd"}
    refusal(tenants.token("eve").post("/v1/tasks", alone), 403, "FORBIDDEN")


def test_who_is_in_no_group_may_use_none(core: Core, tenants: Tenants) -> None:
    tenants.tree()
    groups.check_use(Caller("nobody", Role.USER), "")
    with refusing("FORBIDDEN"):
        groups.check_use(Caller("nobody", Role.USER), "spd")


# -- quotas -----------------------------------------------------------------------------------------------------------------


def open_jobs(core: Core) -> dict[str, int]:
    return dict(sorted(quotas.open_by_owner().items()))


def test_a_quota_leaves_jobs_waiting_and_forms_more_as_others_end(core: Core, tenants: Tenants) -> None:
    world = World(core)
    bob, eve = tenants.token("bob"), tenants.token("eve")
    tenants.admin.ok("POST", "/v1/accounts/bob", {"maxOpenJobs": 4})
    tenants.task(bob, "big", nJobs=10)  # more than its quota is not refused
    tenants.task(bob, "second", nJobs=10)
    tenants.task(eve, "other", nJobs=6)
    assert world.form() == 10
    assert world.form() == 0
    assert open_jobs(core) == {"bob": 4, "eve": 6}
    assert bob.ok("GET", "/v1/tasks/second")["waiting"].startswith("quota of bob: 4 of 4 open jobs")
    assert "quota of bob" not in bob.ok("GET", "/v1/tasks/other").get("waiting", "")
    assert bob.ok("GET", "/v1/accounts/bob")["nOpen"] == 4
    world.pilot()
    held = world.claim(n_jobs=2, task_id=1)
    for job in held:
        world.say(job, JobState.RUNNING)
    assert world.form() == 0, "what runs is open"
    for job in held:
        world.complete(job)
    assert world.form() == 2
    assert open_jobs(core) == {"bob": 4, "eve": 6}
    tenants.admin.ok("POST", "/v1/accounts/bob", {"maxOpenJobs": 0})
    assert world.form() == 14


def test_a_groups_quota_counts_those_below_and_each_up_the_tree_bounds(core: Core, tenants: Tenants) -> None:
    world = World(core)
    tenants.tree()
    bob, eve = tenants.token("bob", group="spd.sim"), tenants.token("eve", group="nica")
    for name, limit in (("physics", 5), ("spd", 3)):
        tenants.admin.ok("POST", f"/v1/groups/{name}", {"maxOpenJobs": limit})
    tenants.task(bob, "sim", nJobs=10)
    tenants.task(eve, "nica", nJobs=10)
    assert world.form() == 5
    assert open_jobs(core) == {"bob": 3, "eve": 2}
    shown = {view["name"]: view["nOpen"] for view in bob.ok("GET", "/v1/groups")["items"]}
    assert shown == {"physics": 5, "spd": 3, "spd.sim": 3, "nica": 2, "biology": 0}
    assert bob.ok("GET", "/v1/tasks/sim")["waiting"].startswith("quota of group spd: 3 of 3 open jobs")
    assert bob.ok("GET", "/v1/tasks/nica")["waiting"].startswith("quota of group physics: 5 of 5 open jobs")
    tenants.task(tenants.admin, "beside", nJobs=4)
    assert world.form() == 4, "who has no quota is not held up"


def test_quotas_are_counted_once_per_pass_whatever_the_number_of_tasks(
    core: Core, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = tenants.token("bob")
    tenants.admin.ok("POST", "/v1/accounts/bob", {"maxOpenJobs": 5})
    for number in range(8):
        tenants.task(bob, f"t{number}", nJobs=2, memoryMb=number)
    counted = []
    count = quotas._open

    def counting(*arguments: Any) -> Any:
        counted.append(arguments)
        return count(*arguments)

    monkeypatch.setattr(quotas, "_open", counting)
    assert World(core).form() == 5
    assert len(counted) == 1


def test_without_any_quota_nothing_is_counted(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    def counting(*arguments: Any) -> Any:
        raise AssertionError("counted")

    monkeypatch.setattr(quotas, "_open", counting)
    World(core).task(n_jobs=3)
    assert World(core).form() == 3
