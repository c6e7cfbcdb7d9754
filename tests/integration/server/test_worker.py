"""Slow clients, and bytes that two readers could take for two things, against the worker class: by TCP and by TLS."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.integration.server import worker_process
from tests.running_server import ROOT, RunningServer, environment
from tests.waiting import wait_until

SLOW = 200
SOON = 5.0
"""Seconds within which somebody else is answered; if each of the slow ones held a thread for its time, it would be 25."""
LATE = 10.0


class Process:
    """A worker with short limits."""

    def __init__(self, directory: Path, authority: trustme.CA | None) -> None:
        self._context: ssl.SSLContext | None = None
        pair: list[str] = []
        if authority is not None:
            issued = authority.issue_cert("127.0.0.1")
            pair = [str(directory / name) for name in ("certificate.pem", "key.pem")]
            Path(pair[0]).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(pair[1])
            self._context = ssl.create_default_context()
            authority.configure_trust(self._context)
        port = directory / "port"
        self.popen = subprocess.Popen(
            [sys.executable, "-m", worker_process.__name__, str(port), *pair],
            cwd=ROOT,
            env=environment(directory),
        )
        self._port = int(wait_until(lambda: port.exists() and port.read_text(), 20, "the worker"))
        wait_until(lambda: self.get("/"), 20, "its first answer")

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), 30)

    def connect(self) -> socket.socket:
        if self._context is None:
            return self.raw()
        return self._context.wrap_socket(self.raw(), server_hostname="127.0.0.1")

    def get(self, path: str) -> bytes:
        return self.say(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    def say(self, data: bytes) -> bytes:
        """All that comes back until the connection is closed."""
        with self.connect() as sock:
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                sock.sendall(data)
            return everything(sock)

    def answers_soon(self) -> None:
        for _ in range(5):
            began = time.monotonic()
            assert self.get("/").endswith(b"ok")
            assert time.monotonic() - began < SOON


def everything(sock: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module", params=["tcp", "tls"])
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    authority = trustme.CA() if request.param == "tls" else None
    process = Process(tmp_path_factory.mktemp("worker"), authority)
    yield process
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(20) == 0, "it ends in order, whatever its clients do"


HEADS = {
    "nothing": b"",
    "half a line": b"GET /half HT",
    "half the headers": b"GET / HTTP/1.1\r\nHost: x\r\nX-",
    "a byte of TLS": b"\x16",
}


@pytest.mark.parametrize("what", HEADS)
def test_b10_many_that_never_end_a_head_keep_nobody_waiting(process: Process, what: str) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(process.raw()) for _ in range(SLOW)]
        for sock in slow:
            sock.sendall(HEADS[what])
        process.answers_soon()
        for sock in slow:
            everything(sock)  # each of them is sent away in the end
    process.answers_soon()


def test_b10_one_that_drips_its_head_byte_by_byte_is_sent_away(process: Process) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(process.connect()) for _ in range(20)]
        left = set(slow)

        def drip() -> bool:
            for sock in list(left):
                try:
                    sock.sendall(b"G")
                except OSError:  # TLS has an error of its own for it
                    left.remove(sock)
            return not left

        wait_until(drip, LATE, "the end of all that drip", 0.1)
    process.answers_soon()


def test_a_head_in_many_pieces_is_understood_if_it_comes_in_time(process: Process) -> None:
    with process.connect() as sock:
        for _ in range(2):  # and the next one on the same connection
            for byte in b"GET / HTTP/1.1\r\nHost: x\r\n\r\n":
                sock.sendall(bytes([byte]))
            answer = b""
            while not answer.endswith(b"ok"):
                answer += sock.recv(65536)


def test_several_requests_in_one_piece_are_answered_one_after_the_other(process: Process) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert process.say(request * 3 + last).count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("head", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", [b"/body", b"/", b"/lines"])
def test_b10_many_that_never_end_a_body_are_sent_away(process: Process, head: bytes, path: bytes) -> None:
    """Whether the view reads it or not."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(process.connect()) for _ in range(2 * worker_process.THREADS)]
        for sock in slow:
            sock.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n1")
        began = time.monotonic()
        assert process.get("/").endswith(b"ok")
        assert time.monotonic() - began < LATE
        for sock in slow:
            everything(sock)


def test_b10_one_that_does_not_take_its_answer_is_sent_away(process: Process) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(process.connect()) for _ in range(2 * worker_process.THREADS)]
        for sock in slow:
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: process.get("/").endswith(b"ok"), 2 * LATE, "an answer to somebody else")


def test_a_view_may_take_its_time(process: Process) -> None:
    assert worker_process.VIEW_SECONDS > 2 * worker_process.PATIENCE_SECONDS
    assert process.get("/slow").endswith(b"ok")


def test_a_view_may_take_its_time_between_two_parts_of_a_body(process: Process) -> None:
    body = b"x\n" * 25
    head = f"POST /lines HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with process.connect() as sock:
        sock.sendall(head.encode() + body[:2])
        sock.sendall(body[2:])
        assert everything(sock).endswith(b"\r\n\r\n25")


def test_who_sends_on_after_its_answer_sees_the_answer(process: Process) -> None:
    """The body is not read by the view, and is larger than what is read for the connection's sake."""
    body = bytes(2 * 2**20)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    assert process.say(head.encode() + body).endswith(b"ok")


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: x\r\n"
FRAMES: dict[str, tuple[bytes, int]] = {
    "both lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both lengths the other way": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 5\r\n\r\n12345", 400),
    "the same length twice": (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n12345", 400),
    "a list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\n12345", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a length with a sign": (POST + b"Content-Length: +5\r\n\r\n12345", 400),
    "a length in hexadecimal": (POST + b"Content-Length: 0x5\r\n\r\n12345", 400),
    "an empty length": (POST + b"Content-Length:\r\n\r\n", 400),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and then something": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "chunked under HTTP/1.0": (
        b"POST /body HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a space before the colon": (POST + b"Content-Length : 5\r\n\r\n12345", 400),
    "a folded header": (POST + b"X: a\r\n Content-Length: 5\r\n\r\n", 400),
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: x\n\n", 400),
    "bare LF in a header": (GET + b"X: a\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "bare CR in a header": (GET + b"X: a\rY: b\r\n\r\n", 400),
    "NUL in a header": (GET + b"X: a\0b\r\n\r\n", 400),
    "no name": (GET + b": a\r\n\r\n", 400),
    "two hosts": (GET + b"Host: y\r\n\r\n", 400),
    "a name with an underscore is dropped": (
        GET + b"Connection: close\r\nContent_Length: 5\r\n\r\n",
        200,
    ),
    "a chunk that lies": (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345678\r\n0\r\n\r\n", 400),
    "a chunk of another number": (POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\n12345\r\n0\r\n\r\n", 400),
    "a chunk line with bare LF": (POST + b"Transfer-Encoding: chunked\r\n\r\n5\n12345\r\n0\r\n\r\n", 400),
    "another version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "no version": (b"GET /\r\nHost: x\r\n\r\n", 400),
    "no HTTP at all": (b"\x16\x03\x01" + bytes(100) + b"\r\n\r\n", 400),
    "empty lines": (b"\r\n" * 1000, 400),
    "100,000 headers": (GET + b"A: b\r\n" * 100_000 + b"\r\n", 431),
    "101 headers": (GET + b"A: b\r\n" * 100 + b"\r\n", 431),
    "a header of 10 kB": (GET + b"A: " + b"b" * 10_000 + b"\r\n\r\n", 431),
    "a header of 1 MB": (GET + b"A: " + b"b" * 1_000_000, 431),
    "a long address": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
}


@pytest.mark.parametrize("what", FRAMES)
def test_b9_b11_what_could_be_read_in_two_ways_or_is_too_much_is_refused(process: Process, what: str) -> None:
    """One answer, then the end of the connection: whatever comes behind it is no request."""
    data, status = FRAMES[what]
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" if len(data) < 60_000 else b""
    got = process.say(data + (smuggled if status != 200 else b""))
    assert got.startswith(f"HTTP/1.1 {status} ".encode()), got[:200]
    assert got.count(b"HTTP/1.1 ") == 1
    assert b"Traceback" not in got
    process.answers_soon()


def test_b8_a_body_that_ends_early_leaves_the_worker_as_it_was(process: Process) -> None:
    for _ in range(2 * worker_process.THREADS):
        with process.connect() as sock:
            sock.sendall(POST + b"Content-Length: 10000000000\r\n\r\n" + bytes(1000))
    process.answers_soon()


def test_b10_the_server_answers_while_many_clients_are_slow(running_server: RunningServer) -> None:
    """The real one, with its own limits: far more slow clients than it has threads."""
    host, port = running_server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for number in range(SLOW):
            sock = stack.enter_context(socket.create_connection((host, int(port)), 30))
            sock.sendall((b"", b"GET / HT", b"POST /v1/tasks HTTP/1.1\r\nContent-Length: 5\r\n")[number % 3])
        for _ in range(20):
            running_server.request("GET", "/v1/tasks")
