"""Which addresses of files may be registered: a pilot will read from there with the rights of its node."""

from __future__ import annotations

import functools
import ipaddress
import os.path
import re
import socket
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from protocol import addresses
from protocol.errors import PilotageError
from protocol.redaction import redact

URL_SCHEMES = (
    *(
        "file",
        "root",
        "roots",
        "xroot",
        "xroots",
        "http",
        "https",
        "dav",
        "davs",
        "s3",
        "gs",
        "srm",
        "gsiftp",
    ),
    "null",
)
"""What files may be registered with unless the operator says otherwise."""
CLOSED_PATHS = ("/etc", "/proc", "/sys", "/dev", "/boot", "/run/secrets", "/var/run", "/var/spool")
"""Where a system keeps its own, and nobody's data."""
OPEN_PATHS = ("/dev/shm",)
"""Nevertheless data: memory that is used as a disk."""
CLOSED_NAMES = frozenset((".ssh", ".gnupg", ".aws", ".globus", ".kube", ".netrc", ".pgpass"))
"""Directories and files, anywhere, in which people keep their keys."""
_CLOSED = tuple(f"{path}/" for path in CLOSED_PATHS)
_OPEN = tuple(f"{path}/" for path in OPEN_PATHS)
_UNWRITTEN = re.compile(r"[\x00-\x20\x7f\\]")
CLOSED_HOSTS = frozenset(("metadata", "metadata.google.internal", "instance-data"))


def check_url(url: str, schemes: Sequence[str] = URL_SCHEMES, allowed_paths: Sequence[str] = ()) -> None:
    """BAD_PATH, with what would be right, unless a file may be registered with this address."""
    try:
        _check(url, schemes, allowed_paths)
    except ValueError as error:
        detail = str(error).replace("{url}", ascii(redact(url[:200])))
        raise PilotageError("BAD_PATH", detail) from None


def _check(url: str, schemes: Sequence[str], allowed_paths: Sequence[str]) -> None:
    """A ValueError says why not; it stands for the URL with {url}, which may hold a secret."""
    if _UNWRITTEN.search(url):
        raise ValueError("{url} contains a blank, a control character or a backslash; write them as %20, ...")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{{url}} is no URL: {error}") from None
    if "@" in parts.netloc:
        raise ValueError("the URL contains a user or a password; the nodes have credentials of their own")
    if not parts.scheme or (parts.scheme != "file" and "://" not in url):
        raise ValueError("{url} is no URL; a file of this machine is file:///its/path")
    if parts.scheme not in schemes:
        raise ValueError(
            f"{{url}}: {parts.scheme[:40]} is no scheme of this server; there are {', '.join(schemes)}"
        )
    if parts.scheme == "file":
        _check_path(parts, allowed_paths)
    else:
        _check_host(parts)


def _check_path(parts: SplitResult, allowed_paths: Sequence[str]) -> None:
    if parts.netloc not in ("", "localhost"):
        raise ValueError("{url} is no file: URL of this node")
    written = unquote(parts.path) if "%" in parts.path else parts.path
    names = written.split("/")
    if ".." in names or "\0" in written:
        raise ValueError("{url} leaves its directory")
    if not CLOSED_NAMES.isdisjoint(names):
        raise ValueError("{url} is where people keep their keys, and not to be registered")
    path = os.path.normpath(f"/{written.lstrip('/')}")
    if path == "/":
        raise ValueError("{url} names no file")
    if not written.startswith("/"):
        return  # below the data root of each node, which its own settings name
    if allowed_paths:
        if not any(_is_below(path, directory) for directory in allowed_paths):
            raise ValueError(
                f"{{url}} is not below {' or '.join(allowed_paths)}, where files may be registered"
            )
    elif f"{path}/".startswith(_CLOSED) and not path.startswith(_OPEN):
        raise ValueError("{url} belongs to the system; the operator may allow it: [catalogue] allowed_paths")


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(os.path.normpath(directory).rstrip("/") + "/")


def _check_host(parts: SplitResult) -> None:
    host = (parts.hostname or "").rstrip(".")
    if not host:
        raise ValueError("{url} names no host")
    if _is_closed(host):
        raise ValueError(f"{{url}}: files cannot be registered from {host}, an address for machines' own use")


@functools.lru_cache(maxsize=1024)
def _is_closed(host: str) -> bool:
    address = _as_address(host)
    return host in CLOSED_HOSTS or (address is not None and addresses.is_closed(address))


def _as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host name spells, in any of the ways that programs take; None if it is a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))  # 0xA9FEA9FE, 2852039166, 169.254.43518
        except OSError:
            return None
