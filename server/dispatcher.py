"""The server as a process: opens the state directory, brings the schema up to date, and runs gunicorn with the daemons in it."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from protocol.errors import PilotageError
from protocol.settings import Settings
from server import computing, healing, pilot_package, state_directory
from server import settings as server_settings
from server.access import tokens
from server.app import create_app
from server.core import Core, Limits
from server.daemons import Daemons
from server.database import Database, told
from server.parent import end_with
from server.waiting.keeper import WaitingProcess

if TYPE_CHECKING:
    from server.waiting.relay import Relay

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    os.umask(0o077)  # database, bundles and logs hold what users keep to themselves
    _check_certificate(settings)
    healing.load(settings)  # what is wrong is told before anything is made
    directory = state_directory.prepare(settings.path("server", "state_directory"))
    with state_directory.locked(directory):
        url = state_directory.database_url(directory, settings.text("database", "url"))
        with told(url):
            _migrate(url)
        _set_up(open_core(settings, directory, url))
        state_directory.note_database(directory, url)
        listener, for_waiting = (_listen(settings, port) for port in ("port", "wait_port"))
        waiting = WaitingProcess(settings, directory, for_waiting, has_relay=not url.startswith("sqlite:"))
        _Gunicorn(settings, directory, url, listener, waiting).run()


def _check_certificate(settings: Settings) -> None:
    """BAD_SETTINGS for a pair that cannot serve: gunicorn looks at it only when a client connects, each time anew."""
    certificate, key = (settings.optional_path("server", name) for name in ("certfile", "keyfile"))
    if certificate is None or key is None:
        return
    for path in (certificate, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise PilotageError("BAD_SETTINGS", f"{path} cannot be read: {error.strerror}") from None
    if key.stat().st_mode & 0o077:
        raise PilotageError("BAD_SETTINGS", f"{key} holds a secret but is not private: chmod 600 {key}")
    try:
        # An empty password: a key that wants one must not stop the start to ask for it.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, lambda: "")
    except ssl.SSLError as error:
        raise PilotageError(
            "BAD_SETTINGS", f"certfile {certificate} and keyfile {key} do not serve together: {error}"
        ) from None


def _migrate(url: str) -> None:
    """Bring the schema up to date, before anything is read."""
    database = Database(url)
    try:
        for name in database.migrate():
            logger.info("migrated the database", extra={"migration": name})
    finally:
        database.close()


def _set_up(core: Core) -> None:
    """At the first start make tokens, queues and a storage."""
    directory = core.state_directory
    try:
        pilot_package.build(pilot_package.path(directory))

        key = tokens.server_key(directory)

        def work() -> None:
            if not core.database.is_sqlite:  # a file belongs to the one host that it lies on
                tokens.check_key(key)
            tokens.write_first_tokens(directory)
            computing.set_up_defaults(core, f"file://{directory}/storage")

        core.database.write(work)
    finally:
        core.database.close()


def open_core(settings: Settings, directory: Path, url: str) -> Core:
    """The core of this process; closed by closing its database."""
    mib = 2**20
    limits = Limits(
        lease_seconds=settings.integer("queue", "lease_seconds"),
        heartbeat_seconds=settings.integer("queue", "heartbeat_seconds"),
        acknowledge_seconds=settings.integer("queue", "acknowledge_seconds"),
        metrics_seconds=settings.number("queue", "metrics_seconds"),
        ready_stock=settings.integer("executor", "ready_stock"),
        bundle_bytes=settings.integer("server", "bundle_limit_mb") * mib,
        body_bytes=settings.integer("server", "max_body_mb") * mib,
        proxies=settings.items("server", "proxies"),
        allowed_paths=settings.items("catalogue", "allowed_paths"),
        url_schemes=settings.items("catalogue", "url_schemes"),
        chain_boost=settings.integer("brokerage", "chain_boost"),
        tag_boosts=server_settings.tag_boosts(settings),
        judged_attempts=settings.integer("availability", "attempts"),
        judged_percent=settings.number("availability", "failed_percent"),
        test_successes=settings.integer("availability", "test_successes"),
        availability_seconds=settings.number("availability", "period_seconds"),
        reaper_seconds=settings.number("reaper", "period_seconds"),
        executor_seconds=settings.number("executor", "period_seconds"),
        closer_seconds=settings.number("closer", "period_seconds"),
        archiver_seconds=settings.number("archive", "period_seconds"),
        archive_after_seconds=settings.number("archive", "after_seconds"),
        garbage_seconds=settings.number("archive", "garbage_hours") * 3600,
    )
    database = Database(url)
    with database.reading():
        key = tokens.epoch_key(tokens.server_key(directory))
    return Core(database, key, directory, limits, healing.load(settings))


def _listen(settings: Settings, name: str) -> socket.socket:
    """A listening socket, bound before anything else starts, so that a port that is taken is told in one line."""
    host, port = settings.text("server", "host"), settings.integer("server", name)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == 98:
            raise PilotageError("PORT_TAKEN", f"{host}:{port} is in use by another program") from None
        raise PilotageError("BAD_SETTINGS", f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _stay_on_one_core(number: int) -> None:
    """Keep the threads of this worker on one core, workers taking turns.

    Only one thread of a Python process runs at a time; when they run on several cores in turn, handing over from one to the
    next costs as much again as the request itself (measured on two virtual cores: 0.75 ms against 0.42 ms).
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


def _name(path: Path | None) -> str | None:
    return str(path) if path else None


class _Logger(glogging.Logger):
    """gunicorn's own lines go where ours go, in our format; no access log."""

    def setup(self, cfg: Any) -> None:
        self.error_log.handlers = []
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Arbiter(Arbiter):
    """gunicorn's main process, which looks after the waiting process as it does after its workers."""

    def __init__(self, app: BaseApplication, waiting: WaitingProcess) -> None:
        super().__init__(app)
        self._waiting = waiting

    def manage_workers(self) -> None:
        super().manage_workers()
        self._waiting.keep()

    def stop(self, graceful: bool = True) -> None:
        self._waiting.stop()
        super().stop(graceful)


class _Gunicorn(BaseApplication):
    """gunicorn with our settings; each worker opens its own database after the fork and runs the daemons."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        url: str,
        listener: socket.socket,
        waiting: WaitingProcess,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._url = url
        self._listener = listener
        self._waiting = waiting
        self._relay: Relay | None = None
        self._core: Core | None = None
        self._daemons: Daemons | None = None
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        is_sqlite = self._url.startswith("sqlite:")
        options: dict[str, Any] = {
            "bind": f"fd://{self._listener.detach()}",
            "worker_class": "server.http.worker.Worker",
            "workers": 1 if is_sqlite else settings.integer("server", "workers"),
            "threads": settings.integer("server", "threads"),
            "keepalive": 75,
            "graceful_timeout": 10,
            "timeout": 60,
            "proc_name": "pilotage-server",
            "control_socket_disable": True,
            "limit_request_line": 8190,
            "limit_request_fields": 100,
            "logger_class": _Logger,
            "certfile": _name(settings.optional_path("server", "certfile")),
            "keyfile": _name(settings.optional_path("server", "keyfile")),
            "when_ready": self._ready,
            "post_fork": self._forked,
            "post_worker_init": self._worker_started,
            "worker_exit": self._worker_ended,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def run(self) -> None:
        _Arbiter(self, self._waiting).run()

    def load(self) -> Callable[..., Any]:
        core = open_core(self._settings, self._directory, self._url)
        self._core = dataclasses.replace(core, waiting=self._waiting.waiting)
        return create_app(self._core)

    def _ready(self, arbiter: Any) -> None:
        # One worker on SQLite is one writer, and the listener cannot be bound anew: gunicorn's own signals for more workers,
        # another binary and a reload must not act; a terminal that is closed ends the server in order.
        for number in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, lambda number, frame: arbiter.signal(signal.SIGTERM, frame))
        host, port = arbiter.LISTENERS[0].sock.getsockname()[:2]
        scheme = "https" if self._settings.optional_path("server", "certfile") else "http"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        state_directory.write_running(self._directory, url, self._url)
        logger.info("the server is ready", extra={"url": url, "state": str(self._directory)})

    def _forked(self, arbiter: Any, worker: Any) -> None:
        # A server that is killed is gone at once: nobody else may start while a worker of it has the state directory.
        end_with(arbiter.pid, signal.SIGKILL)
        self._waiting.forget()

    def _worker_started(self, worker: Any) -> None:
        if self._settings.flag("server", "one_core_per_worker"):
            _stay_on_one_core(worker.age)
        if self._core is not None:
            self._daemons = Daemons(self._core)
            self._daemons.start()
            if not self._core.database.is_sqlite:
                from server.waiting.relay import Relay  # psycopg, which an installation on SQLite has not

                self._relay = Relay(self._url, self._directory)
                self._relay.start()

    def _worker_ended(self, arbiter: Any, worker: Any) -> None:
        if self._relay is not None:
            self._relay.stop()
        if self._daemons is not None:
            self._daemons.stop()
        if self._core is not None:
            self._core.database.close()
