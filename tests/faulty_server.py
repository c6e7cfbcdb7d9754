"""A small HTTP server that answers what a test tells it to, wrongly too: for what the real server would never send."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Dict, Iterator, List, Mapping, Optional

import pytest


@dataclass
class Answer:
    """`length` is what the header claims, if not the truth; with `hang` nothing is sent until the test ends."""

    body: bytes = b""
    status: int = 200
    length: Optional[int] = None
    hang: bool = False


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]


class FaultyServer:
    """`answers` maps a path to what is sent: one after the other, the last one for ever; 404 for the rest."""

    def __init__(self) -> None:
        self.answers: Dict[str, List[Answer]] = {}
        self.seen: List[Request] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = outer._next(self.path, dict(self.headers.items()))
                if answer.hang:
                    outer._ended.wait()
                    return
                self.send_response(answer.status)
                self.send_header(
                    "Content-Length", str(len(answer.body) if answer.length is None else answer.length)
                )
                self.end_headers()
                self.wfile.write(answer.body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def paths(self) -> List[str]:
        with self._lock:
            return [request.path for request in self.seen]

    def _next(self, path: str, headers: Mapping[str, str]) -> Answer:
        with self._lock:
            self.seen.append(Request(path, headers))
            waiting = self.answers.get(path, [Answer(status=404)])
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def close(self) -> None:
        self._ended.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def faulty_server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    yield server
    server.close()
