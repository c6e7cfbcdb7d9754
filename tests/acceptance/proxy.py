"""A network between pilots and the server that loses answers after the server has done what was asked, or sends requests twice."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import urlsplit

HANDED_ON = ("Content-Type", "Retry-After", "X-Content-SHA256")


@dataclass(frozen=True)
class Sent:
    """A request as it came; the handler goes on to the next one on its connection."""

    command: str
    path: str
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, request: BaseHTTPRequestHandler, body: bytes) -> Sent:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        return cls(request.command, request.path, headers, body)


class Proxy:
    """`lose[path] = n`: the next n answers on that path get lost; `times[path] = n`: each request there is sent n times."""

    def __init__(self, url: str) -> None:
        self.lose: Counter[str] = Counter()
        self.times: dict[str, int] = {}
        self.lost: Counter[str] = Counter()
        """How many answers were lost, by path."""
        self._server = urlsplit(url).netloc
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._hand_on(self)

            do_POST = do_PUT = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def _hand_on(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        for _ in range(self.times.get(request.path, 1)):
            answer, data = self._send(Sent.of(request, body))
        if self._is_lost(request.path):
            request.close_connection = True
            return
        self._reply(request, answer, data)

    def _send(self, sent: Sent) -> tuple[http.client.HTTPResponse, bytes]:
        """What the server says to this request."""
        connection = http.client.HTTPConnection(self._server, timeout=30)
        try:
            connection.request(sent.command, sent.path, sent.body, sent.headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _reply(self, request: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, data: bytes) -> None:
        request.send_response(answer.status)
        for name in HANDED_ON:
            if answer.headers.get(name):
                request.send_header(name, answer.headers[name])
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _is_lost(self, path: str) -> bool:
        with self._lock:
            if self.lose[path] <= 0:
                return False
            self.lose[path] -= 1
            self.lost[path] += 1
            return True


P = TypeVar("P", bound=Proxy)


@contextmanager
def between(url: str) -> Iterator[Proxy]:
    """A proxy before the server at this address."""
    with running(Proxy(url)) as proxy:
        yield proxy


@contextmanager
def running(proxy: P) -> Iterator[P]:
    """Let it serve within the block."""
    thread = threading.Thread(target=proxy._http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy._http.shutdown()
        thread.join()
        proxy._http.server_close()
