"""Passes news of jobs between the dispatcher hosts of one Postgres: what nobody waits for here, somebody may wait for there.

One process of a host does it at a time: it holds a lock in the state directory, takes from the waiting process the news that
found too few pilots, and hands what other hosts tell to the waiting process. News travels by LISTEN and NOTIFY, a few
kilobytes for many jobs, and may be lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import selectors
import socket
import threading
from pathlib import Path

import psycopg
from psycopg import sql

from server.waiting import wake

logger = logging.getLogger(__name__)

CHANNEL = "pilotage_wake"
LARGEST_PAYLOAD = 7900
"""Bytes; Postgres takes 7999."""
TURN_SECONDS = 2.0
"""How often a process looks whether it is its turn."""
RECONNECT_SECONDS = 5.0
CONNECT_SECONDS = 10
SENDER_SECONDS = 1.0


class Relay:
    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        wake.send(self._directory / wake.RELAY, wake.News({}))  # whoever it is that listens there wakes up
        self._thread.join(timeout=CONNECT_SECONDS)

    def _run(self) -> None:
        # The kernel's own lock: it goes with the process.
        lock = os.open(self._directory / "relay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not self._stop.wait(random.uniform(0, TURN_SECONDS)):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
            while not self._stop.is_set():
                try:
                    self._relay()
                except (psycopg.Error, OSError) as error:
                    logger.warning("no news to and from other hosts", extra={"reason": str(error).strip()})
                    self._stop.wait(random.uniform(0, RECONNECT_SECONDS))
        finally:
            os.close(lock)

    def _relay(self) -> None:
        path = self._directory / wake.RELAY
        with psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
            with wake.listen(path) as listener, selectors.DefaultSelector() as selector:
                for source in (connection, listener):
                    selector.register(source, selectors.EVENT_READ)
                logger.info("news of jobs is passed on between the hosts")
                while not self._stop.is_set():
                    selector.select()
                    for data in _arrived(listener):
                        self._tell_others(connection, data)
                    self._tell_here(connection)
            path.unlink(missing_ok=True)

    def _tell_others(self, connection: psycopg.Connection, data: bytes) -> None:
        try:
            news = wake.read_news(data)
        except ValueError as error:
            logger.warning("news that cannot be read", extra={"reason": str(error)})
            return
        told = wake.News(news.jobs, news.queue, is_local=False)
        for part in wake.pieces(told, LARGEST_PAYLOAD):
            connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, part.to_bytes().decode()))

    def _tell_here(self, connection: psycopg.Connection) -> None:
        """What came in, also beside the answers to our own statements; our own news is told here already."""
        for notice in connection.notifies(timeout=0):
            if notice.pid != connection.info.backend_pid:
                try:
                    wake.send(self._directory / wake.SOCKET, wake.read_news(notice.payload.encode()))
                except ValueError as error:
                    logger.warning("news that cannot be read", extra={"reason": str(error)})


def _arrived(listener: socket.socket) -> list[bytes]:
    """What was sent: each sender writes it whole and closes."""
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while True:
            sender, _ = listener.accept()
            with sender, contextlib.suppress(TimeoutError):
                sender.settimeout(SENDER_SECONDS)
                piece = b""
                while data := sender.recv(wake.LARGEST):
                    piece += data
                pieces.append(piece)
    return pieces
