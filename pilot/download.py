"""Fetch one file from the web that a user named: bounded in time and size, and from no address where a machine keeps its secrets.

No proxy is used, and nothing is shown to the other side that says who the pilot is.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple, Union
from urllib.parse import SplitResult, urljoin, urlsplit

from pilot.server_client import user_agent
from protocol.connections import ended_in_time, reach
from protocol.errors import PilotageError
from protocol.redaction import one_line, redact

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
BLOCK = 1 << 18


class Bounds(NamedTuple):
    """What one download may take."""

    largest: int
    """Bytes."""
    seconds: float
    """In all."""
    connect_seconds: float
    silent_seconds: float
    """Between two pieces."""


class TooLarge(Exception):
    """There is more than is allowed; in words."""


def fetch(url: str, to: Path, bounds: Bounds, is_over: Callable[[], bool] = lambda: False) -> None:
    """Write what the URL gives into a new file; what is not whole stays behind.

    SOFTWARE_NOT_FETCHED if it cannot be had, also soon after `is_over` says yes; BAD_PATH where nobody may fetch; TooLarge; OSError
    if the file cannot be written.
    """
    end = time.monotonic() + bounds.seconds
    for _ in range(MOST_REDIRECTS + 1):
        parts = _parts(url)
        with _reached(parts, bounds, end, is_over) as connection:
            response = _asked(connection, parts)
            if response.status in REDIRECTS:
                url = _joined(url, response.headers.get("Location") or "")
                continue
            if response.status != 200:
                raise _failed(url, f"HTTP status {response.status}")
            _write(response, to, bounds.largest)
        return
    raise _failed(url, f"more than {MOST_REDIRECTS} redirections")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _failed(url, f"a redirection to {shown(location)}: {error}") from None


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{shown(url)}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PilotageError("BAD_PATH", f"{shown(url)} is no address of the web")
    return parts


@contextmanager
def _reached(
    parts: SplitResult, bounds: Bounds, end: float, is_over: Callable[[], bool]
) -> Iterator[http.client.HTTPConnection]:
    """A connection that ends in time, whatever the other side does; what goes wrong with it is SOFTWARE_NOT_FETCHED."""
    host, url = parts.hostname or "", parts.geturl()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        sock = reach(host, port, min(bounds.connect_seconds, _left(end)))
    except OSError as error:
        raise _failed(url, error) from None
    sock.settimeout(min(bounds.silent_seconds, _left(end)))
    if parts.scheme == "https":
        context = ssl.create_default_context()
        sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    connection = http.client.HTTPConnection(host, port)
    with contextlib.closing(sock), ended_in_time(sock, lambda: time.monotonic() >= end or is_over()):
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection.sock = sock
            yield connection
            if time.monotonic() >= end:  # then what seems to be whole was cut, perhaps
                raise _NetworkError
        except (
            _NetworkError,
            http.client.HTTPException,
            ssl.SSLError,
            socket.timeout,
            ConnectionError,
        ) as error:
            late = time.monotonic() >= end
            raise _failed(url, f"not there within {bounds.seconds:g} s" if late else error) from None


class _NetworkError(Exception):
    """Reading failed; writing to the node's disk would be another matter."""


def _asked(connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {
        "User-Agent": user_agent(),
        "Host": parts.netloc,
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse()
    except (OSError, ValueError) as error:
        raise _NetworkError(one_line(str(error))) from None


def _write(response: http.client.HTTPResponse, to: Path, largest: int) -> None:
    announced, size = response.length, 0
    if announced is not None and announced > largest:
        raise TooLarge(f"has {announced} bytes; {largest} are allowed")
    with open(to, "xb") as file:
        while piece := _read(response):
            size += len(piece)
            if size > largest:
                raise TooLarge(f"has more than {largest} bytes")
            file.write(piece)
    if announced is not None and size != announced:
        raise _NetworkError(f"it ended after {size} of {announced} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK)
    except (OSError, ValueError) as error:
        raise _NetworkError(one_line(str(error))) from None


def _left(end: float) -> float:
    return max(0.1, end - time.monotonic())


def _failed(url: str, why: Union[str, Exception]) -> PilotageError:
    return PilotageError("SOFTWARE_NOT_FETCHED", f"{shown(url)}: {one_line(str(why))}")


def shown(url: str) -> str:
    """As messages may have it."""
    return one_line(redact(url[:500]))
