"""The waiting process: holds the connections of pilots that wait for work, and answers those that news of jobs is for.

One asyncio loop that knows neither database nor jobs: a pilot shows the ticket that getJob gave it, `GET /v1/wait?ticket=…`, and
is answered when `server/waiting/board.py` chooses it or its time is over. The dispatcher starts it (`server/waiting/keeper.py`) with its
listening sockets, and with its settings as JSON on standard input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import signal
import socket
import ssl
import sys
import time
from asyncio import sslproto
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from protocol import logs
from protocol.errors import PilotageError
from protocol.messages import to_wire
from protocol.messages.pilots import WaitReply
from protocol.messages.views import ErrorReply
from server.parent import end_with
from server.waiting import tickets, wake
from server.waiting.board import Board, Place
from server.waiting.gate import Gate

logger = logging.getLogger("server.waiting.process")

PATH = "/v1/wait"
LARGEST_HEAD = 8192
MOST_HEADERS = 100
HEAD_SECONDS = 10.0
"""From the first byte to the last one of a request, and from an answer to the end of the next request."""
LONGEST_WAIT_SECONDS = 600
USUAL_WAIT_SECONDS = 60
END_SECONDS = 1.0
"""What connections get to take their last answer."""
SPARE_FILES = 64
"""Descriptors that are not for connections that speak: the loop's own, news, TLS handshakes."""
KEEPALIVE_SECONDS = 30
"""So often the kernel asks a silent peer for a sign of life; it also keeps the connection known to NATs on the way."""
CERTIFICATE_SECONDS = 60
"""How often a renewed certificate is looked for."""

_STATUS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}
_ERRORS = {"BAD_REQUEST": 400, "NOT_FOUND": 404, "METHOD_NOT_ALLOWED": 405, "SERVER_UNAVAILABLE": 503}
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.([01])")

# Its reading buffer is 256 KiB for each connection; ours never say as much as a page.
sslproto.SSLProtocol.max_size = 4096  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Config:
    """What the dispatcher tells the process that it starts; attribute names are the keys of the JSON object."""

    parent: int
    """The process with which it ends."""
    listener: int
    """Descriptors of the listening sockets: for pilots, and for news."""
    news: int
    ticket_key: str
    relay: str = ""
    """The socket of whoever passes news on to other hosts; "": there are none."""
    certfile: str = ""
    keyfile: str = ""
    log_level: str = "INFO"
    log_file: str = ""
    max_log_size: int = logs.MAX_LOG_SIZE
    backup_count: int = logs.BACKUP_COUNT
    log_json: bool = False


# -- requests ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    keep_alive: bool


def read_head(head: bytes) -> Request:
    """The head of a request without its last, empty line; BAD_REQUEST for anything that is not plain HTTP/1 without a body."""
    first, *rest = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first.decode("latin-1"))
    if line is None:
        raise PilotageError("BAD_REQUEST", f"no request of HTTP/1: {ascii(first[:60])[1:]}")
    if len(rest) > MOST_HEADERS:
        raise PilotageError("BAD_REQUEST", f"more than {MOST_HEADERS} headers")
    headers: dict[bytes, bytes] = {}
    for text in rest:
        header = _HEADER.fullmatch(text)
        if header is None:
            raise PilotageError("BAD_REQUEST", f"no header: {ascii(text[:60])[1:]}")
        name = header[1].lower()
        if name in headers and name in (b"host", b"content-length", b"connection"):
            raise PilotageError("BAD_REQUEST", f"{name.decode()}: is there twice")
        headers[name] = header[2].strip()
    if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
        raise PilotageError("BAD_REQUEST", "a body is not taken here")
    is_newer = line[3] == "1"
    if is_newer and b"host" not in headers:
        raise PilotageError("BAD_REQUEST", "host: is missing")
    path, _, query = line[2].partition("?")
    close = b"close" in headers.get(b"connection", b"").lower()
    return Request(line[1], path, query, is_newer and not close)


def read_query(query: str) -> tuple[str, float]:
    """The ticket, and for how many seconds to wait."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=10, errors="strict")
    except ValueError:
        raise PilotageError("BAD_REQUEST", "the parameters cannot be read") from None
    given = dict(pairs)
    unknown = sorted(set(given) - {"ticket", "timeout"})
    if unknown or len(given) != len(pairs):
        raise PilotageError("BAD_REQUEST", "the parameters are ticket and timeout, each once")
    seconds = given.get("timeout", str(USUAL_WAIT_SECONDS))
    if not (seconds.isascii() and seconds.isdigit() and 0 < len(seconds) < 10):
        raise PilotageError("BAD_REQUEST", f"timeout: {seconds[:60]!a} is no whole number of seconds")
    return given.get("ticket", ""), min(int(seconds), LONGEST_WAIT_SECONDS)


def answer(status: int, content: Any, keep_alive: bool) -> bytes:
    body = json.dumps(to_wire(content), separators=(",", ":")).encode() + b"\n"
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    lines = [
        f"HTTP/1.1 {status} {_STATUS[status]}",
        f"Date: {date}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    if status == 405:
        lines.append("Allow: GET")
    return "\r\n".join([*lines, "", ""]).encode() + body


# -- connections ------------------------------------------------------------------------------------------------------------


class Room:
    """What the connections share: the board, the key of the tickets, and how many there may be."""

    def __init__(self, ticket_key: bytes, most: int, gate: Gate, relay: Path | None = None) -> None:
        self.ticket_key = ticket_key
        self.most = most
        self.gate = gate
        self.board = Board()
        self.open: set[Connection] = set()
        self.strangers: OrderedDict[Connection, None] = OrderedDict()
        """Connections that do not wait: they showed no ticket, or not yet. The oldest makes room for a new one."""
        self._relay = relay

    def enter(self, connection: Connection) -> bool:
        """False if there is no room: every connection is that of a pilot with a valid ticket."""
        if len(self.open) >= self.most:
            if not self.strangers:
                return False
            oldest, _ = self.strangers.popitem(last=False)
            oldest.abort()
        self.open.add(connection)
        return True

    def tell(self, data: bytes) -> None:
        """News has come in."""
        try:
            news = wake.read_news(data)
            missing = self.board.tell(news)
        except (ValueError, TypeError) as error:
            logger.warning("news that cannot be read", extra={"reason": str(error)})
            return
        if missing and news.is_local and self._relay is not None:
            wake.send(self._relay, wake.News(missing, news.queue))


class Connection(asyncio.Protocol):
    """One connection: a request at a time, and between them at most a few seconds."""

    __slots__ = ("_buffer", "_deadline", "_keep_alive", "_place", "_room", "_transport")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._buffer = b""
        self._place: Place | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._keep_alive = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
        if self._room.enter(self):
            self._be_stranger()
        else:
            self._refuse(PilotageError("SERVER_UNAVAILABLE", "no more pilots can wait here; poll"))

    def connection_lost(self, error: Exception | None) -> None:
        self._set_deadline(None)
        self._room.open.discard(self)
        self._room.strangers.pop(self, None)
        if self._place is not None:
            self._room.board.leave(self._place)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._place is None:
            self._serve()
        elif len(self._buffer) > LARGEST_HEAD:
            self.abort()

    def eof_received(self) -> bool:
        """A peer that says no more does not wait either."""
        return False

    def abort(self) -> None:
        self._transport.abort()

    def end(self) -> None:
        """The process ends: whoever is still here has got its answer."""
        self._keep_alive = False
        self._transport.close()

    def woken(self, jobs: bool) -> None:
        """The board's answer. There are jobs: when it is this pilot's turn to ask for one; until then it goes on waiting."""
        if jobs:
            self._set_deadline(None)
            self._room.gate.let(self._ask_now)
        else:
            self._end_wait(False)

    def _ask_now(self) -> None:
        if self in self._room.open:
            self._end_wait(True)

    def _end_wait(self, jobs: bool) -> None:
        self._place = None
        self._be_stranger()
        self._say(answer(200, WaitReply(jobs), self._keep_alive))
        self._serve()

    def _be_stranger(self) -> None:
        self._room.strangers[self] = None
        self._set_deadline(HEAD_SECONDS)

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = None if seconds is None else loop.call_later(seconds, self._time_is_over)

    def _time_is_over(self) -> None:
        if self._place is None:
            self.abort()  # slow, or silent between two requests
        else:
            self._room.board.leave(self._place)
            self._end_wait(False)

    def _serve(self) -> None:
        """The requests that have come in whole, until one waits."""
        while self._place is None and not self._transport.is_closing():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if len(head) > LARGEST_HEAD:
                self._refuse(PilotageError("BAD_REQUEST", f"the head has more than {LARGEST_HEAD} bytes"))
            if not end or len(head) > LARGEST_HEAD:
                return
            self._buffer = rest
            try:
                self._answer(read_head(head))
            except PilotageError as error:
                self._refuse(error)

    def _answer(self, request: Request) -> None:
        self._keep_alive = request.keep_alive
        if request.path not in (PATH, "/healthz"):
            raise PilotageError("NOT_FOUND", f"no such address here; there are {PATH} and /healthz")
        if request.method != "GET":
            raise PilotageError("METHOD_NOT_ALLOWED", f"{request.path} takes GET")
        if request.path == PATH:
            self._wait(*read_query(request.query))
            return
        self._set_deadline(HEAD_SECONDS)
        self._say(answer(200, {"status": "ok", "parked": len(self._room.board)}, self._keep_alive))

    def _wait(self, text: str, seconds: float) -> None:
        ticket = tickets.read(self._room.ticket_key, text, time.time())
        self._place = self._room.board.park(ticket, self.woken)
        if self._place is None:
            self._set_deadline(HEAD_SECONDS)
            self._say(answer(200, WaitReply(True), self._keep_alive))
        else:
            self._room.strangers.pop(self, None)
            self._set_deadline(seconds)

    def _refuse(self, error: PilotageError) -> None:
        self._keep_alive = False
        entry = error.entry
        shape = ErrorReply(entry.name, entry.code, entry.text, error.detail, entry.advice)
        self._say(answer(_ERRORS[entry.name], shape, False))

    def _say(self, data: bytes) -> None:
        self._transport.write(data)
        if not self._keep_alive:
            self._transport.close()
            self._set_deadline(END_SECONDS)  # one that does not even take its answer


class NewsConnection(asyncio.Protocol):
    """One piece of news from a dispatcher process: all that it sends until it closes."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > wake.LARGEST:
            self._transport.close()

    def eof_received(self) -> None:
        self._room.tell(self._data)


# -- the process ------------------------------------------------------------------------------------------------------------


async def serve(config: Config) -> None:
    """Until SIGTERM; then everybody is answered and sent away."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    most = _raise_file_limit() - SPARE_FILES
    relay = Path(config.relay) if config.relay else None
    room = Room(bytes.fromhex(config.ticket_key), most, Gate(loop.time, loop.call_later), relay)
    tls = _Tls(config) if config.certfile else None
    pilots = await loop.create_server(
        lambda: Connection(room),
        sock=socket.socket(fileno=config.listener),
        backlog=socket.SOMAXCONN,
        ssl=tls.context if tls else None,
        ssl_handshake_timeout=HEAD_SECONDS if tls else None,
    )
    news = await loop.create_unix_server(
        lambda: NewsConnection(room), sock=socket.socket(fileno=config.news), backlog=1024
    )
    logger.info("pilots may wait for work", extra={"most": most})
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), CERTIFICATE_SECONDS)
        except asyncio.TimeoutError:
            if tls:
                tls.renew()
    pilots.close()
    news.close()
    room.board.close()
    for connection in list(room.open):
        connection.end()
    deadline = loop.time() + END_SECONDS
    while room.open and loop.time() < deadline:
        await asyncio.sleep(0.01)


class _Tls:
    """The server's certificate; connections that come after a renewal get the new one."""

    def __init__(self, config: Config) -> None:
        self._files = (config.certfile, config.keyfile)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._seen: list[int] = []
        self.renew()

    def renew(self) -> None:
        try:
            changed = [os.stat(file).st_mtime_ns for file in self._files]
            if changed != self._seen:
                self.context.load_cert_chain(*self._files, password=lambda: "")
                self._seen = changed
        except OSError as error:  # also ssl.SSLError: half of a renewal; the old one serves on
            logger.warning("the certificate cannot be read", extra={"reason": str(error)})


def _raise_file_limit() -> int:
    """As many connections as the system allows; the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1_000_000


def main(settings: Mapping[str, Any]) -> None:
    config = Config(**settings)
    # A terminal's Ctrl-C and its end are for the dispatcher, which then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_with(config.parent, signal.SIGTERM)
    logs.set_up(
        config.log_level,
        Path(config.log_file) if config.log_file else None,
        config.max_log_size,
        config.backup_count,
        config.log_json,
    )
    asyncio.run(serve(config))


if __name__ == "__main__":
    main(json.load(sys.stdin))
