"""What the conformance tests know of a storage: how to name a file there, how to look behind it, and how to make it fail."""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional
from urllib.parse import quote

from tests.waiting import wait_until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class Storage:
    """A running storage server, and the copytool that is tested with it."""

    tool: str
    """Name of the copytool."""
    root: str
    """URL below which names of files are put, ending in /."""
    directory: Path
    """Where the server keeps the files under their names; see `files`, if it does not."""
    options: Dict[str, str]
    """Of the copytool."""
    port: int
    pids: Callable[[], List[int]]
    """Processes of the server, to be stopped and continued."""
    tells_checksum: bool = True
    """It calculates checksums of what it has."""
    most_mib: int = 4096
    """The largest file that it takes in minutes."""
    never_replaces: bool = True
    """It refuses to put a file over another one, also where somebody was faster than us by a moment."""
    refused: Optional[str] = None
    """A URL, ending in /, where our credentials give no right to read or write. None: this storage knows no rights."""
    refused_options: Dict[str, str] = field(default_factory=dict)
    """Options with which it is refused."""

    def url(self, name: str) -> str:
        return f"{self.root}{quote(name)}"

    def through(self, port: int) -> str:
        """The root by another port: of a proxy, or where nobody listens."""
        return self.root.replace(f":{self.port}/", f":{port}/")

    def options_through(self, port: int) -> Dict[str, str]:
        """The options of the copytool for files at `through(port)`."""
        return self.options

    # -- behind the server's back: overwritten where it does not keep plain files -------------------------------------------

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)

    def files(self) -> Mapping[str, int]:
        """Name → size of all that is there, what is hidden and what is unfinished too."""
        found = (path for path in self.directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.directory)): path.stat().st_size for path in found}

    def clear(self) -> None:
        for path in sorted(self.directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    # -- trouble ------------------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)
        wait_until(lambda: all(map(_is_stopped, self.pids())), 20, "a storage that stands still")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise


def _is_stopped(pid: int) -> bool:
    """With all its threads: each stops when it notices."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(text.rpartition(")")[2].split()[0] in "TZX" for text in stats)
