"""Many pilots that wait for work, as bare connections: one loop in this thread, so that thousands of them cost little."""

from __future__ import annotations

import json
import selectors
import socket
import time
from contextlib import suppress
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Type
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """What one of them was told; `seconds` after it began to wait. `jobs` None: the connection was closed without a word."""

    number: int
    status: int
    jobs: Optional[bool]
    seconds: float


class Parked:
    """Connections that wait with a ticket each."""

    def __init__(self, url: str, tickets: Iterable[str], timeout: int = 60) -> None:
        address = urlsplit(url)
        self._selector = selectors.DefaultSelector()
        self._since: Dict[socket.socket, float] = {}
        self._numbers: Dict[socket.socket, int] = {}
        self.answers: List[Answer] = []
        for number, ticket in enumerate(tickets):
            sock = socket.create_connection((address.hostname or "", address.port or 80), 10)
            sock.sendall(
                f"GET {address.path}?ticket={ticket}&timeout={timeout} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            self._since[sock], self._numbers[sock] = time.monotonic(), number
            self._selector.register(sock, selectors.EVENT_READ)

    def __enter__(self) -> Parked:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: object
    ) -> None:
        for sock in list(self._since):
            self._close(sock)
        self._selector.close()

    def __len__(self) -> int:
        """How many have no answer yet."""
        return len(self._since)

    @property
    def woken(self) -> List[int]:
        """Their numbers, in the order in which they were told of jobs."""
        return [answer.number for answer in self.answers if answer.jobs]

    def listen(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Take answers for so long, or until there are enough."""
        end = time.monotonic() + seconds
        while not until() and self._since and time.monotonic() < end:
            for key, _ in self._selector.select(max(0.0, min(0.05, end - time.monotonic()))):
                assert isinstance(key.fileobj, socket.socket)
                self._take(key.fileobj)

    def _take(self, sock: socket.socket) -> None:
        data = b""
        with suppress(ConnectionError):
            data = sock.recv(65536)  # an answer is sent whole
        status, jobs = 0, None
        if data:
            status = int(data.split(b" ", 2)[1])
            jobs = json.loads(data.partition(b"\r\n\r\n")[2]).get("jobs")
        self.answers.append(Answer(self._numbers[sock], status, jobs, time.monotonic() - self._since[sock]))
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._since[sock], self._numbers[sock]
        sock.close()
