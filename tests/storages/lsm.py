"""A site's own commands, as shell scripts around curl, before the http: of a real XRootD."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator

from tests.storages import xrootd
from tests.storages.base import Storage

COMMON = """\
#!/bin/sh
# Asks by HTTP, and ends with codes of its own.
set -u
ask() { # CURL-OPTION... URL
    answer=$(curl -sS --connect-timeout 2 -w '%{http_code} %header{content-length} %header{digest}' "$@")
    case $? in
        0) ;;
        7) exit 51 ;;
        23) exit 28 ;;
        *) exit 5 ;;
    esac
    case $answer in
        2*) ;;
        403*) exit 52 ;;
        404*) exit 2 ;;
        *) echo "HTTP $answer" >&2; exit 5 ;;
    esac
}
"""
SCRIPTS: Dict[str, str] = {
    "get": 'ask -o "$2" -- "$1"',
    "put": '(ask -I -o /dev/null -- "$2") && exit 17; ask -o /dev/null -T "$1" -- "$2"',
    "stat": 'ask -I -o /dev/null -- "$1"; set -- $answer; echo "$2"',
    "checksum": 'ask -I -H "Want-Digest: adler32" -o /dev/null -- "$1"; echo "${answer##*=}"',
    "remove": 'ask -X DELETE -o /dev/null -- "$1"',
}
ARGUMENTS = {"get": "{url} {local}", "put": "{local} {url}"}


def options(place: Path) -> Dict[str, str]:
    """The section [copytool:lsm] for scripts that are made in this directory."""
    found = {
        "schemes": "http",
        "checksum_algorithm": "adler32",
        "exit_codes": "2:ENOENT, 5:EIO, 17:EEXIST, 28:ENOSPC, 51:EHOSTUNREACH, 52:EKEYREJECTED",
    }
    place.mkdir()
    for name, script in SCRIPTS.items():
        path = place / f"site {name}"
        path.write_text(f"{COMMON}{script}\n")
        path.chmod(0o755)
        found[f"{name}_command"] = f"{shlex.quote(str(path))} {ARGUMENTS.get(name, '{url}')}"
    return found


@contextmanager
def running(place: Path) -> Iterator[Storage]:
    with xrootd.server(place / "server") as port:
        root = f"http://127.0.0.1:{port}/store/"
        yield Storage(
            tool="lsm",
            root=root,
            directory=place / "server/data/store",
            options=options(place / "commands"),
            port=port,
            pids=lambda: xrootd.pids(place / "server"),
            refused=f"{root}closed/",
        )
