"""The pilot as one file: a zip archive of our three packages and the pure-Python libraries they need, for any node's Python.

A node needs nothing but a Python from 3.9 on: no pip, no network but this server. The libraries come from this server's own
environment, whose versions are held to those that still run on 3.9.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import tempfile
import zipfile
from pathlib import Path

from packaging.specifiers import SpecifierSet

from protocol.errors import PilotageError

OLDEST_PYTHON = "3.9.0"
OURS = ("protocol", "copytools", "pilot")
LIBRARIES = ("click", "urllib3", "filelock")
FILE_NAME = "pilot.pyz"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = b"""import sys

if sys.version_info < (3, 9):
    sys.stderr.write("A pilot needs Python 3.9 or newer; %s is %s.\\n" % (sys.executable, sys.version.split()[0]))
    sys.exit(69)

from pilot.cli import main

main()
"""


def path(state_directory: Path) -> Path:
    """The file that the server made at its start."""
    return state_directory / FILE_NAME


@functools.lru_cache(maxsize=8)
def _digest(name: str, size: int, changed_ns: int) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def digest(file: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    status = file.stat()
    return _digest(str(file), status.st_size, status.st_mtime_ns)


def build(target: Path) -> None:
    """Write the archive: the same bytes for the same sources; complete under its name or not there at all."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".building-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                _add(archive, "__main__.py", _MAIN)
                for package in OURS:
                    root = Path(__file__).resolve().parent.parent / package
                    for source in sorted((*root.rglob("*.py"), *root.rglob("*.ini"))):
                        _add(archive, f"{package}/{source.relative_to(root)}", source.read_bytes())
                for library in LIBRARIES:
                    _add_library(archive, library)
        os.chmod(name, 0o644)
        os.rename(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _add_library(archive: zipfile.ZipFile, name: str) -> None:
    """The Python files of an installed library and its licence; refused if it does not run on the oldest Python.

    Its metadata come too: a dist-info without them makes importlib.metadata fail for everybody on that node.
    """
    library = importlib.metadata.distribution(name)
    wanted = library.metadata.get("Requires-Python", "")  # type: ignore[attr-defined]
    if wanted and OLDEST_PYTHON not in SpecifierSet(wanted):
        raise PilotageError(
            "SERVER_ERROR",
            f"{name} {library.version} needs Python {wanted}; the pilot must run on {OLDEST_PYTHON}",
        )
    if not library.files:
        raise PilotageError(
            "SERVER_ERROR",
            f"{name} {library.version} does not tell its files, so the pilot cannot carry it: install it with pip",
        )
    for entry in sorted(library.files, key=str):
        keep = entry.suffix == ".py" or entry.name.upper().startswith(("LICENSE", "LICENCE", "METADATA"))
        if keep and ".." not in entry.parts:
            _add(archive, str(entry), Path(str(entry.locate())).read_bytes())
