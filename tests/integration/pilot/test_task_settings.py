"""Settings that a task wants otherwise: they hold for its jobs and no others, and the queue's word is the last."""

from __future__ import annotations

import sys
from typing import Dict, Tuple

from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site

GREEDY = "import time; x = bytearray(150_000_000); time.sleep(600)"
WISHES: Tuple[Tuple[Tuple[str, ...], Dict[str, str], str], ...] = (
    (("sleep", "600"), {"limits.looping_seconds": "1"}, "LOOPING_JOB"),
    ((sys.executable, "-c", GREEDY), {"limits.memory_mb": "80"}, "PAYLOAD_OUT_OF_MEMORY"),
    (("sh", "-c", "while :; do :; done"), {"limits.cpu_seconds": "1"}, "CPU_TIME_EXCEEDED"),
    (("sh", "-c", "head -c 3000000 /dev/zero > big"), {"limits.output_mb": "2"}, "OUTPUT_TOO_LARGE"),
)


def test_a_limit_that_a_task_wants_holds_for_its_jobs_and_for_no_others(
    site: Site, dispatcher: Dispatcher
) -> None:
    numbers = [
        dispatcher.add(
            *command, outputs=["big"] if error == "OUTPUT_TOO_LARGE" else [], pilot_settings=wanted
        )
        for command, wanted, error in WISHES
    ]
    other = dispatcher.add("sh", "-c", "head -c 3000000 /dev/zero > big; sleep 2", outputs=["big"])
    site.run("--slots", "5", "--max-jobs", "5")
    assert [dispatcher.attempt(number).end.error for number in numbers] == [error for *_, error in WISHES]
    assert dispatcher.attempt(other).end.error == ""


def test_what_the_queue_says_stays_and_the_jobs_log_tells_it(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {"limits.looping_seconds": "1"}
    number = dispatcher.add("sleep", "600", pilot_settings={"limits.looping_seconds": "3600"})
    site.run()
    assert dispatcher.attempt(number).end.error == "LOOPING_JOB"
    kept = site.archive(number)
    log = next(text for name, text in kept.items() if name.endswith(".log"))
    assert "the queue says otherwise than the task setting=limits.looping_seconds" in log


def test_what_no_task_may_set_fails_the_job_before_anything_is_done(
    site: Site, dispatcher: Dispatcher
) -> None:
    """The server refuses such tasks; but a server may be newer than its pilots."""
    names = ("limits.stdout_mb", "limits.monitors", "payload.executor", "nothing.at_all", "")
    numbers = [dispatcher.add("touch", str(site.place / "ran"), pilot_settings={name: "1"}) for name in names]
    site.run("--max-jobs", "5")
    ends = [dispatcher.attempt(number).end for number in numbers]
    assert [end.error for end in ends] == ["BAD_SETTINGS"] * 5
    assert all("is not for the task to set" in end.error_detail for end in ends)
    assert not (site.place / "ran").exists()


def test_a_queue_names_the_outbox(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.queue.pilot_settings = {"node_settings.outbox_directory": str(site.place / "kept")}
    site.run("--idle", "0")
    assert (site.place / "kept").is_dir()
    assert not (site.work / "outbox").exists()
