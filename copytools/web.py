"""Questions to web servers and their answers: kept connections, redirections, an end in time; what a status means is not told here.

A PUT asks before it sends (Expect: 100-continue), so that a server which hands uploads on to another one can say so first: one that
hangs up in the middle of a file would be misunderstood.
"""

from __future__ import annotations

import errno
import functools
import http.client
import os
import re
import select
import socket
import ssl
import threading
import weakref
from collections import defaultdict
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from copytools.base import Deadline, shown
from copytools.checksum import BLOCK, blocks
from copytools.failures import REFUSED, UNREACHABLE
from copytools.remote import Outgoing
from protocol import __version__
from protocol.connections import ended_in_time, reach
from protocol.errors import PilotageError
from protocol.redaction import one_line, redact

SCHEMES = ("http", "https", "dav", "davs")
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 307, 308)
CONTINUE_SECONDS = 1.0
"""How long a server may think before it says whether it wants the file; then it is sent unasked."""
MOST_IDLE = 16
"""Connections kept, of all servers together: a door may lead to any number of them."""
_KEEP = "/%!$&'()*+,;=:@~-._"
"""Characters of an address that stay as they are."""

HUNG_UP = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
"""While we send: the server has had its last word already, and it can be read."""
_NOT_KNOWN = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
"""What TLS says of a client whose certificate is missing or not accepted."""


# -- addresses --------------------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where a request goes."""

    is_secure: bool
    host: str
    port: int
    target: str
    """Path and query, quoted as HTTP wants it."""

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.is_secure else 'http'}://{self.netloc}{self.target}"


def taken_apart(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{shown(url[:300])} is no URL: {error}") from None
    path = unquote(parts.path)
    if parts.scheme not in SCHEMES or not parts.hostname or not path.strip("/"):
        raise PilotageError("BAD_PATH", f"{shown(url[:300])} names no server or no file: https://HOST/PATH")
    if "@" in parts.netloc:
        raise PilotageError("BAD_PATH", f"{shown(url[:300])}: no user or password in an address")
    if ".." in path.split("/") or any(not each.isprintable() for each in path + parts.query):
        raise PilotageError("BAD_PATH", f"{shown(url[:300])}: no .. or control characters in a name")
    is_secure = parts.scheme in ("https", "davs")
    target = quote(parts.path, safe=_KEEP) + (
        f"?{quote(parts.query, safe=_KEEP + '?')}" if parts.query else ""
    )
    return Address(is_secure, parts.hostname, port or (443 if is_secure else 80), target)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise OSError(errno.EIO, f"a redirection to {shown(location[:300])}: {error}") from None


# -- questions --------------------------------------------------------------------------------------------------------------


class Client:
    """Asks web servers, and keeps connections for the next question. `headers_for` and `tls` are asked for each server."""

    def __init__(
        self,
        connect_seconds: float,
        silent_seconds: float,
        headers_for: Callable[[Address], Mapping[str, str]],
        tls: Callable[[], ssl.SSLContext],
    ) -> None:
        self._connect_seconds = connect_seconds
        self._silent_seconds = silent_seconds
        self._headers_for = headers_for
        self._tls = tls
        self._idle = _Idle()

    @contextmanager
    def asked(
        self,
        method: str,
        url: str,
        deadline: Deadline,
        headers: Mapping[str, str] = {},
        body: Optional[Outgoing] = None,
        silent_too: float = 0.0,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer of the server that has the file, as the redirections tell; `silent_too`: seconds for which it has to work first."""
        address = taken_apart(url)
        for _ in range(MOST_REDIRECTS + 1):
            all_headers = {**headers, **self._headers_for(address)}
            with self._answer(method, address, all_headers, body, deadline, silent_too) as response:
                location = response.getheader("Location")
                if response.status not in REDIRECTS or not location:
                    yield response
                    return
            address = taken_apart(_joined(address.url, location))
        raise OSError(errno.EIO, f"more than {MOST_REDIRECTS} redirections")

    @contextmanager
    def _answer(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str],
        body: Optional[Outgoing],
        deadline: Deadline,
        silent_too: float,
    ) -> Iterator[http.client.HTTPResponse]:
        """Of one server; the connection is kept if it was read to its end."""
        deadline.check()
        connection = self._idle.take(address) or self._connect(address, deadline)
        is_whole = False
        try:
            with ended_in_time(connection.sock, deadline.is_over):
                with _network(deadline):
                    connection.sock.settimeout(self._silent_seconds + silent_too)
                    if isinstance(connection.sock, ssl.SSLSocket):
                        connection.sock.do_handshake()  # if it has not been done
                    response, is_sent = _ask(connection, method, address, headers, body)
                with response:
                    yield response
                    with _network(deadline):
                        if response.length is not None and response.length <= BLOCK:
                            response.read()
                    is_whole = is_sent and response.isclosed() and _may_be_kept(response)
        finally:
            if is_whole:
                self._idle.keep(address, connection)
            else:
                connection.close()

    def _connect(self, address: Address, deadline: Deadline) -> http.client.HTTPConnection:
        seconds = min(self._connect_seconds, max(0.1, deadline.left()))
        with _network(deadline):
            sock = reach(address.host, address.port, seconds)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.is_secure:
                sock = self._tls().wrap_socket(
                    sock, server_hostname=address.host, do_handshake_on_connect=False
                )
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(address.host, address.port)
        connection.sock = sock
        return connection


# -- connections ------------------------------------------------------------------------------------------------------------


class _Idle:
    """Connections that are kept for the next request, by any thread; closed with the tool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Dict[object, List[http.client.HTTPConnection]] = defaultdict(list)
        weakref.finalize(self, _close_all, self._kept)

    def take(self, address: Address) -> Optional[http.client.HTTPConnection]:
        while True:
            with self._lock:
                kept = self._kept[address[:3]]
                if not kept:
                    return None
                connection = kept.pop()
            poll = select.poll()  # select.select knows no descriptor above 1023
            poll.register(connection.sock, select.POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()  # a server that speaks unasked has hung up

    def keep(self, address: Address, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._kept[address[:3]].append(connection)
            if sum(map(len, self._kept.values())) > MOST_IDLE:
                server = next(server for server, kept in self._kept.items() if kept)
                self._kept[server].pop(0).close()
                if not self._kept[server]:
                    del self._kept[server]


def _may_be_kept(response: http.client.HTTPResponse) -> bool:
    """XRootD (seen with 5.5.3) loses requests on connections that are used again, and mixes up its answers."""
    is_xrootd = response.getheader("Server", "").lower().startswith("xrootd")
    return not response.will_close and not is_xrootd


def _close_all(kept: Dict[object, List[http.client.HTTPConnection]]) -> None:
    for connections in kept.values():
        for connection in connections:
            connection.close()


@functools.lru_cache(maxsize=8)
def context(authorities: str, beside: str, cert: str, key: str, changed: Tuple[int, ...]) -> ssl.SSLContext:
    """Made anew when a certificate was renewed: `changed` are the times of its files."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if not authorities:
        made.load_default_certs()
    for place in (authorities, "" if authorities else beside):
        if place:
            made.load_verify_locations(**{"capath" if os.path.isdir(place) else "cafile": place})
    if cert:
        made.load_cert_chain(cert, key)
    return made


# -- one question and its answer ----------------------------------------------------------------------------------------------


class _Response(http.client.HTTPResponse):
    """Tells when the server has said its first word, and whether that is to go on."""

    def __init__(self, on_status: Callable[[int], None], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._on_status = on_status

    def _read_status(self) -> Tuple[str, int, str]:
        answer: Tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        self._on_status(answer[1])
        return answer


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    address: Address,
    headers: Mapping[str, str],
    body: Optional[Outgoing],
) -> Tuple[http.client.HTTPResponse, bool]:
    """The answer, and whether the server got all that was announced to it."""
    connection.response_class = http.client.HTTPResponse
    connection.putrequest(method, address.target, skip_host=True, skip_accept_encoding=True)
    expects = {"Expect": "100-continue"} if body is not None and body.size else {}
    usual = {"Host": address.netloc, "User-Agent": f"pilotage/{__version__}", "Accept-Encoding": "identity"}
    for name, value in {**usual, **headers, **expects}.items():
        connection.putheader(name, value)
    with suppress(*HUNG_UP):
        connection.endheaders()
    if body is None or not body.size:
        return connection.getresponse(), True
    return _sent_when_wanted(connection, body)


def _sent_when_wanted(
    connection: http.client.HTTPConnection, body: Outgoing
) -> Tuple[http.client.HTTPResponse, bool]:
    """Send the file when the server wants it, or says nothing for a while; its answer, and whether it was sent."""
    sock, patience = connection.sock, connection.sock.gettimeout()
    is_sent = False

    def heard(status: int) -> None:
        nonlocal is_sent
        sock.settimeout(patience)
        if status == http.client.CONTINUE and not is_sent:
            is_sent = True
            _send(sock, body)

    connection.response_class = functools.partial(_Response, heard)  # type: ignore[assignment]
    sock.settimeout(CONTINUE_SECONDS)
    try:
        return connection.getresponse(), is_sent
    except socket.timeout:
        if is_sent:
            raise
    heard(http.client.CONTINUE)
    return connection.getresponse(), True


def _send(sock: socket.socket, body: Outgoing) -> None:
    size = 0
    with suppress(*HUNG_UP):
        for block in blocks(body.descriptor, 0, body.size, bytearray(BLOCK)):
            sock.sendall(block)
            size += len(block)
        if size != body.size:
            raise OSError(errno.EBUSY, "the file became shorter while it was sent")


def pieces(response: http.client.HTTPResponse, deadline: Deadline) -> Iterator[bytes]:
    """All of the answer; an OSError if it is cut."""
    while True:
        with _network(deadline):
            block = response.read1(BLOCK)
            if not block and response.length:  # read1 does not tell it
                raise http.client.IncompleteRead(b"", response.length)
            if not block:
                response.close()
                return
        yield block


@contextmanager
def _network(deadline: Deadline) -> Iterator[None]:
    """What fails in here is the network, or its time is over."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        deadline.check()
        refused = isinstance(error, ssl.SSLError) and _NOT_KNOWN.search(str(error.reason))
        said = one_line(redact(str(error))) or type(error).__name__
        raise OSError(REFUSED if refused else UNREACHABLE, said) from None
