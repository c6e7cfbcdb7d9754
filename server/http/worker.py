"""gunicorn's threaded worker, with a time for each thing that its clients may keep it waiting for (FAULTS.md B10).

gunicorn gives a connection to one of a few threads as soon as its first byte is there; some clients that send a byte now and
then hold them all. Here a thread sees a connection only when the head of a request is complete: until then it costs an entry in
the poller of the main loop, and is closed if it takes too long. While a thread waits for the rest of a body, or for a client
to take its answer, the socket is in a list with the latest moment; a sweep in the main loop shuts down those that are
late, which wakes their threads. How long a view takes is nobody's business here.

It builds on parts of gunicorn that are not documented: setup.cfg names the versions that have them.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

from gunicorn import http, sock
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, ParseException
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import _DEFER, TConn, ThreadWorker

HEAD_SECONDS = 10.0
"""From the connection, or from the first byte of a further request, to the end of the head; a TLS handshake counts too."""
BODY_SECONDS = 60.0
"""So long the parts of a body may keep a thread waiting, all together."""
ANSWER_SECONDS = 60.0
"""So long a client may take to receive an answer."""
SLOWEST = 20_000
"""Bytes per second: bodies and answers have the time that they take at this rate in addition."""
UNREAD_SECONDS = 0.2
"""A body that nobody wanted is read for so long, to use the connection again; then the connection is closed."""
LINGER_SECONDS = 2.0
"""So long the rest of what a client sends is thrown away before its connection is closed, so that it sees its answer."""
SWEEP_SECONDS = 0.5
MOST_HEAD = 65_536
"""Bytes of a request line and headers."""
CHUNK = 8192
MOST_THROWN_AWAY = 4 * 2**20

_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_BARE_LF = re.compile(rb"(?<!\r)\n")

Waits = dict[socket.socket, float]
"""Sockets that keep a thread waiting, and until when they may."""


class _Body(SocketUnreader):
    """What arrives on a connection: each wait for it takes from the time that is left, each byte adds to it."""

    def __init__(self, source: socket.socket, waits: Waits) -> None:
        super().__init__(source)
        self._waits = waits
        self.left = BODY_SECONDS

    def chunk(self, size_hint: int | None = None) -> bytes:
        began = time.monotonic()
        self._waits[self.sock] = began + self.left
        try:
            data: bytes = super().chunk(size_hint)
        finally:
            self._waits.pop(self.sock, None)
        self.left += len(data) / SLOWEST - (time.monotonic() - began)
        return data


class _Connection(TConn):
    """A connection whose next head is read as it comes, by whichever thread is told that there is more of it."""

    def __init__(self, cfg: Any, client: socket.socket, address: Any, server: Any, waits: Waits) -> None:
        super().__init__(cfg, client, address, server)
        self.sock: socket.socket
        self._waits = waits
        self._head = b""
        self.late_at: float | None = time.monotonic() + HEAD_SECONDS
        self.queued_at = 0.0
        self.thrown_away = 0

    def has_head(self) -> bool:
        """Take what has arrived, without waiting; whether the head of a request is complete.

        OSError if there comes no more or it comes too late, ParseException if it can be the head of none.
        """
        if self.late_at is None:
            self.late_at = time.monotonic() + HEAD_SECONDS
        else:
            self.late_at += (
                time.monotonic() - self.queued_at
            )  # to wait for a thread is no fault of the client
        if self.sock.gettimeout() != 0:
            self.sock.setblocking(False)
        try:
            if not self.initialized:
                self._greet()
            head = self._head or self.parser.unreader.take_buffered()
            seen = 0
            while (end := head.find(b"\r\n\r\n", max(0, seen - 3))) < 0:
                self._head, seen = head, len(head)
                _check_beginning(head)
                data = self.sock.recv(CHUNK)
                if not data:
                    raise ConnectionAbortedError("there comes no more")
                head += data
        except _NOT_YET:
            if time.monotonic() > self.late_at:  # one that drips is never where the sweep looks
                raise TimeoutError("it is too slow") from None
            return False
        if end > MOST_HEAD:
            raise LimitRequestHeaders(f"more than {MOST_HEAD} bytes")
        self._head, self.late_at = b"", None
        self.parser.unreader.unread(head)
        return True

    def _greet(self) -> None:
        """The handshake, as far as it goes now; then gunicorn's parser."""
        if self.cfg.is_ssl:
            if not isinstance(self.sock, ssl.SSLSocket):
                self.sock = sock.ssl_wrap_socket(self.sock, self.cfg)
            assert isinstance(self.sock, ssl.SSLSocket)
            self.sock.do_handshake()
        self.parser = http.get_parser(self.cfg, self.sock, self.client)
        self.parser.unreader = _Body(self.sock, self._waits)
        self.initialized = True


def _check_beginning(head: bytes) -> None:
    """Refuse at once what is too large, or whose lines do not end as they must: its end would never come."""
    if len(head) > MOST_HEAD:
        raise LimitRequestHeaders(f"more than {MOST_HEAD} bytes")
    if _BARE_LF.search(head):
        raise InvalidHeader("bare LF as line terminator")


class Worker(ThreadWorker):
    """gunicorn's worker_class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits: Waits = {}
        self._leaving: set[_Connection] = set()
        self._next_sweep = 0.0
        self.wsgi: Any = None

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.wsgi = partial(self._answer, self.wsgi)

    def _answer(self, application: Any, environ: dict[str, Any], start_response: Any) -> Any:
        answer = application(environ, start_response)
        # The view is done, and the thread waits for nothing but its client.
        length = getattr(start_response.__self__, "response_length", None) or 0
        limit = time.monotonic() + ANSWER_SECONDS + length / SLOWEST
        self._waits[environ["gunicorn.socket"]] = limit
        return answer

    # -- in the main loop ---------------------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        conn = _Connection(self.cfg, client, address, listener.getsockname(), self._waits)
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def enqueue_req(self, conn: _Connection) -> None:
        conn.queued_at = time.monotonic()
        super().enqueue_req(conn)

    def finish_request(self, conn: _Connection, fs: Future[Any]) -> None:
        if not fs.cancelled() and fs.exception() is None and fs.result() is False:
            self._hang_up(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """gunicorn calls it at each turn of its loop; here it also looks for all that is late, now and then."""
        super().murder_pending()
        moment = time.monotonic()
        if moment < self._next_sweep:
            return
        self._next_sweep = moment + SWEEP_SECONDS
        for conn in [each for each in self.pending_conns if each.late_at < moment]:
            self.pending_conns.remove(conn)
            self._close(conn)
        for conn in [each for each in self._leaving if each.timeout < moment]:
            self._close(conn)
        for late in [each for each, limit in list(self._waits.items()) if limit < moment]:
            _shut_down(late, socket.SHUT_RDWR)

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker stops: connections without a request are kept no longer than that."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.late_at = min(conn.late_at, deadline)

    def _hang_up(self, conn: _Connection) -> None:
        """Close a connection so that its client sees the answer: say that there comes no more, and wait for it to say so too."""
        conn.timeout = time.monotonic() + LINGER_SECONDS
        self._leaving.add(conn)
        if not _shut_down(conn.sock, socket.SHUT_WR):
            self._close(conn)
            return
        conn.sock.setblocking(False)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._throw_away, conn))
        self._throw_away(conn, conn.sock)

    def _throw_away(self, conn: _Connection, source: socket.socket) -> None:
        try:
            n = len(socket.socket.recv(source, MOST_HEAD))  # of TLS the raw bytes
        except BlockingIOError:
            return
        except OSError:
            n = 0
        conn.thrown_away += n
        if not n or conn.thrown_away > MOST_THROWN_AWAY:
            self._close(conn)

    def _close(self, conn: _Connection) -> None:
        self._leaving.discard(conn)
        try:
            self.poller.unregister(conn.sock)
        except (KeyError, ValueError):
            pass  # it was not in there, or is closed already
        self.nr_conns -= 1
        conn.close()

    # -- in a thread --------------------------------------------------------------------------------------------------------

    def handle(self, conn: _Connection) -> Any:
        try:
            if not conn.has_head():
                return _DEFER
        except ParseException as error:
            self.handle_error(None, conn.sock, conn.client, error)
            return False
        except OSError as error:  # also whatever TLS finds wrong
            self.log.debug("a connection is closed: %s", error)
            return False
        return super().handle(conn)

    def handle_request(self, req: Any, conn: _Connection) -> Any:
        conn.parser.unreader.left = BODY_SECONDS
        try:
            return super().handle_request(req, conn)
        finally:
            self._waits.pop(conn.sock, None)

    def _keepalive_after(self, conn: _Connection, keepalive: bool) -> bool:
        if not keepalive:
            return False
        if getattr(conn.parser.mesg.body.reader, "length", 1) == 0:
            return True  # all of it was read
        return bool(conn.parser.finish_body(deadline=time.monotonic() + UNREAD_SECONDS))


def _shut_down(which: socket.socket, how: int) -> bool:
    """Below TLS, which has no say in it; whether the connection was there still."""
    try:
        socket.socket.shutdown(which, how)
    except OSError:
        return False
    return True
