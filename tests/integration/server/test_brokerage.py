"""Who gets which job: lanes that stay right while jobs come and go, fair shares, preferences, places that are avoided."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from protocol import cached
from protocol.messages.pilots import PilotRegistration
from protocol.resources import Needs, ResourceType
from protocol.states import JobState
from server import closer, computing
from server.brokerage import broker
from server.brokerage.broker import WINDOW, Broker
from server.core import Core
from server.database import proxy
from server.jobs import claiming, statements
from server.jobs.claiming import SIGN_OF_LIFE_SECONDS
from server.models import Attempt, File, Job, JobClass, JobInput, Node, Pilot, Queue, Site, WorkingGroup
from server.recent import SECONDS, Recent
from tests.integration.server.world import World, at_once

S = JobState


def tasks_of(world: World, **claim: object) -> list[str]:
    """The names of the tasks of what a claim gives."""
    return [Job.get_by_id(job.job_id).task.name for job in world.claim(**claim)]  # type: ignore[arg-type]


def another_dispatcher(core: Core) -> Core:
    """Another process on the same database: it remembers nothing of what this one does."""
    return dataclasses.replace(core, broker=Broker(), recent=Recent())


# -- lanes ------------------------------------------------------------------------------------------------------------------


def test_a_job_that_another_dispatcher_made_ready_is_found(world: World) -> None:
    world.ready(1)
    other = World(another_dispatcher(world.core))
    assert len(other.claim()) == 1
    assert other.claim() == []
    world.task("later", n_jobs=1)
    world.form()
    other.core.broker._looked -= 1.0  # a second later
    assert len(other.claim()) == 1


def test_a_job_that_was_committed_late_behind_the_remembered_place_is_found(world: World) -> None:
    world.ready(3)
    world.claim(n_jobs=3)
    Job.update(state=S.READY.value, ready_nr=1).where(Job.id == 2).execute()
    world.core.broker._looked -= 1.0
    assert [job.job_id for job in world.claim()] == [2]


def test_jobs_that_do_not_fit_are_passed_over_by_class(world: World) -> None:
    for cores in range(2, 12):
        world.task(f"large{cores}", n_jobs=5, cores=cores, priority=10)
    world.task(n_jobs=1)
    assert world.form() == 51
    world.pilot()
    assert tasks_of(world, cores=1) == ["t"]
    assert world.claim(cores=1) == []
    assert len(world.claim(cores=64, n_jobs=100)) == 50


def test_priorities_come_before_classes(world: World) -> None:
    world.pilot()
    for name, priority, cores in (("low", 0, 1), ("high", 5, 2), ("middle", 3, 1), ("highest", 9, 1)):
        world.task(name, n_jobs=1, priority=priority, cores=cores)
    world.form()
    assert tasks_of(world, n_jobs=4, cores=8) == ["highest", "high", "middle", "low"]


# -- what a pilot has to be or to have --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "offer"),
    [
        ({"requires": ["cvmfs", "root-6.30"]}, {"tags": ["root-6.30", "cvmfs", "docker"]}),
        ({"working_group": "spd"}, {"working_group": "spd"}),
        ({"country_group": "ru"}, {"country_group": "ru"}),
        ({"country_group": "ru"}, {"country_group": "cz", "allow_other_country": True}),
        ({"prod_source_label": "ptest"}, {"prod_source_label": "ptest"}),
        ({"site": "LOCAL"}, {}),
        ({"walltime_seconds": 100}, {"walltime_seconds": 100}),
    ],
)
def test_a_job_goes_to_a_pilot_that_has_what_it_needs(
    world: World, needs: dict[str, object], offer: dict[str, object]
) -> None:
    world.ready(1, **needs)
    assert len(world.claim(**offer)) == 1


@pytest.mark.parametrize(
    ("needs", "offer"),
    [
        ({"requires": ["cvmfs", "root-6.30"]}, {"tags": ["cvmfs"]}),
        ({}, {"working_group": "spd"}),
        ({"working_group": "theory"}, {"working_group": "spd"}),
        ({"country_group": "ru"}, {"country_group": "cz"}),
        ({"country_group": "ru"}, {}),
        ({"prod_source_label": "ptest"}, {"prod_source_label": "user"}),
        ({"walltime_seconds": 100}, {"walltime_seconds": 99}),
    ],
)
def test_and_not_to_one_that_has_not(
    world: World, needs: dict[str, object], offer: dict[str, object]
) -> None:
    world.ready(1, **needs)
    assert world.claim(**offer) == []


def test_what_a_queue_has_all_its_pilots_have(world: World) -> None:
    Queue.create(
        name="CVMFS", site="LOCAL", resource_type="cpu", storage="LOCAL", tags='["cvmfs"]', country_group="ru"
    )
    world.ready(1, requires=["cvmfs"], country_group="ru")
    world.pilot("p2", "CVMFS")
    assert world.claim() == []
    assert len(world.claim("p2", queue="CVMFS")) == 1


def test_what_a_pilot_said_when_it_registered_counts_as_well(world: World) -> None:
    world.ready(1, requires=["scratch"])
    Pilot.update(tags='["scratch"]').execute()
    assert len(world.claim()) == 1


def test_a_queue_in_test_has_one_job_at_a_time(world: World) -> None:
    world.ready(3)
    Queue.update(state="test").where(Queue.name == "CPU").execute()
    [first] = world.claim(n_jobs=3)
    assert world.claim() == []
    world.complete(first)
    assert len(world.claim()) == 1


def test_a_site_that_is_offline_hands_out_nothing_and_the_jobs_go_elsewhere(world: World) -> None:
    Site.create(name="PRAGUE")
    Queue.create(name="PRAGUE", site="PRAGUE", resource_type="cpu", storage="LOCAL")
    world.ready(1)
    world.pilot("p2", "PRAGUE")
    Site.update(state="offline").where(Site.name == "LOCAL").execute()
    assert world.claim() == []
    assert len(world.claim("p2", queue="PRAGUE")) == 1


def test_a_pilot_that_drains_gets_no_further_job(world: World) -> None:
    world.ready(1)
    Pilot.update(draining=True).execute()
    assert world.claim() == []


# -- locality ---------------------------------------------------------------------------------------------------------------


def test_of_equal_jobs_the_one_whose_input_lies_at_the_pilots_site_goes_first(world: World) -> None:
    Site.create(name="PRAGUE")
    Queue.create(name="PRAGUE", site="PRAGUE", resource_type="cpu", storage="LOCAL")
    world.ready(4)
    world.pilot("p2", "PRAGUE")
    Job.update(site="PRAGUE").where(Job.id.in_([3, 4])).execute()
    assert [job.job_id for job in world.claim("p2", queue="PRAGUE", n_jobs=3)] == [3, 4, 1]
    assert [job.job_id for job in world.claim()] == [2]


def test_locality_is_a_preference_and_priority_goes_first(world: World) -> None:
    Site.create(name="PRAGUE")
    world.task("near", n_jobs=1)
    world.task("urgent", n_jobs=1, priority=1)
    world.form()
    world.pilot()
    Job.update(site="LOCAL").where(Job.priority == 0).execute()
    assert tasks_of(world, n_jobs=2) == ["urgent", "near"]


def with_inputs(world: World, n: int, in_cache: Sequence[int], **spec: object) -> str:
    """A task over `n` files; what the cache of a pilot says that has those of these jobs."""
    world.dataset(n)
    world.task(**spec)  # type: ignore[arg-type]
    world.form()
    world.pilot()
    names = []
    for job_nr in in_cache:
        digest = f"{job_nr:032x}"
        file = File.select().join(JobInput).join(Job).where(Job.job_nr == job_nr)
        File.update(checksums=json.dumps({"adler32": "00000000", "md5": digest})).where(
            File.id.in_(file)
        ).execute()
        names.append(cached.name_of("md5", digest, 10, ""))
    return cached.summary(names)


def test_of_equal_jobs_the_one_whose_input_the_node_keeps_goes_first(world: World) -> None:
    told = with_inputs(world, 6, [4, 6])
    assert [job.job_nr for job in world.claim(n_jobs=3, cached=told)] == [4, 6, 1]
    assert [job.job_nr for job in world.claim(n_jobs=3)] == [2, 3, 5]


def test_the_job_that_finds_most_of_its_inputs_goes_first(world: World) -> None:
    world.dataset(6)
    world.task(files_per_job=2)
    world.form()
    world.pilot()
    kept = {"md5": "f" * 32}
    File.update(checksums=json.dumps(kept)).where(File.lfn.in_(["f00001.spd", "f00004.spd"])).execute()
    File.update(checksums=json.dumps(kept), size=10_000).where(File.lfn == "f00004.spd").execute()
    told = cached.summary([cached.name_of("md5", "f" * 32, size, "") for size in (10, 10_000)])
    assert [job.job_nr for job in world.claim(n_jobs=3, cached=told)] == [3, 1, 2]


def test_what_a_node_keeps_is_a_preference_among_the_first_jobs_of_a_class(world: World) -> None:
    told = with_inputs(world, WINDOW + 1, [WINDOW + 1])
    assert [job.job_nr for job in world.claim(cached=told)] == [1]
    assert [job.job_nr for job in world.claim(cached=told)] == [WINDOW + 1]


def test_priority_and_the_same_task_go_before_what_a_node_keeps(world: World) -> None:
    told = with_inputs(world, 2, [2])
    mine = world.task("mine", n_jobs=1)
    world.task("urgent", n_jobs=1, priority=1)
    world.form()
    assert tasks_of(world, n_jobs=4, cached=told, task_id=mine.task_id) == ["urgent", "mine", "t", "t"]


def test_a_pilot_without_a_cache_costs_no_look_at_inputs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_inputs(world, 3, [3])
    ran: list[object] = []
    run = world.core.database.run
    monkeypatch.setattr(
        world.core.database, "run", lambda chain, **values: ran.append(chain) or run(chain, **values)
    )
    assert len(world.claim()) == 1
    assert statements.CLAIM in ran
    assert statements.WINDOW not in ran and statements.READ not in ran


@pytest.mark.parametrize("told", ["A", "AAAA" * 1000, "____"])
def test_any_word_about_a_cache_does_no_harm(told: str, world: World) -> None:
    with_inputs(world, 3, [3])
    assert len(world.claim(cached=told)) == 1


# -- elsewhere --------------------------------------------------------------------------------------------------------------


def test_a_job_that_failed_by_its_nodes_fault_is_retried_elsewhere(world: World) -> None:
    world.ready(1)
    world.fail(world.claim(node="bad")[0], "NO_LOCAL_SPACE")
    assert world.claim(node="bad") == []
    assert len(world.claim(node="good")) == 1


def test_and_comes_back_when_there_is_no_other_node_for_long(world: World) -> None:
    world.ready(1)
    world.fail(world.claim(node="bad")[0], "NO_LOCAL_SPACE")
    world.pass_seconds(601)
    assert len(world.claim(node="bad")) == 1


def test_f16_a_job_that_kills_its_pilots_is_stopped_and_others_of_these_pilots_complete(world: World) -> None:
    world.ready(2)
    for number in range(1, 4):
        world.pilot(f"victim{number}")
        jobs = world.claim(f"victim{number}", n_jobs=2)
        killer = next(job for job in jobs if job.job_id == 1)
        for job in jobs:
            world.say(job, S.RUNNING if job is killer else S.STAGE_IN)
        world.pass_seconds(65)
    assert (world.state(1), world.job(1).error) == (S.FAILED, "KILLS_PILOTS")
    world.pilot("last")
    [other] = world.claim("last", n_jobs=2)
    world.complete(other)
    assert world.state(2) is S.COMPLETED


def test_a_pilot_that_comes_back_in_time_was_not_killed(world: World) -> None:
    world.ready(1)
    for _ in range(5):
        [job] = world.claim()
        world.say(job, S.RUNNING)
        world.pass_seconds(65)
        world.say(job, S.FINISHED)  # a late word keeps the job
        world.fail(job, "KILL_SIGNAL")
    assert world.state() is S.READY
    assert world.job().kills == 0


# -- black holes ------------------------------------------------------------------------------------------------------------


def fail_here(world: World, node: str, n: int, error: str = "PAYLOAD_FAILED") -> int:
    """How many jobs the node got, of `n` that it asked for one after the other and failed at once."""
    got = 0
    for _ in range(n):
        jobs = world.claim(node=node)
        got += len(jobs)
        for job in jobs:
            world.fail(job, error)
    return got


def test_f17_a_node_on_which_jobs_die_at_once_is_put_aside_with_a_reason(world: World) -> None:
    world.ready(100, max_attempts=100)
    assert fail_here(world, "hole", 20, "MKDIR_FAILED") == 5
    node = Node.get()
    assert (node.name, node.set_aside is not None) == ("hole", True)
    assert "5 jobs in a row" in node.reason
    assert len(world.claim(node="good")) == 1


def test_f17_where_the_payload_is_blamed_it_counts_whether_others_do_it_well(world: World) -> None:
    world.ready(100, max_attempts=100)
    [well] = world.claim(node="good")
    fail_here(world, "hole", 1)
    world.complete(well)
    world.complete(world.claim(node="good")[0])
    assert fail_here(world, "hole", 20) == 4
    assert Node.get().set_aside is not None


def test_f17_a_payload_that_fails_everywhere_puts_no_node_aside(world: World) -> None:
    world.ready(30, max_attempts=1)
    assert fail_here(world, "node1", 30) == 30
    assert Node.get().set_aside is None
    assert {world.state(number) for number in range(1, 31)} == {S.FAILED}


def test_f17_a_payload_that_says_it_is_the_node_puts_none_aside(world: World) -> None:
    """Nobody but the payload says so: else a user could close nodes by what he prints."""
    world.ready(30, max_attempts=1, max_losses=0)
    assert fail_here(world, "node1", 20, "PAYLOAD_IO_ERROR") == 20
    assert Node.get().set_aside is None


def test_f17_a_suspect_waits_while_other_nodes_show_whose_fault_it_is(world: World) -> None:
    world.ready(100, max_attempts=100)
    computing.register_pilot(world.core, PilotRegistration("p2", "good", "1.0", queue="CPU"))
    assert fail_here(world, "hole", 20) == 5
    assert Node.get().set_aside is None
    assert [view.state for view in computing.nodes().items] == ["held"]
    world.pass_seconds(61)
    assert [view.state for view in computing.nodes().items] == ["online"]
    assert fail_here(world, "hole", 1) == 1


def test_f17_a_success_between_makes_it_no_row(world: World) -> None:
    world.ready(100, max_attempts=100)
    for _ in range(4):
        fail_here(world, "moody", 4, "MKDIR_FAILED")
        world.complete(world.claim(node="moody")[0])
    assert Node.get().set_aside is None


# -- fair share -------------------------------------------------------------------------------------------------------------


SOAK = bool(os.environ.get("PILOTAGE_SOAK"))
N_SHARED = 10_000 if SOAK else 600


def share_out(cores: list[Core], n_jobs: int) -> Counter[str]:
    """Core-seconds by group of what dispatchers that all claim at once hand out."""
    left = iter(range(n_jobs))
    lock = threading.Lock()

    def work(core: Core) -> None:
        mine = World(core)
        while True:
            with lock:
                number = next(left, None)
                if number is None:
                    return
                if number % 300 == 0:  # the stock of READY jobs is bounded
                    mine.form()
            assert mine.claim(cores=100, request_id=f"{id(core)}-{next(mine._requests)}")

    for future in at_once([lambda core=core: work(core) for core in cores]):
        future.result()
    used: Counter[str] = Counter()
    for attempt in Attempt.select(Attempt.cores, Job.task).join(Job):
        used[attempt.job.task.working_group] += attempt.cores
    return used


@pytest.mark.timeout(3600 if SOAK else 300)
def test_groups_get_their_shares_from_three_dispatchers_that_claim_at_once(world: World) -> None:
    """600 jobs here, 10,000 by `make soak`; backlog in all groups, two sizes of jobs."""
    for name, parent, share in (
        ("spd", None, 60),
        ("theory", None, 40),
        ("reco", "spd", 75),
        ("mc", "spd", 25),
    ):
        WorkingGroup.create(name=name, parent=parent, share=share)
    world.pilot()
    for group, n_cores in (("reco", 1), ("mc", 2), ("theory", 4)):
        world.task(group, n_jobs=N_SHARED + 100, cores=n_cores, working_group=group)
    while world.form():
        pass
    used = share_out([world.core, another_dispatcher(world.core), another_dispatcher(world.core)], N_SHARED)
    total = sum(used.values())
    got = {name: used[name] / total for name in used}
    # A dispatcher knows what the others have given out a second later; of 600 jobs that is a part on a slow machine.
    assert got == pytest.approx({"reco": 0.45, "mc": 0.15, "theory": 0.40}, abs=0.02 if SOAK else 0.05)


def test_what_is_used_long_ago_counts_less(world: World) -> None:
    WorkingGroup.create(name="a", usage=1000.0)
    world.pass_seconds(86_400)
    assert WorkingGroup.get().usage == pytest.approx(500.0)


def test_the_jobs_that_end_tell_what_the_next_ones_of_their_class_will_use(world: World) -> None:
    world.ready(1, cores=8)
    [job] = world.claim(cores=8)
    world.complete(job)
    assert JobClass.get().core_seconds == 480.0
    Attempt.update(extracted_at=Attempt.ended_at - 10.0).execute()
    closer.count(world.core, 1.0)
    assert JobClass.get().core_seconds == pytest.approx(480 * 0.8 + 80 * 0.2)


def test_a_look_at_many_classes_takes_few_statements(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ready(40)
    for nr in range(1, 41):
        needs = Needs(resource_type=ResourceType.CPU, memory_mb=nr % 20)
        Job.update(job_class=broker.class_of(needs).id, priority=nr % 3).where(Job.job_nr == nr).execute()
    statements = []
    execute, run = proxy.obj.execute_sql, world.core.database.run
    monkeypatch.setattr(
        proxy.obj, "execute_sql", lambda *args, **rest: statements.append(args) or execute(*args, **rest)
    )
    monkeypatch.setattr(
        world.core.database, "run", lambda *args, **rest: statements.append(args) or run(*args, **rest)
    )
    lanes = list(
        Broker().lanes(world.core.database, claiming.offer(world.core, world.request(memory_mb=30)), 0.0)
    )
    assert len(statements) < 12
    first = {(row.job_class_id, row.priority): row.ready_nr for row in Job.select().order_by(-Job.ready_nr)}
    assert {(lane.class_id, lane.priority): lane.place + 1 for lane in lanes} == first


def test_pilots_that_choose_among_the_same_jobs_all_get_one(postgres_core: Core) -> None:
    world = World(postgres_core)
    postgres_core.database.write(lambda: Site.create(name="PRAGUE"))
    world.ready(3)
    world.pilot("p2")
    world.claim()  # the first one of a task notes when that began

    def under_way() -> list[int]:
        [first] = world.claim("p1")
        [claimed] = at_once([lambda: world.claim("p2")])
        return [first.job_id, *(job.job_id for job in claimed.result())]

    assert postgres_core.database.write(under_way) == [2, 3]


def test_a_pilot_that_asks_again_and_again_is_noted_once_in_some_seconds(world: World) -> None:
    world.pilot()
    world.claim()
    Pilot.update(last_seen=1.0).execute()
    world.core.recent.forget()
    world.claim()
    assert Pilot.get().last_seen > 1.0
    Pilot.update(last_seen=1.0).execute()
    at = time.monotonic() + 2 * SECONDS
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr("server.recent.time.monotonic", lambda: at)
        world.claim()
        assert Pilot.get().last_seen == 1.0
        clock.setattr("server.recent.time.monotonic", lambda: at + SIGN_OF_LIFE_SECONDS)
        world.claim()
    assert Pilot.get().last_seen > 1.0
