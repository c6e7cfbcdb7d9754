"""XRootD as Debian packs it: root: and http: on one port, checksums, and a directory that nobody may use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Optional

from tests.storages.base import Storage, free_port
from tests.waiting import wait_until

PROGRAMS = ("xrootd", "xrdcp", "xrdfs")
CONFIG = """\
xrd.port {port}
xrd.network nodnr
all.adminpath {place}/admin
all.pidpath {place}/admin
oss.localroot {place}/data
all.export /store
xrootd.chksum max 50 adler32 md5 crc32c
xrootd.seclib libXrdSec.so
sec.protocol unix
ofs.authorize 1
acc.authdb {place}/rights
xrd.protocol http:{port} libXrdHttp.so
http.listingdeny no
"""
# 50 checksums at once: over http it does not answer at all who comes while all are busy (2 is usual).
RIGHTS = "u * /store/closed -rwild /store a\n"


def missing() -> Optional[str]:
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not on PATH: {', '.join(absent)}"
    return None if os.getuid() == 0 else "xrootd is started by root, and becomes another account"


@contextmanager
def server(place: Path) -> Iterator[int]:
    """Its port; its files lie in `place`/data/store."""
    port = free_port()
    for name in ("data/store", "admin", "logs"):
        (place / name).mkdir(parents=True)
    (place / "x.cfg").write_text(CONFIG.format(port=port, place=place))
    (place / "rights").write_text(RIGHTS)
    subprocess.run(["chown", "-R", "xrootd:", str(place)], check=True)
    try:
        start(place, port)
        yield port
    finally:
        kill(place)


def start(place: Path, port: int) -> None:
    """Also again, after it was killed."""
    command = ["xrootd", "-R", "xrootd", "-n", "t", "-b", "-c", f"{place}/x.cfg"]
    command += ["-l", f"{place}/logs/log", "-s", f"{place}/pid"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    wait_until(lambda: _answers(port), 30, f"xrootd on port {port}")


def kill(place: Path) -> None:
    for pid in pids(place):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def running(place: Path) -> Iterator[Storage]:
    with server(place) as port:
        root = f"root://127.0.0.1:{port}//store/"
        yield Storage(
            tool="xrdcp",
            root=root,
            directory=place / "data/store",
            options={"connect_seconds": "2", "silent_seconds": "15"},
            port=port,
            pids=lambda: pids(place),
            refused=f"{root}closed/",
        )


@contextmanager
def over_http(place: Path) -> Iterator[Storage]:
    with running(place) as storage:
        root = f"http://127.0.0.1:{storage.port}/store/"
        yield replace(storage, tool="http", root=root, refused=f"{root}closed/", never_replaces=False)


def pids(place: Path) -> List[int]:
    """None if it was never started."""
    with suppress(FileNotFoundError):
        return [int("".join(filter(str.isdigit, (place / "pid").read_text())))]
    return []


def _answers(port: int) -> bool:
    command = ["xrdfs", f"root://127.0.0.1:{port}", "query", "config", "version"]
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, check=False, timeout=2).returncode == 0
    return False
