"""A pilot without a job waits where the server says, is woken, polls where that fails, and ends at once when it has to."""

from __future__ import annotations

import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Dict, Iterator, List

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import PilotProcess, Site
from tests.waiting import wait_until

LONG = {"PILOTAGE_HEARTBEAT__WAITING_SECONDS": "300"}


class Lobby:
    """Where pilots wait: each request is answered with `status` and `body` as soon as the gate is open."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b'{"jobs": true}'
        self.paths: List[str] = []
        self.headers: List[Dict[str, str]] = []
        self.connections = 0
        self.gate = threading.Event()
        lobby = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                lobby.connections += 1

            def do_GET(self) -> None:
                lobby.paths.append(self.path)
                lobby.headers.append(dict(self.headers))
                lobby.gate.wait(60)
                try:
                    self.send_response(lobby.status)
                    self.send_header("Content-Length", str(len(lobby.body)))
                    self.end_headers()
                    self.wfile.write(lobby.body)
                except OSError:
                    pass  # the pilot is gone

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/wait"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def lobby(dispatcher: Dispatcher) -> Iterator[Lobby]:
    made = Lobby()
    dispatcher.wait_url = made.url
    dispatcher.wait_seconds = 300
    yield made
    made.close()


def waits(lobby: Lobby) -> None:
    wait_until(lambda: lobby.paths, what="a pilot that waits")


def ends(pilot: PilotProcess) -> float:
    began = time.monotonic()
    pilot.wait(20)
    return time.monotonic() - began


def test_a_pilot_that_waits_asks_as_soon_as_it_is_told_of_jobs(
    site: Site, dispatcher: Dispatcher, lobby: Lobby
) -> None:
    pilot = site.start(**LONG)
    waits(lobby)
    assert len(dispatcher.bodies("getJob")) == 1
    number = dispatcher.add("true")
    lobby.gate.set()
    assert pilot.wait(20) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert len(dispatcher.bodies("getJob")) == 2


def test_it_shows_its_ticket_and_no_token(site: Site, dispatcher: Dispatcher, lobby: Lobby) -> None:
    """The address comes from the server's answer, and may be another machine's."""
    site.start(**LONG)
    waits(lobby)
    assert lobby.paths[0].startswith("/v1/wait?ticket=the-ticket&timeout=")
    assert 250 < int(lobby.paths[0].rpartition("=")[2]) < 350
    assert "Authorization" not in lobby.headers[0]
    assert dispatcher.token not in str(lobby.headers[0])


def test_it_waits_no_longer_than_it_may_be_idle(site: Site, lobby: Lobby) -> None:
    site.start("--idle", "7", **LONG)
    waits(lobby)
    assert int(lobby.paths[0].rpartition("=")[2]) <= 7


def test_a_time_that_is_over_is_no_news_and_the_connection_is_kept(
    site: Site, dispatcher: Dispatcher, lobby: Lobby
) -> None:
    """It asks, and waits again; with an answer before its time it waits as long as if it polled."""
    dispatcher.wait_seconds = 0.1
    lobby.body = b'{"jobs": false}'
    lobby.gate.set()
    site.start("--wait")
    wait_until(lambda: len(lobby.paths) >= 4, what="some waits")
    times = [said.at for said in dispatcher.said if said.verb == "getJob"]
    pauses = [later - earlier for earlier, later in zip(times, times[1:])]
    assert pauses[0] >= 0.08
    assert pauses[2] >= 0.3
    assert lobby.connections == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error": "BAD_REQUEST", "detail": "ticket"}'),
        (404, b"<html>default backend"),
        (502, b""),
        (200, b""),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"jobs": "yes"}'),
        (200, b"\xff" * 100_000),
        (301, b""),
    ],
)
def test_a_pilot_polls_where_nonsense_is_answered(
    status: int, body: bytes, site: Site, dispatcher: Dispatcher, lobby: Lobby
) -> None:
    lobby.status, lobby.body = status, body
    lobby.gate.set()
    dispatcher.wait_seconds = 0.1
    pilot = site.start()
    waits(lobby)
    wait_until(lambda: len(dispatcher.bodies("getJob")) >= 3, what="a pilot that polls")
    dispatcher.add("true")
    assert pilot.wait(20) == PilotExit.DONE


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1/wait", "nonsense", "http://[", "file:///etc/passwd", "http://h:99999/"]
)
def test_a_pilot_polls_where_nobody_lets_it_wait(url: str, site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.wait_url, dispatcher.wait_seconds = url, 0.1
    pilot = site.start()
    wait_until(lambda: len(dispatcher.bodies("getJob")) >= 3, what="a pilot that polls")
    dispatcher.add("true")
    assert pilot.wait(20) == PilotExit.DONE
    assert "Traceback" not in pilot.log


def test_a_waiting_place_that_is_killed_lets_the_pilot_poll(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.wait_seconds = 0.1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dispatcher.wait_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/wait"
        pilot = site.start(**LONG)
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
    dispatcher.add("true")
    assert pilot.wait(20) == PilotExit.DONE


def test_a_pilot_that_is_woken_in_vain_again_and_again_does_not_storm_the_server(
    site: Site, dispatcher: Dispatcher, lobby: Lobby
) -> None:
    lobby.gate.set()
    site.run("--idle", "3")
    assert 4 <= len(dispatcher.bodies("getJob")) <= 20
    assert 2 <= len(lobby.paths) <= 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pilot_that_waits_ends_at_once_when_it_is_told_to(site: Site, lobby: Lobby, number: int) -> None:
    pilot = site.start("--wait", **LONG)
    waits(lobby)
    pilot.signal(number)
    assert ends(pilot) < 3


def test_a_pilot_that_waits_ends_when_its_lifetime_does(site: Site, lobby: Lobby) -> None:
    pilot = site.start("--wait", "--lifetime", "4", **LONG)
    waits(lobby)
    lobby.body = b'{"jobs": false}'
    wait_until(lambda: pilot.process.poll() is not None, 20, "its end")
    assert "lifetime is over" in pilot.log


def test_a_pilot_that_is_drained_asks_for_no_further_job(
    site: Site, dispatcher: Dispatcher, lobby: Lobby
) -> None:
    dispatcher.drain = True
    assert site.run("--wait") == PilotExit.NO_JOBS
    assert len(dispatcher.bodies("getJob")) == 1
    assert not lobby.paths


def test_a_pilot_that_waits_is_drained_by_the_answer_to_its_heartbeat(
    site: Site, dispatcher: Dispatcher, lobby: Lobby
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    pilot = site.start("--wait", **LONG)
    waits(lobby)
    assert pilot.process.poll() is None
    dispatcher.drain = True
    assert pilot.wait(20) == PilotExit.NO_JOBS


def test_a_pilot_that_is_to_be_replaced_finishes_its_job_and_ends_with_the_code_that_says_so(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    go = site.place / "go"
    number = dispatcher.add("sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done")
    pilot = site.start("--wait")
    reached(number, "RUNNING")
    dispatcher.drain = dispatcher.update = True
    wait_until(lambda: "wants this pilot to take no further job" in pilot.log, 10, "the word")
    go.touch()
    assert pilot.wait(20) == PilotExit.UPDATE
    reached(number, "COMPLETED")
    [end] = dispatcher.bodies("endPilot")
    assert (end["exitCode"], end["reason"]) == (
        84,
        "an operator wants the server's present pilot in its place",
    )


def test_a_pilot_that_was_to_run_one_job_is_not_replaced(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.drain = dispatcher.update = True
    assert site.run("--max-jobs", "1") == PilotExit.NO_JOBS


def test_a_pilot_in_anothers_place_has_what_is_left_of_the_lifetime(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("true")
    site.run("--wait", "--lifetime", "1003", PILOTAGE_LIMITS__RUN_BEFORE_SECONDS="1000")
    assert dispatcher.bodies("getJob")[0]["walltimeSeconds"] <= 3


def test_a_pilot_of_an_old_server_polls_and_less_often_the_longer_there_is_no_job(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.wait_seconds = 0.1
    site.run(
        "--idle", "4", PILOTAGE_HEARTBEAT__POLL_MAX_SECONDS="0.8", PILOTAGE_HEARTBEAT__JITTER_PERCENT="10"
    )
    times = [said.at for said in dispatcher.said if said.verb == "getJob"]
    pauses = [later - earlier for earlier, later in zip(times, times[1:])]
    assert all(pause >= 0.89 * least for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8)))
    assert max(pauses) < 1.5
