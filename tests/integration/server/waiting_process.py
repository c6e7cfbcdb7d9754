"""The real waiting process without a dispatcher, for tests of it and of what speaks to it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from protocol.messages import to_wire
from protocol.resources import Needs, Offer, ResourceType
from server import settings as server_settings
from server.waiting import tickets, wake
from server.waiting.keeper import WaitingProcess
from server.waiting.process import HEAD_SECONDS
from server.waiting.tickets import Ticket
from server.waiting.wake import News

ANY = json.dumps(to_wire(Needs()), sort_keys=True)
LARGE = json.dumps(to_wire(Needs(cores=8)), sort_keys=True)


class Process:
    """A waiting process without a dispatcher; `keep` is what gunicorn's arbiter does once a second."""

    def __init__(self, directory: Path, has_relay: bool = False, **options: str) -> None:
        self.directory = directory
        environ = {f"PILOTAGE_SERVER__{name.upper()}": value for name, value in options.items()}
        settings = server_settings.load({}, environ=environ, start=directory)
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.kept = WaitingProcess(settings, directory, listener, has_relay)
        self.port = self.kept.waiting.port
        self.tls: ssl.SSLContext | None = None
        self.url = f"{self.kept.waiting.scheme}://127.0.0.1:{self.port}"
        self.kept.keep()

    @property
    def pid(self) -> int:
        assert self.kept._process is not None
        return self.kept._process.pid

    def ticket(self, pilot: str, cores: int = 1) -> str:
        offer = Offer(ResourceType.CPU, "CPU", cores=cores)
        return tickets.sign(self.kept.waiting.ticket_key, Ticket(pilot, offer, time.time()))

    def tell(self, jobs: dict[str, int]) -> bool:
        return wake.send(self.directory / wake.SOCKET, News(jobs))

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30, context=self.tls) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def parked(self) -> int:
        count = self.get("/healthz")[1]["parked"]
        assert isinstance(count, int)
        return count

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=2 * HEAD_SECONDS)


@contextlib.contextmanager
def running(directory: Path, has_relay: bool = False, **options: str) -> Iterator[Process]:
    process = Process(directory, has_relay, **options)
    try:
        yield process
    finally:
        process.kept.stop()
