"""A Postgres for a benchmark: an own cluster in a temporary directory, durable as in life, or databases on a given server."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from protocol.errors import PilotageError

START_SECONDS = 30
SETTINGS = (
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "shared_buffers=1GB",
    "max_wal_size=8GB",
    "max_connections=200",
)
"""As an operator would set a small machine; nothing that makes an answer less durable."""


def end_with_parent() -> None:
    """For a new process: the kernel ends it in order when the benchmark dies, however it dies (1 is PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def binaries() -> Path | None:
    """The directory with initdb and postgres: Debian's, the newest, or the one on PATH."""

    def version(directory: Path) -> int:
        return int(re.sub(r"\D", "", directory.parent.name) or 0)

    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    on_path = shutil.which("initdb")
    for directory in (*debian, *([Path(on_path).resolve().parent] if on_path else [])):
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    return None


class Postgres:
    """Makes empty databases; `pid` is the postmaster's where it runs on this machine."""

    def __init__(self, url: str, pid: int | None, is_own: bool = False) -> None:
        self.url = url
        self.pid = pid
        self.is_own = is_own

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def version(self) -> str:
        import psycopg

        with psycopg.connect(self.url) as connection:
            return str(connection.execute("SHOW server_version").fetchall()[0][0])

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """The URL of a new, empty database; it is dropped afterwards, if the whole server is not removed anyway."""
        name = f"{name}_{os.getpid()}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))
        finally:
            if not self.is_own:
                self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def given(url: str) -> Postgres:
    """A server that the operator names; its processes are seen where it runs on this machine."""
    import psycopg

    try:
        with psycopg.connect(url) as connection:
            is_here = connection.info.host.startswith("/") or connection.info.hostaddr in ("127.0.0.1", "::1")
            return Postgres(url, _parent_of_postgres(connection.info.backend_pid) if is_here else None)
    except psycopg.OperationalError as error:
        raise PilotageError("BAD_SETTINGS", f"--database: {error}") from None


def _parent_of_postgres(backend: int) -> int | None:
    try:
        name, _, rest = Path(f"/proc/{backend}/stat").read_text().rpartition(")")
    except OSError:
        return None
    return int(rest.split()[1]) if "postgres" in name else None


@contextlib.contextmanager
def own() -> Iterator[Postgres]:
    """A new cluster, removed afterwards; BAD_SETTINGS where there is no Postgres to start."""
    found = binaries()
    if found is None:
        raise PilotageError(
            "BAD_SETTINGS",
            "there is no initdb in /usr/lib/postgresql or on PATH; install Postgres, or name a server: "
            "--database postgresql://USER@HOST/NAME",
        )
    root = Path(tempfile.mkdtemp(prefix="pilotage-bench-pg-"))
    user = _user()
    # A session of its own: a Ctrl-C at the terminal is for the benchmark, which ends things in order.
    options: dict[str, Any] = {"cwd": root, "stdin": subprocess.DEVNULL, "start_new_session": True}
    if user is not None:
        os.chown(root, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    process = None
    try:
        words: list[Any] = [
            found / "initdb",
            "-D",
            "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
        if done.returncode != 0:
            raise PilotageError("BAD_SETTINGS", f"initdb: {done.stderr[-500:]}")
        port = _free_port()
        with open(root / "log", "wb") as log:
            command: list[Any] = [found / "postgres", "-D", "data"]
            for setting in (
                f"port={port}",
                "listen_addresses=127.0.0.1",
                f"unix_socket_directories={root}",
                *SETTINGS,
            ):
                command += ["-c", setting]
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent, **options)
        server = Postgres(f"postgresql://postgres@127.0.0.1:{port}/postgres", process.pid, is_own=True)
        _wait(server, process, root / "log")
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        shutil.rmtree(root, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Whom to become, since Postgres refuses to run as root; None: oneself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PilotageError("BAD_SETTINGS", "Postgres does not run as root, and there is no user postgres")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(server.url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-500:]
                raise PilotageError("BAD_SETTINGS", f"Postgres does not start: {said}") from None
        time.sleep(0.05)
