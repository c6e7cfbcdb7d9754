"""The real waiting process: it wakes whom the news is for, outlives clients of every kind, and is started again when it dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from server.waiting import wake
from server.waiting.gate import AT_ONCE_SECONDS, WAKES_PER_CORE
from server.waiting.process import HEAD_SECONDS, LARGEST_HEAD
from tests.integration.server.waiting_process import ANY, LARGE, Process, running
from tests.parked import Parked
from tests.waiting import wait_until


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    # Deeper than the 107 bytes that the kernel takes for the address of a Unix socket.
    directory = tmp_path / ("deep" * 20) / ("deeper" * 10)
    directory.mkdir(parents=True)
    with running(directory) as made:
        yield made


def test_of_200_that_wait_ten_new_jobs_wake_ten_those_that_came_first_and_many_wake_all_in_turn(
    process: Process,
) -> None:
    with Parked(
        f"{process.url}/v1/wait", [process.ticket(f"p{n}", 1 + n % 2 * 7) for n in range(200)]
    ) as parked:
        wait_until(lambda: process.parked() == 200, 10, "200 that wait")
        assert process.tell({ANY: 6, LARGE: 4})
        parked.listen(10, lambda: len(parked.answers) >= 10)
        parked.listen(0.3)
        assert sorted(parked.woken) == [0, 1, 2, 3, 4, 5, 7, 9, 11, 13]
        assert process.parked() == 190
        began = time.monotonic()
        process.tell({ANY: 1000})
        parked.listen(60, lambda: len(parked.woken) == 200)
        assert len(parked.woken) == 200
        slowest = (190 / (WAKES_PER_CORE * len(os.sched_getaffinity(0)))) - AT_ONCE_SECONDS
        assert time.monotonic() - began > 0.9 * slowest, "others are served meanwhile"


def test_the_answer_says_when_the_time_is_over(process: Process) -> None:
    began = time.monotonic()
    assert process.get(f"/v1/wait?ticket={process.ticket('p')}&timeout=1") == (200, {"jobs": False})
    assert 0.9 < time.monotonic() - began < 5
    assert process.parked() == 0


def test_a_pilot_that_goes_away_gives_up_its_place(process: Process) -> None:
    with Parked(f"{process.url}/v1/wait", [process.ticket("gone")]) as gone:
        wait_until(lambda: process.parked() == 1, 10, "one that waits")
        assert len(gone) == 1
    wait_until(lambda: process.parked() == 0, 10, "nobody waits")


def test_a_connection_serves_one_wait_after_the_other(process: Process) -> None:
    with process.connect() as sock:
        for _ in range(3):
            sock.sendall(
                f"GET /v1/wait?ticket={process.ticket('p')}&timeout=0 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            assert sock.recv(10_000).endswith(b'{"jobs":false}\n')


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/v1/wait", 400, "BAD_REQUEST"),
        ("/v1/wait?ticket=made.up", 400, "BAD_REQUEST"),
        (f"/v1/wait?ticket={'a' * 7000}", 400, "BAD_REQUEST"),
        ("/v1/wait?ticket=a.b&timeout=never", 400, "BAD_REQUEST"),
        ("/v1/getJob", 404, "NOT_FOUND"),
    ],
)
def test_b19_who_has_no_ticket_does_not_wait(process: Process, path: str, status: int, error: str) -> None:
    got, body = process.get(path)
    assert (got, body["error"]) == (status, error)
    assert {"code", "text", "detail", "advice"} <= body.keys()


def test_b10_slow_clients_are_sent_away_and_keep_nobody_from_waiting(process: Process) -> None:
    """Each begins a request and never ends it; one drips a byte at a time."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(process.connect()) for _ in range(300)]
        for sock in slow:
            sock.sendall(b"GET /v1/wait HTT")
        slow[0].settimeout(0.2)
        parked = stack.enter_context(Parked(f"{process.url}/v1/wait", [process.ticket("p")]))
        wait_until(lambda: process.parked() == 1, 10, "one that waits")
        process.tell({ANY: 1})
        parked.listen(5)
        assert parked.woken == [0]

        def is_sent_away() -> bool:
            try:
                slow[0].sendall(b"P")
                return slow[0].recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(is_sent_away, HEAD_SECONDS + 5, "the end of the one that drips")
        for sock in slow[1:]:
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01" + b"\x00" * 500 + b"\r\n\r\n",
        b"G" * 100_000,
        b"GET /v1/wait HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
        b"POST /v1/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n" + b"x" * 100_000,
        b"GET /v1/wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"\r\n\r\n" * 10_000,
    ],
)
def test_b11_hostile_bytes_end_their_own_connection_alone(process: Process, data: bytes) -> None:
    with Parked(f"{process.url}/v1/wait", [process.ticket("p")]) as parked:
        with process.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            with contextlib.suppress(ConnectionError):
                while sock.recv(65536):
                    pass
        process.tell({ANY: 1})
        parked.listen(5)
        assert parked.woken == [0]


def test_one_that_waits_and_talks_on_is_sent_away(process: Process) -> None:
    with process.connect() as sock:
        sock.sendall(f"GET /v1/wait?ticket={process.ticket('p')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: process.parked() == 1, 10, "one that waits")
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"x" * (2 * LARGEST_HEAD))
            sock.recv(1)
        wait_until(lambda: process.parked() == 0, 10, "nobody waits")


@pytest.mark.parametrize("data", [b"", b"x", b"{}", b'[{"no class": 1}, "", true]', b"x" * 1_000_000])
def test_news_that_is_none_harms_nobody(process: Process, data: bytes) -> None:
    with Parked(f"{process.url}/v1/wait", [process.ticket("p")]) as parked:
        wait_until(lambda: process.parked() == 1, 10, "one that waits")
        with wake._short(process.directory / wake.SOCKET) as address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(address)
                with contextlib.suppress(ConnectionError):
                    sock.sendall(data)
        process.tell({ANY: 1})
        parked.listen(5)
        assert parked.woken == [0]


def test_one_that_was_killed_is_started_again_and_keeps_port_and_news(process: Process) -> None:
    """Who comes in between waits in the queue of the socket, and so does news."""
    first = process.pid
    with Parked(f"{process.url}/v1/wait", [process.ticket("p")]) as parked:
        wait_until(lambda: process.parked() == 1, 10, "one that waits")
        os.kill(first, signal.SIGKILL)
        parked.listen(5)
        assert [answer.jobs for answer in parked.answers] == [None]
    asked = process.ticket("q")
    assert process.tell({ANY: 1})
    with Parked(f"{process.url}/v1/wait", [asked]) as parked:
        wait_until(lambda: process.kept.keep() or process.pid != first, 10, "another process")
        parked.listen(10)
        assert parked.woken == [0]


def test_at_its_end_those_that_wait_are_answered(process: Process) -> None:
    with Parked(f"{process.url}/v1/wait", [process.ticket(f"p{n}") for n in range(20)]) as parked:
        wait_until(lambda: process.parked() == 20, 10, "20 that wait")
        process.kept.stop()
        parked.listen(5)
        assert [answer.jobs for answer in parked.answers] == [False] * 20
    assert not (process.directory / wake.SOCKET).exists()
    assert not process.tell({ANY: 1})


def test_it_holds_nothing_of_the_server_but_its_sockets(process: Process) -> None:
    process.parked()
    links = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    files = [link for link in links if link.startswith("/") and not link.startswith("/dev/")]
    assert not [link for link in files if str(process.directory) in link]
    sockets = [link for link in links if link.startswith("socket:")]
    assert len(sockets) <= 5  # for pilots, for news, a pair of the loop's own, and the last request
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"PILOTAGE_" not in environment
    assert process.kept.waiting.ticket_key.hex().encode() not in environment


def test_with_a_certificate_it_speaks_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    made.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    with running(tmp_path, certfile=str(certificate), keyfile=str(key)) as process:
        process.tls = ssl.create_default_context()
        authority.configure_trust(process.tls)
        assert process.url.startswith("https:")
        assert process.get(f"/v1/wait?ticket={process.ticket('p')}&timeout=0") == (200, {"jobs": False})
