"""The directory in which one server keeps its state: locked while it runs, private to its owner, on a disk of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from protocol.errors import PilotageError
from protocol.redaction import HIDDEN
from protocol.values import without_password

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "9p",
        "fuse.sshfs",
        "glusterfs",
        "fuse.glusterfs",
    }
)
"""Where SQLite's locks and write-ahead log cannot be trusted."""

RUNNING = "server.json"
ELSEWHERE = "database.url"
"""Names the database, without its password, if it is not the one in the directory; not there if it is."""
MOUNTS = Path("/proc/self/mounts")
"""The kernel's mount table: a line per mount, the later one on top."""


@dataclass(frozen=True)
class Running:
    """What a running server says of itself; the start time tells it from a later process with the same number."""

    url: str
    pid: int
    start_time: int
    database: str
    """As `named` says it."""


def prepare(directory: Path) -> Path:
    """Make the directory if need be; refuse one that is not fit with the reason."""
    directory = directory.expanduser().absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise PilotageError("STATE_DIRECTORY_UNFIT", f"{directory}: {error.strerror}") from None
    if directory.stat().st_mode & 0o002:
        raise PilotageError(
            "STATE_DIRECTORY_UNFIT", f"everybody may write to {directory}: chmod o-w {directory}"
        )
    kind = _file_system(directory.resolve())
    if kind in NETWORK_FILE_SYSTEMS:
        raise PilotageError(
            "STATE_DIRECTORY_UNFIT",
            f"{directory} lies on a network file system ({kind}), where SQLite loses data; use a local disk",
        )
    return directory


def _file_system(directory: Path) -> str:
    """The type of the file system, as the kernel's mount table names it."""
    best, kind = -1, ""
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, mount_point, file_system, *_ = line.split(" ")
        # Blanks and the like stand there as octal numbers.
        mount_point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), mount_point)
        if Path(mount_point) in (directory, *directory.parents) and len(mount_point) >= best:
            best, kind = len(mount_point), file_system
    return kind


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory; STATE_DIRECTORY_IN_USE if another server does. The lock goes with the process, however it ends.

    The kernel's own lock, and never unlocked but by closing: a forked worker that ends must not unlock its parent's.
    """
    owner = os.getpid()
    descriptor = os.open(directory / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        running = read_running(directory)
        who = f"process {running.pid} at {running.url}" if running else "another process"
        raise PilotageError(
            "STATE_DIRECTORY_IN_USE",
            f"{directory} is in use by {who}",
            advice=f"stop it first: pilotage server stop --state {shlex.quote(str(directory))}",
        ) from None
    try:
        yield
    finally:
        if os.getpid() == owner:
            (directory / RUNNING).unlink(missing_ok=True)
        os.close(descriptor)


# -- its database -----------------------------------------------------------------------------------------------------------


def sqlite_path(url: str) -> Path:
    return Path("/" + url.removeprefix("sqlite:").lstrip("/"))


def named(url: str) -> str:
    """A database's address without its password; without its parameters too if these hold one."""
    shown = without_password(url)
    return without_password(url.partition("?")[0]) if shown == HIDDEN else shown


def own_database(directory: Path) -> str:
    """The address of the one in the directory, which is SQLite."""
    return f"sqlite:///{directory}/pilotage.db"


def database_url(directory: Path, chosen: str = "") -> str:
    """The address of the database: the chosen one, else SQLite in the directory.

    OTHER_DATABASE if none is chosen and the server has moved to another one: both would give the same numbers.
    """
    if chosen:
        return chosen
    own = own_database(directory)
    try:
        elsewhere = (directory / ELSEWHERE).read_text().strip()
    except FileNotFoundError:
        return own
    raise PilotageError(
        "OTHER_DATABASE",
        f"{elsewhere}, and not {own}",
        advice=f"give that address with --database, or as [database] url in server.ini; to go back: --database {own}",
    )


def note_database(directory: Path, url: str) -> None:
    """From now on the server of this directory works on this database."""
    own = sqlite_path(own_database(directory))
    if url.startswith("sqlite:") and sqlite_path(url).resolve() == own.resolve():
        (directory / ELSEWHERE).unlink(missing_ok=True)
    else:
        _put(directory / ELSEWHERE, named(url))


def _put(path: Path, text: str) -> None:
    """Write a line in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n")
    temporary.rename(path)


# -- who runs ---------------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since boot; None if there is none or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def write_running(directory: Path, url: str, database: str) -> None:
    running = Running(url, os.getpid(), start_time(os.getpid()) or 0, named(database))
    _put(directory / RUNNING, json.dumps(asdict(running)))


def read_running(directory: Path) -> Running | None:
    """The server that works in this directory now, if there is one."""
    try:
        running = Running(**json.loads((directory / RUNNING).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return running if start_time(running.pid) == running.start_time else None
