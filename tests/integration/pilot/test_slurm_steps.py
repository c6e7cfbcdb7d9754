"""158, 180: payloads over an allocation of a real Slurm, started by srun from a real pilot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterator

import pytest

from protocol.errors import PilotExit
from protocol.messages import Step, StepKind
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
        "sh", "-c", 'echo "$GREETING $SLURM_PROCID of $SLURM_NTASKS in $PWD"', environment={"GREETING": "rank"},
        steps=[Step(StepKind.PRE, ["sh", "-c", "echo once"])],
    )  # fmt: skip
    assert site.run(**allocation) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    kept = site.archive(number)
    lines = sorted(kept["payload.stdout"].splitlines())
    assert [line.split(" in ")[0] for line in lines] == [f"rank {rank} of 3" for rank in range(3)]
    assert {Path(line.split(" in ")[1]).name for line in lines} == {f"job-{1000 + number}-1"}
    assert kept["pre-1.stdout"] == "once\n"


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
