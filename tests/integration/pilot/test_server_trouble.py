"""Servers that lose replies, fail, refuse, hang or are away: no result is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Callable, Optional

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.waiting import wait_until

Reached = Callable[..., None]


def letters(site: Site) -> list:  # type: ignore[type-arg]
    return sorted((site.work / "outbox").glob("*/*.json"))


def test_f07_a_lost_getjob_reply_is_asked_for_again_with_the_same_request(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("true")
    dispatcher.misbehave("getJob", times=3, drop=True, after=True)
    assert site.run() == PilotExit.DONE
    assert len({body["requestId"] for body in dispatcher.bodies("getJob")}) == 1
    assert len(dispatcher.bodies("getJob")) == 4
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_each_new_question_for_a_job_has_an_id_of_its_own(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("true")
    site.run("--idle", "1")
    ids = [body["requestId"] for body in dispatcher.bodies("getJob")]
    assert len(set(ids)) == len(ids) > 2


@pytest.mark.parametrize(
    "how",
    [
        {"drop": True, "after": True},
        {"status": 500},
        {"status": 503},
        {"status": 429},
        {"status": 404, "page": b"<html>default backend"},
        {"status": 409, "page": b"<html>"},
    ],
)
def test_a_word_without_answer_is_said_again_unchanged(how: dict, site: Site, dispatcher: Dispatcher) -> None:  # type: ignore[type-arg]
    number = dispatcher.add("sleep", "0.5")
    dispatcher.misbehave("updateJob", times=4, **how)
    site.run()
    bodies: dict = {}  # type: ignore[type-arg]
    for body in dispatcher.bodies("updateJob"):
        bodies.setdefault(body["seq"], set()).add(json.dumps(body))
    assert all(len(said) == 1 for said in bodies.values()), "a repetition has the same bytes"
    held = dispatcher.attempt(number)
    assert held.states == list(dict.fromkeys(held.states)), "no move arrives twice"
    assert held.state == "COMPLETED"
    assert not letters(site)


def test_the_pilot_waits_as_long_as_the_server_asks(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("true")
    dispatcher.misbehave("getJob", status=503, headers={"Retry-After": "1"})
    site.run()
    first, second = (said.at for said in dispatcher.said if said.verb == "getJob")
    assert second - first >= 1


@pytest.mark.parametrize("how", ["409", "heartbeat"])
def test_f05_an_attempt_that_is_lost_is_stopped_and_nothing_more_is_said(
    how: str, site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    number = dispatcher.add("sleep", f"30{number_of(site)}", outputs=["out"])
    pilot = site.start()
    reached(number, "RUNNING")
    if how == "409":
        dispatcher.misbehave("heartbeat", times=1000, status=500)
        dispatcher.held[number].stop = True
        # The next word of the pilot is the end of the payload.
        os.kill(wait_until(lambda: payload_of(site), what="the payload"), 15)
    else:
        dispatcher.held[number].stop = True
    words = len(dispatcher.bodies("updateJob"))
    assert pilot.wait(10) == PilotExit.DONE
    assert len(dispatcher.bodies("updateJob")) - words == (1 if how == "409" else 0)
    assert dispatcher.attempt(number).state == "RUNNING", "no word of it has changed anything"
    assert not list(dispatcher.storage.rglob("*.tar.gz"))
    assert not letters(site)


def number_of(site: Site) -> int:
    return abs(hash(str(site.place))) % 1_000_000 + 1_000_000


def payload_of(site: Site) -> int:
    wanted = f"sleep\x0030{number_of(site)}\x00".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cmdline").read_bytes() == wanted:
                return int(name)
        except OSError:
            continue
    raise AssertionError("the payload does not run")


def test_an_attempt_that_ended_without_us_is_stopped(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    """The server says FAILED (lease lost), not stop: that is a stop as well."""
    dispatcher.queue.heartbeat_seconds = 1
    number = dispatcher.add("sleep", "300")
    pilot = site.start()
    reached(number, "RUNNING")
    dispatcher.held[number].states.append("FAILED")
    assert pilot.wait(10) == PilotExit.DONE
    assert dispatcher.attempt(number).end is None


def test_heartbeats_name_all_attempts_and_carry_what_the_payload_uses(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    number = dispatcher.add("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 2")
    site.run()
    named = [body["attempts"] for body in dispatcher.bodies("heartbeat")]
    assert named and [each["attemptId"] for each in named[0]] == [number]
    assert (
        named[-1][0]["metrics"]["cpuSeconds" if "cpuSeconds" in named[-1][0]["metrics"] else "cpu_seconds"]
        > 0
    )
    assert {"memory_mb", "disk_mb", "wall_seconds"} <= set(named[-1][0]["metrics"])


def test_the_payload_goes_on_while_the_server_is_away(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    number = dispatcher.add("sh", "-c", "sleep 1; echo done > out", outputs=["out"])
    pilot = site.start()
    reached(number, "RUNNING")
    for verb in ("updateJob", "heartbeat", "getJob"):
        dispatcher.misbehave(verb, times=1000, drop=True)
    wait_until(lambda: letters(site), what="the result in the outbox")
    assert pilot.process.poll() is None
    dispatcher.behave()
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert site.stored(f"out.{number}").read_text() == "done\n"
    assert not letters(site)


def test_a_result_lies_in_a_private_file_that_names_its_server(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    dispatcher.misbehave("updateJob", times=1000, drop=True)
    site.start()
    wait_until(lambda: letters(site), what="the result in the outbox")
    (letter,) = letters(site)
    assert stat.S_IMODE(letter.stat().st_mode) == 0o600
    assert stat.S_IMODE(letter.parent.stat().st_mode) == 0o700
    content = json.loads(letter.read_text())
    assert content["server"] == dispatcher.url
    assert content["word"]["attemptId"] == number


def test_the_next_pilot_delivers_what_a_killed_one_has_left(site: Site, dispatcher: Dispatcher) -> None:
    numbers = [dispatcher.add("true"), dispatcher.add("sh", "-c", "exit 1")]
    dispatcher.misbehave("updateJob", times=10_000, drop=True)
    pilot = site.start("--max-jobs", "2")
    # The failed job leaves two letters: its end, and the log archive that follows it.
    wait_until(lambda: len(letters(site)) == 3, what="all results in the outbox")
    pilot.signal(9)
    pilot.wait()
    dispatcher.behave()
    assert len(letters(site)) == 3, "they survive"
    assert site.run("--idle", "1") == PilotExit.NO_JOBS
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED", "FAILED"]
    assert dispatcher.attempt(numbers[1]).log is not None
    assert [path.name for path in (site.work / "outbox").iterdir()] == []


def test_what_belongs_to_another_server_is_left_alone(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    dispatcher.misbehave("updateJob", times=10_000, drop=True)
    pilot = site.start()
    wait_until(lambda: letters(site), what="the result in the outbox")
    pilot.signal(9)
    pilot.wait()
    dispatcher.behave()
    letter = letters(site)[0]
    letter.write_text(letter.read_text().replace(dispatcher.url, "http://other:1"))
    site.run("--idle", "1")
    assert letters(site) == [letter]
    assert dispatcher.attempt(number).end is None


def test_a_result_that_the_server_rejects_is_not_kept(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("true")
    dispatcher.misbehave("updateJob", times=1)  # passes: OBTAINED or so
    site.start("--max-jobs", "1")
    wait_until(lambda: dispatcher.bodies("updateJob"), what="a first word")
    dispatcher.misbehave("updateJob", times=1000, status=409)
    assert site.pilots[0].wait() == PilotExit.DONE
    assert not letters(site)


def test_outputs_that_the_server_refuses_make_the_job_a_failed_one(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    number = dispatcher.add("sh", "-c", 'until [ -e "$0" ]; do sleep 0.05; done', str(site.place / "go"))
    pilot = site.start()
    reached(number, "RUNNING")
    dispatcher.misbehave("updateJob", times=1, status=400)
    (site.place / "go").touch()
    pilot.wait()
    assert dispatcher.attempt(number).end.error == "OUTPUTS_REFUSED"
    assert not letters(site)


def test_a_refused_token_ends_the_pilot_with_its_own_exit_code(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.token = "another"
    pilot = site.start()
    assert pilot.wait() == PilotExit.NO_CREDENTIALS
    assert not dispatcher.bodies("getJob")
    assert f'advice="the token is the one in {site.token};' in pilot.log


@pytest.mark.parametrize("role", ["admin", None])
def test_a_token_that_is_no_pilots_is_warned_of(
    site: Site, dispatcher: Dispatcher, role: Optional[str]
) -> None:
    dispatcher.queue.token_role = role
    number = dispatcher.add("false")
    pilot = site.start()
    pilot.wait()
    assert ("the token is no pilot's" in pilot.log) == (role == "admin")
    job_id = 1000 + number
    assert f'advice="read its log: pilotage job log {job_id}"' in pilot.log


def test_a_token_that_is_revoked_meanwhile_costs_no_result(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    number = dispatcher.add("sleep", "1")
    pilot = site.start("--max-jobs", "2", PILOTAGE_CONNECTION__GIVE_UP_SECONDS="1")
    reached(number, "RUNNING")
    dispatcher.token = "another"
    assert pilot.wait() == PilotExit.NO_CREDENTIALS
    assert letters(site), "the result is kept"
    dispatcher.token = "pilot-token-of-the-tests"
    site.run("--idle", "1")
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_f25_a_token_that_is_renewed_in_its_file_is_taken_when_the_old_one_is_refused(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    dispatcher.queue.heartbeat_seconds = 0.5
    number = dispatcher.add("sh", "-c", 'until [ -e "$0" ]; do sleep 0.05; done', str(site.place / "go"))
    pilot = site.start()
    reached(number, "RUNNING")
    dispatcher.token = "the-next-one"
    beats = len(dispatcher.bodies("heartbeat"))
    wait_until(lambda: len(dispatcher.bodies("heartbeat")) > beats, 10, "a heartbeat with the old token")
    site.token.write_text("the-next-one")
    (site.place / "go").touch()
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert "the-next-one" not in pilot.log


def test_f19_a_clock_that_jumps_ends_no_payload_and_delays_no_word(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    """The wall clock of the node, two hours back and four forward, while a payload with all limits runs."""
    dispatcher.queue.heartbeat_seconds = 0.5
    clock, folder = site.place / "clock", site.place / "clock.d"
    clock.write_text("0")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import pathlib, time\nreal, file = time.time, pathlib.Path({str(clock)!r})\n"
        "time.time = lambda: real() + float(file.read_text() or 0)\n"
    )
    script = 'until [ -e "$0" ]; do sleep 0.05; done'
    number = dispatcher.add("sh", "-c", script, str(site.place / "go"), walltime_seconds=60)
    pilot = site.start(
        "-l", "600", "--max-jobs", "1", PYTHONPATH=str(folder), PILOTAGE_LIMITS__LOOPING_SECONDS="60"
    )
    reached(number, "RUNNING")
    for offset in (-7200, 7200, 0):
        clock.write_text(str(offset))
        beats = len(dispatcher.bodies("heartbeat"))
        wait_until(lambda: len(dispatcher.bodies("heartbeat")) >= beats + 2, 10, "two more heartbeats")  # noqa: B023
    (site.place / "go").touch()
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_a_pilot_that_never_reaches_a_server_says_so(site: Site) -> None:
    pilot = site.start("-p", "9", url="http://127.0.0.1:8", PILOTAGE_CONNECTION__GIVE_UP_SECONDS="1")
    assert pilot.wait() == PilotExit.SERVER_UNREACHABLE
    assert "127.0.0.1:9" in pilot.log, "-p replaces the port of the address"


@pytest.mark.parametrize("option", ["--lifetime", "--give-up"])
def test_a_pilot_with_a_wrong_address_waits_no_longer_than_it_may(site: Site, option: str) -> None:
    """By default it would wait for ten minutes."""
    pilot = site.start(option, "2", url="http://127.0.0.1:9")
    assert pilot.wait() == PilotExit.SERVER_UNREACHABLE
    assert "is its address right?" in pilot.log
    assert "gives_up_at=" in pilot.log


def test_a_pilot_waits_for_a_server_that_is_only_starting(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    dispatcher.misbehave("registerPilot", times=3, drop=True)
    dispatcher.misbehave("registerPilot", times=2, status=503)
    assert site.run() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_an_idle_pilot_gives_a_silent_server_up(site: Site, dispatcher: Dispatcher) -> None:
    pilot = site.start("--wait", PILOTAGE_CONNECTION__GIVE_UP_SECONDS="1")
    wait_until(lambda: dispatcher.bodies("getJob"), what="the first getJob")
    dispatcher.misbehave("getJob", times=1000, drop=True)
    assert pilot.wait() == PilotExit.SERVER_UNREACHABLE


def test_an_unknown_queue_is_a_wrong_setting(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.misbehave("registerPilot", status=404)
    assert site.run() == PilotExit.BAD_SETTINGS


def test_a_server_that_has_forgotten_the_pilot_is_told_again(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    dispatcher.misbehave("getJob", status=404)
    assert site.run() == PilotExit.DONE
    assert len(dispatcher.bodies("registerPilot")) == 2
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_an_answer_that_is_no_answer_is_borne(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    dispatcher.misbehave("registerPilot", status=200)  # {} instead of a queue
    dispatcher.misbehave("getJob", status=302)
    assert site.run() in (PilotExit.DONE, PilotExit.BAD_SETTINGS)
    assert len(dispatcher.bodies("registerPilot")) == 2
    assert dispatcher.attempt(number).state in ("COMPLETED", "EXTRACTED")


def test_no_result_of_an_attempt_that_was_taken_away_stays_in_the_outbox(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("true")
    dispatcher.misbehave("updateJob", times=99, status=503)
    pilot = site.start()
    wait_until(lambda: letters(site), what="the result in the outbox")
    dispatcher.behave()
    dispatcher.misbehave("updateJob", times=1, status=409)
    assert pilot.wait(30) == PilotExit.DONE
    assert {body["seq"] for body in dispatcher.bodies("updateJob")} == {1}, "its first word was refused"
    assert not letters(site) and "results wait" not in pilot.log


def test_a_server_that_hangs_holds_up_no_heartbeat(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    number = dispatcher.add("sleep", "3")
    pilot = site.start(PILOTAGE_CONNECTION__READ_TIMEOUT_SECONDS="2")
    reached(number, "RUNNING")
    before = len(dispatcher.bodies("heartbeat"))
    dispatcher.misbehave("updateJob", times=1, seconds=4, drop=True)
    assert pilot.wait(30) == PilotExit.DONE
    assert len(dispatcher.bodies("heartbeat")) - before >= 3
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_waits_between_questions_are_spread(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.wait_seconds = 0.3
    site.run("--idle", "3", PILOTAGE_HEARTBEAT__POLL_MAX_SECONDS="0.3")
    times = [said.at for said in dispatcher.said if said.verb == "getJob"]
    waits = [later - earlier for earlier, later in zip(times, times[1:])][:-1]
    assert all(0.26 < wait < 0.6 for wait in waits)
    assert max(waits) - min(waits) > 0.01


def test_the_user_agent_names_version_python_and_machine(site: Site, dispatcher: Dispatcher) -> None:
    import platform

    from protocol import __version__

    site.run("--idle", "0")
    agent = dispatcher.said[0].headers["User-Agent"]
    assert (
        agent
        == f"pilotage-pilot/{__version__} (Python {platform.python_version()}; Linux {platform.machine()})"
    )


def test_connections_are_kept(site: Site, dispatcher: Dispatcher) -> None:
    for _ in range(5):
        dispatcher.add("true")
    started = time.monotonic()
    site.run("--idle", "0")
    assert dispatcher.connections < 5, (
        f"{len(dispatcher.said)} requests in {time.monotonic() - started:.1f} s"
    )
