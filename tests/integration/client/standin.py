"""A server that answers as a test tells it, to see what the client makes of odd answers; the real one is in conftest.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, NamedTuple, Tuple


class Seen(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: Dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """`body` that is no bytes is sent as JSON; `drop` closes the connection without a word."""

    status: int = 200
    body: Any = None
    headers: Tuple[Tuple[str, str], ...] = ()
    drop: bool = False


@dataclass
class StandIn:
    url: str
    answers: List[Answer]
    """Given one after the other; the last one again and again."""
    seen: List[Seen] = field(default_factory=list)


@contextmanager
def standing_in(*answers: Answer) -> Iterator[StandIn]:
    state = StandIn("", list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            state.seen.append(Seen(self.command, self.path, dict(self.headers), self.rfile.read(size)))
            answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            if answer.drop:
                self.close_connection = True
                return
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET: Callable[[Any], None] = answer
        do_POST: Callable[[Any], None] = answer
        do_PUT: Callable[[Any], None] = answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
