"""Connections to servers that users name: judged by the address that was reached, and ended in time."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from protocol import addresses
from protocol.errors import PilotageError
from protocol.redaction import one_line

LOOK_SECONDS = 0.2
"""How soon a connection ends that nobody wants any more."""


def reach(host: str, port: int, seconds: float) -> socket.socket:
    """A connection, or an OSError; BAD_PATH where machines keep their secrets. A name may lead anywhere: what it led to counts."""
    try:
        sock = socket.create_connection((host, port), seconds)
    except UnicodeError as error:
        raise OSError(f"{host[:80]!a} is no name of a machine: {error}") from None
    try:
        reached = ipaddress.ip_address(str(sock.getpeername()[0]).partition("%")[0])
    except OSError:  # the other side has hung up at once
        sock.close()
        raise
    if addresses.is_closed(reached):
        sock.close()
        raise PilotageError("BAD_PATH", f"{one_line(host[:200])} is an address for machines' own use")
    return sock


@contextmanager
def ended_in_time(sock: socket.socket, is_over: Callable[[], bool]) -> Iterator[None]:
    """Cut the connection when its time is over: a server that gives a byte now and then would hold us for ever."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            if is_over():
                with contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which takes its session from under the thread that reads.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, name="connection-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
