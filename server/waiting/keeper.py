"""Keeps the waiting process running: starts it, starts it again when it dies, and ends it with the server.

Its listening sockets are the dispatcher's, so that between two such processes nobody is turned away: pilots and news wait in
the sockets' queues. All of it is called by gunicorn's arbiter, from its main thread.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from protocol.settings import Settings
from server.access import tokens
from server.core import Waiting
from server.waiting import tickets, wake
from server.waiting.process import PATH, Config

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent.parent
SHORTEST_RUN_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""A process that dies at once is started again after this at most."""
STOP_SECONDS = 3.0


class WaitingProcess:
    def __init__(self, settings: Settings, directory: Path, listener: socket.socket, has_relay: bool) -> None:
        self._settings = settings
        self._directory = directory
        self._key = tickets.key_of(tokens.server_key(directory))
        self._listener = listener
        self._news = wake.listen(directory / wake.SOCKET)
        self._has_relay = has_relay
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = 0.0
        certificate = settings.optional_path("server", "certfile")
        url = settings.text("server", "wait_url").rstrip("/")
        self.waiting = Waiting(
            listener.getsockname()[1], self._key, "https" if certificate else "http", url and url + PATH
        )
        """What the dispatcher tells pilots of it."""

    def keep(self) -> None:
        """Called once a second and when a child has ended: start the process if there is none."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._process = None
            ran = now - self._started
            self._pause = (
                min(2 * self._pause + 1, LONGEST_PAUSE_SECONDS) if ran < SHORTEST_RUN_SECONDS else 0.0
            )
            logger.error(
                "the waiting process has ended and is started again",
                extra={"ran_seconds": round(ran, 1), "in_seconds": self._pause},
            )
        if now - self._started >= self._pause:
            self._start()

    def stop(self) -> None:
        """End it: pilots that wait are answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._listener.close()
        self._news.close()
        (self._directory / wake.SOCKET).unlink(missing_ok=True)

    def forget(self) -> None:
        """In a worker after the fork: it is the arbiter's, with its sockets."""
        self._listener.close()
        self._news.close()
        if self._process is not None:
            self._process.returncode = 0  # no child of this process
            self._process = None

    def _start(self) -> None:
        descriptors = (self._listener.fileno(), self._news.fileno())
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        # Without our settings: an address of the database with its password, say.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.waiting.process"],
            stdin=subprocess.PIPE,
            cwd=self._directory,
            pass_fds=descriptors,
            env={**inherited, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:  # a pipe: the key is for nobody else to see
                stdin.write(json.dumps(dataclasses.asdict(self._config(*descriptors))).encode())
        except BrokenPipeError:
            pass  # it is dead already, as keep() will find

    def _config(self, listener: int, news: int) -> Config:
        settings = self._settings
        names = ("certfile", "keyfile")
        certfile, keyfile = (settings.optional_path("server", name) for name in names)
        log_file = settings.optional_path("logging", "log_file")
        return Config(
            parent=os.getpid(),
            listener=listener,
            news=news,
            ticket_key=self._key.hex(),
            relay=str(self._directory / wake.RELAY) if self._has_relay else "",
            certfile=str(certfile.absolute()) if certfile else "",
            keyfile=str(keyfile.absolute()) if keyfile else "",
            log_level=settings.text("logging", "log_level"),
            log_file=str(log_file.absolute()) if log_file else "",
            max_log_size=settings.integer("logging", "max_log_size"),
            backup_count=settings.integer("logging", "backup_count"),
            log_json=settings.flag("logging", "log_json"),
        )
