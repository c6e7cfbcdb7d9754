"""A network in bad weather: by chance it loses requests and replies, repeats words, and delivers copies late and out of order."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler

from tests.acceptance.proxy import Proxy, Sent, running

MAY_BE_LATE = ("/v1/updateJob", "/v1/heartbeat")
"""A late getJob that found nothing before would take a job of which nobody knows, and many of them every job there is."""


@dataclass(frozen=True)
class Weather:
    """Probabilities, each for one request on one of the `paths` (all if there are none)."""

    seed: int
    lose_request: float = 0.0
    lose_reply: float = 0.0
    repeat: float = 0.0
    """The same bytes several times, at once and in parallel, up to `most` times."""
    late: float = 0.0
    """Of an update or a heartbeat: a copy that arrives later, whatever was said since."""
    late_seconds: tuple[float, float] = (0.0, 1.0)
    most: int = 5
    paths: tuple[str, ...] = ()


class BadNetwork(Proxy):
    """A proxy under some weather; `counts` says what it did."""

    def __init__(self, url: str, weather: Weather) -> None:
        super().__init__(url)
        self.weather = weather
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(weather.seed)
        self._over = threading.Event()
        self._copies: list[threading.Thread] = []

    def _hand_on(self, request: BaseHTTPRequestHandler) -> None:
        sent = Sent.of(request, request.rfile.read(int(request.headers.get("Content-Length") or 0)))
        weather = self.weather
        concerned = not weather.paths or request.path in weather.paths
        with suppress(OSError, HTTPException):
            if concerned and self._happens("request lost", weather.lose_request):
                request.close_connection = True
                return
            if request.path in MAY_BE_LATE and self._happens("late copy", weather.late):
                self._copy(sent, self._chance.uniform(*weather.late_seconds))
            if concerned and self._happens("repeated", weather.repeat):
                for _ in range(self._chance.randint(1, weather.most)):
                    self._copy(sent, 0.0)
            answer, data = self._send(sent)
            if concerned and self._happens("reply lost", weather.lose_reply):
                request.close_connection = True
                return
            self._reply(request, answer, data)
            return
        request.close_connection = True

    def _happens(self, what: str, probability: float) -> bool:
        with self._lock:
            happens = self._chance.random() < probability
            self.counts[what] += happens
            return happens

    def _copy(self, sent: Sent, seconds: float) -> None:
        """Send these bytes too, later, and let nobody hear the answer."""

        def deliver() -> None:
            self._over.wait(seconds)
            with suppress(OSError, HTTPException):
                answer, _ = self._send(sent)
                with self._lock:
                    self.counts[f"copy answered {answer.status}"] += 1

        thread = threading.Thread(target=deliver)
        with self._lock:
            self._copies.append(thread)
        thread.start()

    def calm(self) -> None:
        """Deliver all copies that are still on their way."""
        self._over.set()
        for thread in self._copies:
            thread.join()

    def figures(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))


@contextmanager
def under(url: str, weather: Weather) -> Iterator[BadNetwork]:
    """A network before the server at this address."""
    with running(BadNetwork(url, weather)) as network:
        try:
            yield network
        finally:
            network.calm()
