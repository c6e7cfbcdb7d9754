"""A gunicorn with our worker class around a tiny application, in a process of its own and with short limits, for tests of slow clients.

python -m tests.integration.server.worker_process PORT_FILE [CERTIFICATE KEY]
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from server.http import worker

THREADS = 4
HEAD_SECONDS = 0.5
PATIENCE_SECONDS = 0.5
"""For the body, and for the answer to be taken."""
VIEW_SECONDS = 1.5
LARGE = 16 * 2**20


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    answer = b"ok"
    if path == "/slow":
        time.sleep(VIEW_SECONDS)  # a view that works for longer than any client may take
    elif path == "/body":
        answer = str(len(environ["wsgi.input"].read())).encode()
    elif path == "/lines":
        n = 0
        while environ["wsgi.input"].readline():
            n += 1
            time.sleep(0.05)  # what it does with each of them
        answer = str(n).encode()
    elif path == "/large":
        answer = bytes(LARGE)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


class Gunicorn(BaseApplication):  # type: ignore[misc]
    def __init__(self, port_file: Path, pair: list[str]) -> None:
        self._port_file = port_file
        self._pair = pair
        super().__init__()

    def load_config(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._port = listener.getsockname()[1]
        options = {
            "bind": f"fd://{listener.detach()}",
            "worker_class": "server.http.worker.Worker",
            "workers": 1,
            "threads": THREADS,
            "keepalive": 75,
            "graceful_timeout": 5,
            "limit_request_fields": 100,
            "control_socket_disable": True,
            "when_ready": lambda arbiter: self._port_file.write_text(str(self._port)),
            **(dict(zip(("certfile", "keyfile"), self._pair)) if self._pair else {}),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., Any]:
        return application


if __name__ == "__main__":
    worker.HEAD_SECONDS = HEAD_SECONDS
    worker.BODY_SECONDS = worker.ANSWER_SECONDS = PATIENCE_SECONDS
    worker.SLOWEST = 10_000_000
    Gunicorn(Path(sys.argv[1]), sys.argv[2:]).run()
