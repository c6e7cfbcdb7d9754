"""Queues, nodes and pilots as the operator and the pilots themselves name them: what registering twice, or at once, does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.errors import PilotageError
from protocol.messages.pilots import CacheReport, GpuKind, Heartbeat, PilotEnd, PilotRegistration
from protocol.messages.requests import QueueSpec
from protocol.resources import ResourceType
from server import computing, job_executor, job_manager
from server.models import Pilot
from tests.integration.server.world import World, at_once


def test_f08_a_first_word_that_comes_several_times_at_once_is_taken_each_time(world: World) -> None:
    for number in range(10):
        word = PilotRegistration(f"p-{number}", "node1", "1.0", queue="CPU")
        for future in at_once([lambda word=word: computing.register_pilot(world.core, word)] * 4):
            assert future.result().name == "CPU"
    assert Pilot.select().where(Pilot.pilot_id.startswith("p-")).count() == 10


def test_a_pilot_that_registers_again_is_known_with_what_it_has_now(world: World) -> None:
    for cores in (4, 8):
        word = PilotRegistration("p1", "node1", "1.0", queue="CPU", cores=cores)
        computing.register_pilot(world.core, word)
        Pilot.update(ended=1.0).execute()
    computing.register_pilot(world.core, word)
    row = Pilot.get(Pilot.pilot_id == "p1")
    assert (row.cores, row.ended) == (8, None)
    assert row.first_seen < row.last_seen


def test_a_name_that_a_pilot_on_another_node_has_is_refused(world: World) -> None:
    computing.register_pilot(world.core, PilotRegistration("p1", "node1", "1.0", queue="CPU"))
    with pytest.raises(PilotageError, match="p1 is registered from another node"):
        computing.register_pilot(world.core, PilotRegistration("p1", "node2", "2.0", queue="CPU"))
    assert Pilot.get(Pilot.pilot_id == "p1").version == "1.0"


def test_a_pilot_in_a_batch_job_is_shown_with_that_job(world: World) -> None:
    word = PilotRegistration("p1", "n1", "1.0", queue="CPU", batch_system="slurm", batch_id="4711_3")
    computing.register_pilot(world.core, word)
    view = job_manager.pilot("p1")
    assert (view.batch_system, view.batch_id) == ("slurm", "4711_3")


def test_a_pilot_is_shown_with_the_models_of_its_gpus(world: World) -> None:
    kinds = [GpuKind("NVIDIA A100\x1b[2J", 2, 81_920), GpuKind(count=1)]
    word = PilotRegistration("p1", "n1", "1.0", ResourceType.GPU, "GPU", gpus=3, gpu_kinds=kinds)
    computing.register_pilot(world.core, word)
    view = job_manager.pilot("p1")
    assert view.gpu_kinds == [GpuKind("NVIDIA A100\\x1b[2J", 2, 81_920), GpuKind("", 1, 0)]
    computing.register_pilot(world.core, replace(word, gpus=0, gpu_kinds=[]))
    assert job_manager.pilot("p1").gpu_kinds == []


def test_a_pilot_is_shown_with_what_it_told_last_of_the_inputs_that_it_keeps(world: World) -> None:
    world.pilot()
    assert job_manager.pilot("p1").cache is None
    first = CacheReport(hits=1, misses=2, hit_bytes=2**40, n_files=2)
    job_executor.heartbeat(world.core, Heartbeat("p1", cache=first))
    job_executor.heartbeat(world.core, Heartbeat("p1"))
    assert job_manager.pilot("p1").cache == first
    last = replace(first, hits=5)
    computing.end_pilot(world.core, PilotEnd("p1", 0, cache=last))
    assert job_manager.pilot("p1").cache == last


def test_a_pilot_is_told_what_its_queue_wants_otherwise(world: World) -> None:
    wanted = {"validation.tools": "apptainer, git", "limits.walltime_margin_seconds": "600"}
    made = computing.create_queue(world.core, QueueSpec("PICKY", pilot_settings=wanted))
    assert made.pilot_settings == wanted
    word = PilotRegistration("p1", "n1", "1.0", queue="PICKY")
    assert computing.register_pilot(world.core, word).pilot_settings == wanted
    plain = PilotRegistration("p2", "n1", "1.0", queue="CPU")
    assert computing.register_pilot(world.core, plain).pilot_settings == {}


@pytest.mark.parametrize("name", ["tools", "Validation.tools", "validation.", "a.b.c", "", "x y.z"])
def test_a_setting_of_pilots_without_section_and_key_is_refused(name: str, world: World) -> None:
    with pytest.raises(PilotageError, match="is not for a queue to set"):
        computing.create_queue(world.core, QueueSpec("PICKY", pilot_settings={name: "1"}))
