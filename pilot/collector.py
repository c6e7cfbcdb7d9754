"""Where reports about nodes and jobs are gathered, beside the server: JSON posted to an address, as Elasticsearch takes it.

Nothing depends on it: a collector that is away costs a warning. Of its answer the status alone is read.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Collection, Mapping
from typing import Any, Optional
from urllib.parse import urlsplit

from protocol.redaction import one_line, redact

logger = logging.getLogger(__name__)

LARGEST_REPORT = 1024 * 1024
MOST_WAITING = 100
"""Of more the newest are dropped: the collector is slow or dead."""


def described(report: Mapping[str, Any], leave_out: Collection[str] = (), **more: Any) -> dict[str, Any]:
    """A dictionary with more facts in it, and without those that are not wanted."""
    return {name: value for name, value in {**report, **more}.items() if name not in leave_out}


def send(
    report: Mapping[str, Any],
    url: str,
    token: str = "",
    timeout_seconds: float = 10.0,
    tls: Optional[ssl.SSLContext] = None,
) -> str:
    """Post one report; "" when it was taken, else why not, in words. Redirections are not followed: the token is for this address."""
    body = json.dumps(report).encode("ascii")
    if len(body) > LARGEST_REPORT:
        return f"the report has more than {LARGEST_REPORT // 1024} KiB"
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = _connection(parts.scheme, parts.hostname or "", parts.port, timeout_seconds, tls)
        status = _post(connection, target, body, headers, timeout_seconds)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return one_line(redact(f"{type(error).__name__}: {error}"))[:300]
    return "" if 200 <= status < 300 else f"it answered {status}"


def _connection(
    scheme: str, host: str, port: Optional[int], seconds: float, tls: Optional[ssl.SSLContext]
) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(
            host, port, timeout=seconds, context=tls or ssl.create_default_context()
        )
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=seconds)
    raise ValueError("the address of a collector begins with http:// or https://")


def _post(
    connection: http.client.HTTPConnection, target: str, body: bytes, headers: dict[str, str], seconds: float
) -> int:
    """The status. The time is for all of it: an answer that comes byte by byte is cut off."""
    cutter = threading.Timer(seconds, _cut, (connection,))
    cutter.daemon = True  # it has nothing to finish
    with contextlib.closing(connection):
        cutter.start()
        try:
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
        finally:
            cutter.cancel()


def _cut(connection: http.client.HTTPConnection) -> None:
    found = connection.sock
    if found is not None:
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


class Collector:
    """One address, and the reports that are on their way there; `run` is a control of the pilot."""

    def __init__(
        self, url: str, token: str = "", timeout_seconds: float = 10.0, tls: Optional[ssl.SSLContext] = None
    ) -> None:
        self.url = url
        self._token = token
        self._timeout = timeout_seconds
        self._tls = tls
        self._waiting: queue.SimpleQueue[Optional[Mapping[str, Any]]] = queue.SimpleQueue()

    def offer(self, report: Mapping[str, Any]) -> None:
        """It is posted soon; the caller does not wait."""
        if self._waiting.qsize() >= MOST_WAITING:
            logger.warning("a report is dropped: the collector takes none")
        else:
            self._waiting.put(report)

    def send(self, report: Mapping[str, Any]) -> str:
        """Now; "" when it was taken, else why not."""
        return send(report, self.url, self._token, self._timeout, self._tls)

    def run(self) -> None:
        """Until it is closed, and what was offered before is posted."""
        while True:
            report = self._waiting.get()
            if report is None:
                return
            why_not = self.send(report)
            if why_not:
                logger.warning(
                    "the collector did not take a report",
                    extra={"collector": redact(self.url), "reason": why_not},
                )
            else:
                logger.info("the collector took a report", extra={"collector": redact(self.url)})

    def close(self) -> None:
        self._waiting.put(None)
