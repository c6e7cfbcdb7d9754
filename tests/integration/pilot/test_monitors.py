"""The job monitor with real pilots: limits, looping payloads, several payloads at a time, and that a short one costs nothing."""

from __future__ import annotations

import sys
from typing import Any, Dict, Tuple

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import JobSpec
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.waiting import wait_until

GREEDY = "import time; x = bytearray(150_000_000); time.sleep(600)"
BUSY = "while :; do :; done"

LIMITS: Dict[str, Tuple[Tuple[str, ...], Dict[str, Any], Dict[str, str], str]] = {
    "memory asked for": ((sys.executable, "-c", GREEDY), {"memory_mb": 60}, {}, "PAYLOAD_MEMORY_LIMIT"),
    "memory of the queue": ((sys.executable, "-c", GREEDY), {}, {"MEMORY_MB": "80"}, "PAYLOAD_OUT_OF_MEMORY"),
    "CPU time": (("sh", "-c", BUSY), {}, {"CPU_SECONDS": "1"}, "CPU_TIME_EXCEEDED"),
    "an output": (("sh", "-c", "head -c 3000000 /dev/zero > big; sleep 600"), {}, {"OUTPUT_MB": "2"}, "OUTPUT_TOO_LARGE"),
    "the node's disk": (("sh", "-c", "while :; do echo more >> grows; sleep 0.01; done"), {}, {"FULL_DISK_MB": "999000000"}, "NO_LOCAL_SPACE"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIMITS)
def test_f16_a_payload_that_takes_too_much_is_ended_with_an_error_of_its_own_and_its_pilot_works_on(
    what: str, site: Site, dispatcher: Dispatcher
) -> None:
    command, fields, limits, error = LIMITS[what]
    bad = dispatcher.add(*command, outputs=["big"] if what == "an output" else [], **fields)
    good = dispatcher.add("true")
    code = site.run(
        "--max-jobs", "2", **{f"PILOTAGE_LIMITS__{name}": value for name, value in limits.items()}
    )
    assert code == PilotExit.DONE
    end = dispatcher.attempt(bad).end
    assert end is not None and end.error == error
    assert dispatcher.attempt(good).state == "COMPLETED"


def test_f18_a_looping_payload_is_looked_into_before_it_is_ended(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("sh", "-c", "exec 7> kept-open; exec sleep 600")
    site.run(PILOTAGE_LIMITS__LOOPING_SECONDS="1")
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "LOOPING_JOB"
    found = site.archive(number)["payload.diagnosis"]
    assert "sleep 600" in found and "sleeping in" in found and "7 -> " in found and "stack of" in found


def test_f18_a_payload_that_does_not_hear_sigterm_holds_up_no_look_at_another(
    site: Site, dispatcher: Dispatcher
) -> None:
    deaf = dispatcher.add("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", walltime_seconds=1)
    other = dispatcher.add("sleep", "600", walltime_seconds=2)
    code = site.run("--slots", "2", "--max-jobs", "2", PILOTAGE_LIMITS__KILL_GRACE_SECONDS="6")
    assert code == PilotExit.DONE
    times = [dispatcher.attempt(number).times["FAILED"] for number in (deaf, other)]
    assert times[1] < times[0], "the other one was ended while the first had its grace"


def test_177_the_numbers_of_a_running_payload_travel_with_heartbeats(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    dispatcher.add("sh", "-c", "echo text; sleep 600")
    site.start(PILOTAGE_LIMITS__SAMPLE_SECONDS="0.1")

    def told() -> Dict[str, float]:
        said = [each for body in dispatcher.bodies("heartbeat") for each in body["attempts"]]
        return next((each["metrics"] for each in reversed(said) if each.get("metrics")), {})

    wait_until(told, 15, "numbers")
    wanted = {"wall_seconds", "cpu_seconds", "memory_mb", "disk_mb", "text_mb", "processes", "free_disk_mb"}
    assert wanted <= set(told())
    assert told()["processes"] == 2


def test_f16_should_the_node_run_out_of_memory_the_kernel_ends_the_payload_before_its_pilot(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", "sleep 0.2; cat /proc/self/oom_score_adj")
    site.run()
    assert site.archive(number)["payload.stdout"] == "1000\n"


def test_a_payload_that_ends_before_the_first_look_is_not_looked_at(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("true")
    site.run(PILOTAGE_LIMITS__SAMPLE_SECONDS="60")
    end = dispatcher.attempt(number).end
    assert end is not None and set(end.metrics) == {"wall_seconds", "cpu_seconds", "memory_peak_mb"}


def test_a_monitor_that_is_off_ends_nobody_and_an_unknown_one_ends_the_pilot_at_its_start(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.pilot_settings = {"limits.monitors": "walltime", "limits.looping_seconds": "1"}
    number = dispatcher.add("sleep", "2")
    assert site.run() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    dispatcher.queue.pilot_settings = {"limits.monitors": "walltime, nope"}
    dispatcher.add("true")
    assert site.run() == PilotExit.BAD_SETTINGS
    assert "no monitor nope" in site.pilots[-1].log


MONITOR = """
from pilot.plugins.monitors.base import Monitor as Base
from protocol.errors import PilotageError

class Monitor(Base):
    def sample(self, look):
        return {"temperature_c": 90.0}

    def verdict(self, look):
        return PilotageError("NODE_UNFIT", "too hot") if look.wall_seconds > 0.5 else None
"""


def test_a_monitor_from_an_installed_package_is_found_by_its_name(site: Site, dispatcher: Dispatcher) -> None:
    place = site.place / "packages"
    (place / "hot-1.dist-info").mkdir(parents=True)
    (place / "hotmonitor.py").write_text(MONITOR)
    (place / "hot-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hot\nVersion: 1\n")
    (place / "hot-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.monitors]\nhot = hotmonitor:Monitor\n"
    )
    number = dispatcher.add("sleep", "600")
    site.run(PYTHONPATH=str(place), PILOTAGE_LIMITS__MONITORS="walltime, hot")
    end = dispatcher.attempt(number).end
    assert end is not None
    assert (end.error, end.metrics["temperature_c"]) == ("NODE_UNFIT", 90.0)


def test_136_a_pilot_drains_before_its_lifetime_ends(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {"limits.drain_seconds": "58"}
    first, second = dispatcher.add("sleep", "2.5"), dispatcher.add("true")
    assert site.run("-l", "60", "--wait") == PilotExit.DONE
    assert dispatcher.attempt(first).state == "COMPLETED"
    waiting: JobSpec = dispatcher.waiting[0]
    assert waiting.attempt_id == second
