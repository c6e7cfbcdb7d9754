"""Pre-, co- and post-processes with real pilots: their order, their text, their time-outs, and that none of them is left."""

from __future__ import annotations

from typing import Any, List

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import Step, StepKind
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.waiting import wait_until

PRE, CO, POST = StepKind.PRE, StepKind.CO, StepKind.POST


def shell(kind: StepKind, script: str, **fields: Any) -> Step:
    return Step(kind, ["sh", "-c", script], **fields)


def error_of(dispatcher: Dispatcher, number: int) -> List[str]:
    end = dispatcher.attempt(number).end
    assert end is not None
    return [end.error, end.error_detail]


def test_steps_run_in_their_order_with_the_files_of_the_payload_and_their_own_environment(
    site: Site, dispatcher: Dispatcher
) -> None:
    steps = [
        shell(POST, "cat {input} >> {output}; echo $PILOTAGE_STEP >> {output}", name="tidy-up"),
        shell(
            PRE,
            "cat {input} > {workdir}/first; echo $WHO $COMMON >> first",
            environment={"WHO": "pre {job_nr}"},
        ),
        shell(PRE, "echo second >> first"),
    ]
    file = site.input("in.txt", b"input\n")
    number = dispatcher.add(
        "sh", "-c", 'cat first > "$0"; echo payload $WHO $PILOTAGE_STEP >> "$0"', "{output}",
        inputs=[file], outputs=["out"], steps=steps, environment={"COMMON": "same"},
    )  # fmt: skip
    assert site.run() == PilotExit.DONE
    assert site.stored(f"out.{number}").read_text().splitlines() == [
        "input", f"pre {number} same", "second", "payload", "input", "tidy-up"
    ]  # fmt: skip
    states = dispatcher.attempt(number).states
    assert states.index("STAGE-IN") < states.index("RUNNING") < states.index("POST-PROCESSING")


FAILING = {
    "a pre-process that fails": (
        [shell(PRE, "echo no luck >&2; exit 3")],
        "PREPROCESS_FAILED",
        "pre-1: exit code 3; its last words: no luck",
    ),
    "the second pre-process, killed": ([shell(PRE, ":"), shell(PRE, "kill -9 $$")], "PREPROCESS_FAILED", "pre-2: signal 9 (SIGKILL)"),
    "a pre-process that takes too long": (
        [shell(PRE, "trap '' TERM; sleep 600 & wait; sleep 600", timeout_seconds=1)],
        "PREPROCESS_FAILED",
        "pre-1 did not end within 1 s",
    ),
    "a post-process": ([shell(POST, "exit 4", name="check")], "POSTPROCESS_FAILED", "check: exit code 4"),
    "a co-process that gives up": ([shell(CO, "exit 5")], "COPROCESS_FAILED", "co-1: exit code 5"),
    "a program that is not there": ([Step(POST, ["no-such-program"])], "TRANSFORM_NOT_FOUND", "no-such-program"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAILING)
def test_a_step_that_fails_fails_the_job_with_an_error_of_its_own(
    what: str, site: Site, dispatcher: Dispatcher
) -> None:
    steps, error, detail = FAILING[what]
    payload = "sleep 600" if "co-process" in what else "touch ran"
    number = dispatcher.add("sh", "-c", payload, steps=steps)
    site.run(PILOTAGE_LIMITS__KILL_GRACE_SECONDS="0.5")
    name, said = error_of(dispatcher, number)
    assert (name, detail in said) == (error, True), said
    assert not site.processes()


def test_the_text_of_steps_is_kept_with_the_log(site: Site, dispatcher: Dispatcher) -> None:
    steps = [
        shell(PRE, "echo of pre"),
        shell(CO, "echo of co >&2", name="service"),
        shell(POST, "echo of post"),
    ]
    number = dispatcher.add("sh", "-c", "until grep -q of service.stderr; do sleep 0.05; done", steps=steps)
    assert site.run() == PilotExit.DONE
    kept = site.archive(number)
    assert (kept["pre-1.stdout"], kept["service.stderr"], kept["post-1.stdout"]) == (
        "of pre\n",
        "of co\n",
        "of post\n",
    )


def test_a_co_process_is_there_before_the_payload_and_ended_with_it(
    site: Site, dispatcher: Dispatcher
) -> None:
    """It hears SIGTERM, and may tidy up; that it is told to end is no failure."""
    service = "trap 'echo tidy > tidied; exit 1' TERM; touch serving; while :; do sleep 0.05; done"
    number = dispatcher.add(
        "sh", "-c", "until test -e serving; do sleep 0.05; done", outputs=["tidied"],
        steps=[shell(CO, service), shell(POST, "test -e tidied")],
    )  # fmt: skip
    assert site.run() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert not site.processes()


@pytest.mark.parametrize("kind", list(StepKind))
def test_f21_a_job_that_is_cancelled_while_a_step_runs_leaves_no_process(
    kind: StepKind, site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add(
        "sh", "-c", "sleep 600" if kind is CO else ":",
        steps=[shell(kind, "trap '' TERM; setsid sleep 600 & touch {workdir}/there; wait; sleep 600")],
    )  # fmt: skip
    dispatcher.queue.heartbeat_seconds = 1
    pilot = site.start(PILOTAGE_LIMITS__KILL_GRACE_SECONDS="0.3")
    wait_until(lambda: list(site.work.glob("pilot-*/job-*/there")), 15, "the step")
    dispatcher.attempt(number).stop = True
    assert pilot.wait() == PilotExit.DONE
    assert not site.processes()


def test_a_step_that_prints_without_end_fills_no_disk_and_goes_on(site: Site, dispatcher: Dispatcher) -> None:
    """A service may talk; what is beyond the limit is thrown away."""
    number = dispatcher.add(
        "sh", "-c", "wc -c < talk.stdout > size",
        outputs=["size"], steps=[shell(PRE, "yes | head -c 9000000", name="talk")],
    )  # fmt: skip
    assert site.run(PILOTAGE_LIMITS__STDOUT_MB="1") == PilotExit.DONE
    assert 1_000_000 < int(site.stored(f"size.{number}").read_text()) < 1_300_000


UTILITIES = """
[payload]
utilities = cache, broken
[utility:cache]
command = sh -c 'touch serving; echo $PILOTAGE_STEP on duty; sleep 600'
[utility:broken]
command = sh -c 'exit 1'
"""


def test_117_services_of_the_queue_run_beside_each_payload_and_their_failure_is_not_the_jobs(
    site: Site, dispatcher: Dispatcher
) -> None:
    (site.place / "queue.ini").write_text(UTILITIES)
    number = dispatcher.add("sh", "-c", "until grep -q duty cache.stdout; do sleep 0.05; done")
    assert site.run("--config", str(site.place / "queue.ini"), "--max-jobs", "1") == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert "cache on duty" in site.archive(number)["cache.stdout"]
    assert not site.processes()


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("", "a command"),
        ("[utility:cache]\ncommand = '", "a command"),
        ("[utility:cache]\ncomand = x", "no key comand"),
    ],
)
def test_a_service_that_is_not_described_ends_the_pilot_at_its_start(
    section: str, reason: str, site: Site, dispatcher: Dispatcher
) -> None:
    (site.place / "queue.ini").write_text(f"[payload]\nutilities = cache\n{section}\n")
    dispatcher.add("true")
    assert site.run("--config", str(site.place / "queue.ini"), "--max-jobs", "1") == PilotExit.BAD_SETTINGS
    assert reason in site.pilots[-1].log
    assert not dispatcher.held
