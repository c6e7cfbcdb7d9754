"""158, 180: payloads over an allocation of a real Slurm, started by srun from a real pilot."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Dict, Iterator

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import Step, StepKind
from tests import slurm
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.users import place_for_all
from tests.waiting import wait_until

pytestmark = pytest.mark.component("slurm")


@pytest.fixture(scope="module")
def allocation() -> Iterator[Dict[str, str]]:
    with place_for_all() as place, slurm.running(place) as environment:
        yield {**environment, "PILOTAGE_PAYLOAD__EXECUTOR": "srun", "PILOTAGE_PAYLOAD__RANKS": "3"}


def test_180_a_payload_runs_as_ranks_of_the_allocation_and_its_steps_once(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add(
        "sh", "-c", 'echo "$GREETING $SLURM_PROCID of $SLURM_NTASKS in $PWD on $(hostname)"', environment={"GREETING": "rank"},
        steps=[Step(StepKind.PRE, ["sh", "-c", "echo once"])],
    )  # fmt: skip
    assert site.run(**allocation) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    kept = site.archive(number)
    lines = sorted(kept["payload.stdout"].splitlines())
    ranks, places, nodes = zip(*(re.split(" in | on ", line) for line in lines))
    assert list(ranks) == [f"rank {rank} of 3" for rank in range(3)]
    assert {Path(place).name for place in places} == {f"job-{1000 + number}-1"}
    assert set(nodes) == {"node1", "node2"}, "over all nodes of the allocation"
    assert kept["pre-1.stdout"] == "once\n"


def test_180_without_a_number_of_ranks_there_is_one_on_each_node(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", "echo $SLURM_PROCID $(hostname)", cores=2)
    assert site.run(**{**allocation, "PILOTAGE_PAYLOAD__RANKS": "0"}) == PilotExit.DONE
    assert sorted(site.archive(number)["payload.stdout"].splitlines()) == ["0 node1", "1 node2"]


@pytest.mark.component("mpiexec")
def test_180_mpiexec_starts_its_ranks_on_all_nodes_of_the_allocation(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    """A real Open MPI, which starts its daemons by srun."""
    number = dispatcher.add(
        "sh", "-c", 'echo "$OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE on $(hostname)"', cores=4,
        environment={"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        steps=[Step(StepKind.PRE, ["sh", "-c", "echo once"])],
    )  # fmt: skip
    settings = {"PILOTAGE_PAYLOAD__EXECUTOR": "mpiexec", "PILOTAGE_PAYLOAD__RANKS": "0"}
    assert site.run(**{**allocation, **settings}) == PilotExit.DONE
    kept = site.archive(number)
    assert dispatcher.attempt(number).state == "COMPLETED", kept
    lines = sorted(kept["payload.stdout"].splitlines())
    assert lines == [f"{rank} of 4 on node{1 + rank // 2}" for rank in range(4)]
    assert kept["pre-1.stdout"] == "once\n"


@pytest.mark.component("mpiexec")
def test_180_an_mpi_rank_that_fails_ends_the_others_on_both_nodes(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add(
        "sh", "-c", "test $OMPI_COMM_WORLD_RANK != 3 || exit 9; exec sleep 603", cores=4,
        environment={"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    )  # fmt: skip
    settings = {"PILOTAGE_PAYLOAD__EXECUTOR": "mpiexec", "PILOTAGE_PAYLOAD__RANKS": "0"}
    assert site.run(**{**allocation, **settings}) == PilotExit.DONE
    end = dispatcher.attempt(number).end
    assert end is not None and end.exit_code == 9
    wait_until(lambda: not ranks(), 10, "the other ranks to end")


def test_a_rank_that_fails_ends_the_others_and_the_job(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", "test $SLURM_PROCID != 1 || exit 9; exec sleep 603")
    assert site.run(**allocation) == PilotExit.DONE
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "PAYLOAD_FAILED"
    assert "task 1: Exited with exit code 9" in end.error_detail, "srun's own code is the highest of all"
    wait_until(lambda: not ranks(), 10, "the other ranks to end")


def test_f18_ranks_that_ignore_sigterm_are_gone_with_their_payload(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", "trap '' TERM; sleep 603; sleep 603", walltime_seconds=3)
    assert site.run(**allocation, PILOTAGE_LIMITS__KILL_GRACE_SECONDS="1") == PilotExit.DONE
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "WALLTIME_EXCEEDED"
    wait_until(lambda: not ranks(), 15, "the ranks to end")


def test_a_step_that_slurm_refuses_is_no_fault_of_the_payload(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("true", cores=100)
    site.run(**allocation)
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "STEP_NOT_STARTED", end


def ranks() -> list[str]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cmdline").read_bytes() == b"sleep\x00603\x00":
                found.append(name)
        except OSError:
            continue
    return found


def test_170_the_memory_of_ranks_that_srun_has_started_on_this_node_is_reported(
    allocation: Dict[str, str], site: Site, dispatcher: Dispatcher
) -> None:
    work = "import os, time; x = bytearray((1 + int(os.environ['SLURM_PROCID'])) * 30_000_000); time.sleep(3)"
    number = dispatcher.add(sys.executable, "-c", work)
    assert site.run(**allocation) == PilotExit.DONE
    report = json.loads(site.archive(number)["jobReport.json"])["memory_monitor"]
    assert report["ranks"]["0"]["peak_mb"] > 30
    assert any(name.startswith("srun ") for name in report["processes"])
