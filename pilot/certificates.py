"""Whom the pilot trusts to be the server, and as whom it shows itself: where the certificates are looked for, in which order.

CA file: --cacert, then X509_USER_PROXY, then /tmp/x509up_uUID. CA directory: --capath, then X509_CERT_DIR, then
/etc/grid-security/certificates. The first that is there counts. What was named by --cacert or --capath takes the place of the
system's authorities; what was found by the other steps is trusted beside them. A proxy file that holds its private key is the
pilot's own certificate too. Servers are always verified.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from protocol.errors import PilotageError

logger = logging.getLogger(__name__)

PROXY, DIRECTORY = "X509_USER_PROXY", "X509_CERT_DIR"
GRID_DIRECTORY = Path("/etc/grid-security/certificates")
TEMPORARY = Path("/tmp")


@dataclass(frozen=True)
class Trust:
    """The outcome of the search, with the step that each part comes from, for the log."""

    ca_file: Optional[Path] = None
    ca_path: Optional[Path] = None
    client_file: Optional[Path] = None
    origin: str = "the system's certificates"
    instead_of_system: bool = False


def search(
    ca_file: Optional[Path],
    ca_path: Optional[Path],
    environ: Mapping[str, str],
    uid: int,
    temporary: Path = TEMPORARY,
    grid_directory: Path = GRID_DIRECTORY,
) -> Trust:
    """BAD_SETTINGS if what an option or variable names is not there; a step that nobody asked for may fail in silence."""
    file, file_origin = _file(ca_file, environ, temporary / f"x509up_u{uid}", uid)
    directory, directory_origin = _directory(ca_path, environ, grid_directory)
    client = file if file is not None and file != ca_file and _has_key(file) else None
    origins = [origin for origin in (file_origin, directory_origin) if origin]
    return Trust(file, directory, client, " and ".join(origins) or Trust.origin, bool(ca_file or ca_path))


def context(trust: Trust) -> ssl.SSLContext:
    """What a connection is made with."""
    made = ssl.create_default_context() if not trust.instead_of_system else _without_system()
    try:
        if trust.ca_file or trust.ca_path:
            made.load_verify_locations(trust.ca_file, trust.ca_path)
        if trust.client_file:
            made.load_cert_chain(trust.client_file)
    except (OSError, ssl.SSLError) as error:
        raise PilotageError("BAD_SETTINGS", f"{trust.origin}: no usable certificate: {error}") from None
    return made


def _without_system() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def _file(
    given: Optional[Path], environ: Mapping[str, str], usual: Path, uid: int
) -> tuple[Optional[Path], str]:
    if given:
        return _must_be(given.is_file(), given, "--cacert", "file"), "--cacert"
    if environ.get(PROXY):
        path = Path(environ[PROXY])
        return _must_be(path.is_file(), path, PROXY, "file"), PROXY
    # Anybody may put a file of that name into /tmp, and with it an authority of his own.
    if _is_private(usual, uid):
        return usual, str(usual)
    return None, ""


def _directory(given: Optional[Path], environ: Mapping[str, str], usual: Path) -> tuple[Optional[Path], str]:
    if given:
        return _must_be(given.is_dir(), given, "--capath", "directory"), "--capath"
    if environ.get(DIRECTORY):
        path = Path(environ[DIRECTORY])
        return _must_be(path.is_dir(), path, DIRECTORY, "directory"), DIRECTORY
    return (usual, str(usual)) if usual.is_dir() else (None, "")


def _must_be(there: bool, path: Path, step: str, what: str) -> Path:
    if not there:
        raise PilotageError("BAD_SETTINGS", f"{step} names {path}, and there is no such {what}")
    return path


def _is_private(path: Path, uid: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
        logger.warning(
            "a user proxy file is not trusted: it is not a plain file of ours alone",
            extra={"file": str(path)},
        )
        return False
    return os.access(path, os.R_OK)


def _has_key(path: Path) -> bool:
    try:
        return b"PRIVATE KEY-----" in path.read_bytes()
    except OSError:
        return False
