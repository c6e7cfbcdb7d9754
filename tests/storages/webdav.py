"""wsgidav, a WebDAV server in Python: it calculates no checksums, and wants directories to be made first."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from tests.storages.base import Storage, answers, free_port
from tests.waiting import wait_until


def missing() -> Optional[str]:
    return None if importlib.util.find_spec("wsgidav") else "Python package wsgidav is not installed"


@contextmanager
def running(place: Path) -> Iterator[Storage]:
    port, directory = free_port(), place / "files"
    directory.mkdir()
    command = [sys.executable, "-m", "wsgidav.server.server_cli", "--host=127.0.0.1", f"--port={port}"]
    command += [f"--root={directory}", "--auth=anonymous", "--server=cheroot", "--no-config"]
    with open(place / "log", "wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place)
    try:
        wait_until(lambda: answers(port), 30, f"wsgidav on port {port}")
        yield Storage(
            tool="http",
            root=f"dav://127.0.0.1:{port}/",
            directory=directory,
            options={"connect_seconds": "2", "silent_seconds": "15"},
            port=port,
            pids=lambda: [server.pid],
            tells_checksum=False,
            never_replaces=False,
        )
    finally:
        server.kill()
        server.wait()
