"""What operators make of queues: what would end each pilot is refused, all of a queue can be changed, and an unused one deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol.errors import PilotageError
from protocol.messages.pilots import PilotEnd, PilotRegistration, Step, StepKind
from protocol.messages.requests import QueueChange, QueueSpec, QueueStateSpec, TokenSpec
from protocol.resources import ResourceType
from server import computing, job_executor
from server.access import accounts
from server.access.tokens import Role
from server.core import Core
from server.models import AdminEvent, Node, Pilot, Queue, Token
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import Bearer, World

WRONG = [
    (
        {"copytools": ["cp", "nosuch"]},
        "copytools: 'nosuch' is not known; there are cp, gfal, gs",
    ),
    ({"copytools": ["cp", "nsf"]}, "copytools: 'nsf' is not known; did you mean nfs?"),
    ({"pilot_settings": {"copytools.names": "nfs, cpp"}}, "'cpp' is not known; did you mean cp?"),
    ({"pilot_settings": {"payload.exekutor": "plain"}}, "did you mean payload.executor?"),
    ({"pilot_settings": {"limits.max_jobs": "1"}}, "is not for a queue to set"),
    ({"pilot_settings": {"limits.software_mb": "many"}}, "must be a whole number (from 1 to 1000000)"),
    ({"lease_seconds": 10, "heartbeat_seconds": 10}, "heartbeatSeconds must be below leaseSeconds"),
]


@pytest.mark.parametrize(("fields", "said"), WRONG, ids=lambda value: str(value)[:50])
def test_what_would_end_each_pilot_at_its_start_is_refused(
    world: World, fields: dict[str, Any], said: str
) -> None:
    with world.unchanged():
        for work in (
            lambda: computing.create_queue(world.core, QueueSpec("NEW", **fields)),
            lambda: computing.change_queue(world.core, "CPU", QueueChange(**fields), "root"),
        ):
            with pytest.raises(PilotageError) as caught:
                work()
            assert caught.value.name == "BAD_REQUEST"
            assert said in caught.value.detail


def test_the_refusal_travels_as_a_400(core: Core, client: FlaskClient, bearer: Bearer) -> None:
    admin = Speaker(client, bearer, Role.ADMIN)
    body = {"name": "NEW", "copytools": ["nosuch"]}
    assert "is not known" in refusal(admin.post("/v1/queues", body), 400, "BAD_REQUEST").detail
    body = {"pilotSettings": {"limits.looping_seconds": "soon"}}
    told = refusal(admin.post("/v1/queues/CPU", body), 400, "BAD_REQUEST").detail
    assert told.startswith("pilotSettings: limits.looping_seconds must be a whole number")


# -- changing ---------------------------------------------------------------------------------------------------------------


def test_all_that_a_queue_was_made_with_can_be_changed(world: World) -> None:
    computing.create_storage(world.core, computing.StorageSpec("DISK", "file:///disk"))
    wish = QueueChange(
        site="FAR",
        resource_type=ResourceType.GPU,
        storage="DISK",
        copytools=["nfs", "cp"],
        lease_seconds=600,
        heartbeat_seconds=100,
        timefloor_seconds=3600,
        requeue_delay_seconds=60,
        tags=["gcc12", "cvmfs"],
        country_group="RU",
        pilot_settings={"payload.executor": "bubblewrap"},
    )
    computing.create_queue(world.core, QueueSpec("FARM"))
    view = computing.change_queue(world.core, "FARM", wish, "root")
    said = {name: value for name, value in vars(wish).items() if name not in ("tags", "unset")}
    assert {name: getattr(view, name) for name in said} == said
    assert view.tags == ["cvmfs", "gcc12"]
    line = AdminEvent.select().order_by(AdminEvent.id.desc()).first()
    assert (line.who, line.action, line.subject) == ("root", "queue set", "FARM")
    assert "lease seconds 600" in line.detail and "payload.executor" in line.detail
    view = computing.change_queue(
        world.core, "FARM", QueueChange(lease_seconds=0, heartbeat_seconds=0, storage="", tags=[]), "root"
    )
    assert (view.lease_seconds, view.storage, view.tags) == (world.core.limits.lease_seconds, "LOCAL", [])
    assert (view.timefloor_seconds, view.copytools) == (3600, ["nfs", "cp"])


def test_what_is_not_said_of_a_queue_stays_and_an_empty_wish_leaves_no_trace(world: World) -> None:
    computing.create_queue(world.core, QueueSpec("FARM", tags=["a"], copytools=["cp"], country_group="RU"))
    with world.unchanged():
        computing.change_queue(world.core, "FARM", QueueChange(), "root")
    before = computing.queue_view(computing.find_queue("FARM"))
    after = computing.change_queue(world.core, "FARM", QueueChange(timefloor_seconds=5), "root")
    assert {**vars(after), "timefloor_seconds": 0} == vars(before)


def test_settings_of_pilots_are_changed_one_by_one_and_taken_away(world: World) -> None:
    first = {"limits.looping_seconds": "60", "payload.executor": "bubblewrap"}
    computing.create_queue(world.core, QueueSpec("FARM", pilot_settings=first))
    wish = QueueChange(pilot_settings={"payload.network": "yes"}, unset=["limits.looping_seconds", "x.y"])
    view = computing.change_queue(world.core, "FARM", wish, "root")
    assert view.pilot_settings == {"payload.executor": "bubblewrap", "payload.network": "yes"}
    word = PilotRegistration("p1", "n1", "1.0", queue="FARM")
    assert computing.register_pilot(world.core, word).pilot_settings == view.pilot_settings


def test_a_change_holds_for_the_next_claim(world: World) -> None:
    world.ready(1, requires=["cvmfs"])
    assert world.claim() == []
    computing.change_queue(world.core, "CPU", QueueChange(tags=["cvmfs"]), "root")
    assert len(world.claim()) == 1


def test_what_names_nothing_is_not_found(world: World) -> None:
    with world.refused("NOT_FOUND", "no queue NOPE"):
        computing.change_queue(world.core, "NOPE", QueueChange(tags=["a"]), "root")
    with world.refused("NOT_FOUND", "no storage NOPE"):
        computing.change_queue(world.core, "CPU", QueueChange(site="NEW", storage="NOPE"), "root")


def test_a_queue_in_use_keeps_its_type(world: World) -> None:
    world.pilot()
    with world.refused("WRONG_STATE", "pilots of CPU are alive"):
        computing.change_queue(world.core, "CPU", QueueChange(resource_type=ResourceType.GPU), "root")
    computing.change_queue(world.core, "CPU", QueueChange(resource_type=ResourceType.CPU), "root")


# -- deleting ---------------------------------------------------------------------------------------------------------------


def test_a_queue_is_deleted_when_nothing_uses_it_any_more(world: World) -> None:
    core = world.core
    computing.create_queue(core, QueueSpec("OLD"))
    accounts.create_token(core, TokenSpec("old", "pilot", queue="OLD"), "root")
    world.task("bound", n_jobs=1, queue="OLD")
    world.form()
    world.pilot("p9", "OLD")
    [job] = world.claim("p9", queue="OLD")
    with world.refused("WRONG_STATE", "pilots of OLD hold jobs .1.; close it with"):
        computing.delete_queue(core, "OLD", "root")
    world.complete(job)
    with world.refused(
        "WRONG_STATE", "pilots of OLD are alive .1.; 'pilotage pilot drain --queue OLD' ends them"
    ):
        computing.delete_queue(core, "OLD", "root")
    computing.end_pilot(core, PilotEnd("p9", 0))
    with world.refused("WRONG_STATE", "no other queue takes the jobs of tasks that have not ended: bound"):
        computing.delete_queue(core, "OLD", "root")
    world.close_tasks()
    computing.set_node_state(core, "OLD", computing.NodeStateSpec("n1", "offline"), "root")
    computing.delete_queue(core, "OLD", "root")
    assert not Queue.select().where(Queue.name == "OLD").exists()
    assert not Node.select().exists() and not Pilot.select().exists()
    assert Token.get(Token.name == "old").revoked
    line = AdminEvent.select().order_by(AdminEvent.id.desc()).first()
    assert (line.who, line.action, line.subject) == ("root", "queue delete", "OLD")
    with world.refused("NOT_FOUND", "no queue OLD"):
        computing.delete_queue(core, "OLD", "root")
    with world.refused("NOT_FOUND", "no queue OLD"):
        job_executor.claim(core, world.request("p9", queue="OLD"))


def test_jobs_that_may_run_elsewhere_do_not_keep_a_queue(world: World) -> None:
    world.task(n_jobs=1)
    world.form()
    with world.refused("WRONG_STATE", "no other queue takes the jobs of tasks that have not ended: t"):
        computing.delete_queue(world.core, "CPU", "root")
    computing.create_queue(world.core, QueueSpec("CPU2"))
    computing.delete_queue(world.core, "CPU", "root")
    world.pilot(queue="CPU2")
    assert len(world.claim(queue="CPU2")) == 1


def test_deleting_by_http_says_why_not(core: Core, client: FlaskClient, bearer: Bearer) -> None:
    admin = Speaker(client, bearer, Role.ADMIN)
    World(core).pilot()
    assert "alive" in refusal(admin.post("/v1/queues/CPU/delete"), 409, "WRONG_STATE").detail
    assert admin.ok("POST", "/v1/queues/GPU/delete") == {}
    assert [queue["name"] for queue in admin.ok("GET", "/v1/queues")["items"]] == ["CPU"]


# -- containers -------------------------------------------------------------------------------------------------------------

IMAGES = {"payload.task_images": "yes", "payload.executor": "bubblewrap"}


def test_a_job_with_an_image_goes_to_a_queue_that_runs_containers_and_to_no_other(world: World) -> None:
    world.ready(1, image="docker://debian:12")
    assert world.claim() == []
    computing.create_queue(world.core, QueueSpec("BOXES", pilot_settings=IMAGES))
    world.pilot("p2", "BOXES")
    assert world.claim("p2", queue="BOXES", images=False) == [], "started before the queue said so"
    assert len(world.claim("p2", queue="BOXES", images=True)) == 1
    assert json.loads(Queue.get_by_id("BOXES").pilot_settings) == IMAGES


@pytest.mark.parametrize("images", [True, None])
def test_a_step_with_an_image_needs_containers_too(world: World, images: bool | None) -> None:
    world.ready(1, steps=[Step(StepKind.PRE, ["true"], image="/cvmfs/x.sif")])
    assert world.claim(images=images) == []
    computing.change_queue(world.core, "CPU", QueueChange(pilot_settings=IMAGES), "root")
    assert len(world.claim(images=images)) == 1


def test_jobs_without_an_image_go_to_pilots_with_and_without_containers(world: World) -> None:
    world.ready(2)
    assert len(world.claim(images=False)) == 1
    assert len(world.claim(images=True)) == 1


def test_an_operator_opens_a_queue_though_it_was_changed_meanwhile(world: World) -> None:
    computing.set_queue_state(world.core, "CPU", QueueStateSpec("drain", "new disks"), "root")
    view = computing.change_queue(world.core, "CPU", QueueChange(tags=["a"]), "root")
    assert (view.state, view.state_reason) == ("drain", "new disks")
