"""News of jobs for the pilots that wait: whoever made jobs READY says so here, after the commit.

News is a hint: it goes to the waiting process of this machine (`server/waiting/process.py`) over a Unix socket in the state directory,
and may be lost. A pilot that nobody wakes asks again by itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.core import Core

logger = logging.getLogger(__name__)

SOCKET = "wake.sock"
"""Where the waiting process listens for news."""
RELAY = "relay.sock"
"""Where the process listens that passes news on to the other hosts."""
MOST_JOBS = 1_000_000
LARGEST = 64 * 1024
"""Bytes of one piece of news: it fits into a socket's buffer, so that it is sent whole or not at all."""


@dataclass(frozen=True)
class News:
    """New READY jobs: class key → how many. With a `queue`, for pilots of that one alone.

    `is_local`: it comes from this host, so that what nobody here waits for may be told to others.
    """

    jobs: Mapping[str, int]
    queue: str = ""
    is_local: bool = True

    def to_bytes(self) -> bytes:
        return json.dumps([dict(self.jobs), self.queue, self.is_local]).encode()


def read_news(data: bytes) -> News:
    """ValueError if it is none."""
    content: Any = json.loads(data)
    try:
        jobs, queue, is_local = content
        counts = {str(key): min(int(n), MOST_JOBS) for key, n in jobs.items() if int(n) > 0}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no news: {error}") from None
    return News(counts, str(queue), bool(is_local))


def poke(core: Core, jobs: Mapping[str, int], queue: str = "") -> None:
    """Wake about as many waiting pilots as there are new jobs: `JobClass.key` → how many. Never raises, never waits.

    To be called after the commit that made them READY, once for all that it made. A class may be named that pilots of one
    `queue` alone can take now, since that has come online.
    """
    if core.waiting is None:
        return
    for news in pieces(News(jobs, queue), LARGEST):
        if not send(core.state_directory / SOCKET, news) and not core.database.is_sqlite:
            send(core.state_directory / RELAY, news)


def pieces(news: News, largest: int) -> Iterator[News]:
    """The same news in parts of at most `largest` bytes; a class whose key alone has more is left out."""
    part: dict[str, int] = {}
    for class_key, n in news.jobs.items():
        if len(replace(news, jobs={class_key: n}).to_bytes()) > largest:
            continue
        if len(replace(news, jobs={**part, class_key: n}).to_bytes()) > largest:
            yield replace(news, jobs=part)
            part = {}
        part[class_key] = n
    if part:
        yield replace(news, jobs=part)


def send(path: Path, news: News) -> bool:
    """Whether it was handed over; False if nobody listens there or too much waits there already."""
    try:
        with _unix_socket() as sock, _short(path) as address:
            sock.connect(address)
            data = news.to_bytes()
            return sock.send(data) == len(data)
    except OSError as error:
        logger.debug("news of jobs reaches nobody", extra={"path": str(path), "reason": str(error)})
        return False


def listen(path: Path) -> socket.socket:
    """A socket for news; the caller holds the state directory, so what lies there is left from a process that is gone."""
    path.unlink(missing_ok=True)
    listener = _unix_socket()
    with _short(path) as address:
        listener.bind(address)
    listener.listen(1024)
    return listener


def _unix_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The address of a socket: the kernel takes 107 bytes, and a state directory may lie deeper than that."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
