"""Files on WebDAV and other web servers: http, https, dav and davs.

A PUT asks before it sends (Expect: 100-continue), so that a server which hands uploads on to another one can say so first.
"""

from __future__ import annotations

import base64
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
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from copytools.base import Checksums, Deadline, Option, Stored, shown
from copytools.checksum import BLOCK, blocks
from copytools.failures import OVERLOADED, REFUSED, UNREACHABLE
from copytools.remote import Outgoing, RemoteTool, private
from protocol import __version__
from protocol.connections import ended_in_time, reach
from protocol.errors import PilotageError
from protocol.files import ALGORITHMS
from protocol.redaction import one_line, redact
from protocol.settings import read_secret
from protocol.values import Bounds, Type, as_text

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 307, 308)
CONTINUE_SECONDS = 1.0
"""How long a server may think before it says whether it wants the file; then it is sent unasked."""
_KEEP = "/%!$&'()*+,;=:@~-._"
"""Characters of an address that stay as they are."""

_ERRNOS = {
    401: REFUSED, 403: REFUSED, 404: errno.ENOENT, 410: errno.ENOENT, 412: errno.EEXIST, 414: errno.ENAMETOOLONG,
    423: errno.EBUSY, 429: OVERLOADED, 502: UNREACHABLE, 503: OVERLOADED, 504: UNREACHABLE, 507: errno.ENOSPC,
}  # fmt: skip
HUNG_UP = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
"""While we send: the server has had its last word already, and it can be read."""
_NOT_KNOWN = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
"""What TLS says of a client whose certificate is missing or not accepted."""
_DIGEST = re.compile(r"\b(adler|adler32|md5)=:?([^,:\s]+)", re.I)


class Tool(RemoteTool):
    """Uploads are verified by the checksum of a server that tells one (RFC 3230, RFC 9530), else by their size."""

    schemes = ("http", "https", "dav", "davs")
    told_checksum = "adler32"

    OPTIONS = {
        "token_file": Option(Type.PATH, "", "bearer token (mode 0600); default: BEARER_TOKEN_FILE"),
        "token_hosts": Option(Type.LIST, "", "the only servers that are shown the token: HOST or HOST:PORT"),
        "cert_file": Option(
            Type.PATH, "", "X.509 certificate or proxy shown to servers; default: X509_USER_PROXY"
        ),
        "key_file": Option(Type.PATH, "", "its private key (mode 0600); default: in cert_file"),
        "ca": Option(
            Type.PATH,
            "",
            "certificate authorities, file or directory; default: the system's, and X509_CERT_DIR",
        ),
        "connect_seconds": Option(
            Type.INTEGER, "5", "how long a server may take to be reached", Bounds(1, 600)
        ),
        "silent_seconds": Option(
            Type.INTEGER, "60", "how long a server may say nothing in the middle", Bounds(1, 3600)
        ),
    }

    def __init__(self, options: Mapping[str, object]) -> None:
        super().__init__(options)
        self._idle = _Idle()
        self._silent_seconds = float(as_text(self.options["silent_seconds"]))
        hosts = self.options["token_hosts"]
        assert isinstance(hosts, tuple)
        self._token_hosts = frozenset(host.lower() for host in hosts)
        if self.options["token_file"] and not hosts:
            raise PilotageError(
                "BAD_SETTINGS", f"[copytool:{self.name}] token_file needs token_hosts: who may see it"
            )

    # -- the four verbs -----------------------------------------------------------------------------------------------------

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        with self._asked("GET", source, deadline) as response:
            _expect(response, 200)
            if response.length is None and not response.chunked:
                raise OSError(errno.EIO, "the server does not tell how long the file is")
            with open(to, "xb") as file:
                for block in _pieces(response, deadline):
                    file.write(block)

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> None:
        status = self._put(file, target, deadline)
        if status in (404, 409):  # there is no such directory
            self._make_collection(urljoin(_taken_apart(target).url, "."), deadline)
            status = self._put(file, target, deadline)
        if status in (404, 409):
            raise OSError(errno.EIO, f"HTTP status {status}: it makes no directory for the file")

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        want = {"Want-Digest": "adler32,md5", "Want-Repr-Digest": "adler=2, md5=1"}
        with self._asked("HEAD", url, deadline, want) as response:
            if response.status in (404, 410):
                return None
            _expect(response, 200)
            size = response.getheader("Content-Length", "")
            if not size.isdigit():
                raise OSError(errno.EIO, "the server does not tell how long the file is")
            told = (response.getheader(name, "") for name in ("Digest", "Repr-Digest"))
            return Stored(int(size), _checksums(", ".join(told)))

    def remove(self, url: str, deadline: Deadline) -> None:
        with self._asked("DELETE", url, deadline) as response:
            if response.status not in (404, 410):
                _expect(response, 200, 202, 204)

    def _put(self, file: Outgoing, target: str, deadline: Deadline) -> int:
        headers = {"Content-Length": str(file.size), "If-None-Match": "*"}
        with self._asked("PUT", target, deadline, headers, file) as response:
            if response.status not in (404, 409):
                _expect(response, 200, 201, 204)
            return response.status

    def _make_collection(self, url: str, deadline: Deadline) -> None:
        """And those that it lies in, as far as they are missing."""
        for last in (False, True):
            with self._asked("MKCOL", url, deadline) as response:
                status = response.status
                if last or status != 409:
                    _expect(response, 200, 201, 405)  # 405: it is there already
                    return
            parent = urljoin(url, "..")
            if parent == url:
                raise OSError(errno.EIO, "HTTP status 409: it makes no directory for the file")
            self._make_collection(parent, deadline)

    # -- one question -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _asked(
        self,
        method: str,
        url: str,
        deadline: Deadline,
        headers: Mapping[str, str] = {},
        body: Optional[Outgoing] = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer of the server that has the file, as the redirections tell."""
        address = _taken_apart(url)
        for _ in range(MOST_REDIRECTS + 1):
            all_headers = {**headers, **self._token_for(address)}
            with self._answer(method, address, all_headers, body, deadline) as response:
                location = response.getheader("Location")
                if response.status not in REDIRECTS or not location:
                    yield response
                    return
            address = _taken_apart(urljoin(address.url, location))
        raise OSError(errno.EIO, f"more than {MOST_REDIRECTS} redirections")

    @contextmanager
    def _answer(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str],
        body: Optional[Outgoing],
        deadline: Deadline,
    ) -> Iterator[http.client.HTTPResponse]:
        """Of one server; the connection is kept if it was read to its end."""
        deadline.check()
        connection = self._idle.take(address) or self._connect(address, deadline)
        is_whole = False
        try:
            with ended_in_time(connection.sock, deadline.is_over):
                with _network(deadline):
                    connection.sock.settimeout(self._silent_seconds)
                    if isinstance(connection.sock, ssl.SSLSocket):
                        connection.sock.do_handshake()  # if it has not been done
                    response = _ask(connection, method, address, headers, body)
                with response:
                    yield response
                    with _network(deadline):
                        if response.length is not None and response.length <= BLOCK:
                            response.read()
                    is_whole = response.isclosed() and not response.will_close
        finally:
            if is_whole:
                self._idle.keep(address, connection)
            else:
                connection.close()

    def _connect(self, address: Address, deadline: Deadline) -> http.client.HTTPConnection:
        seconds = min(float(as_text(self.options["connect_seconds"])), max(0.1, deadline.left()))
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

    def _token_for(self, address: Address) -> Mapping[str, str]:
        """For whom it is meant, and where nobody else can read it."""
        is_meant = not self._token_hosts.isdisjoint((address.host, f"{address.host}:{address.port}"))
        if not is_meant or not (address.is_secure or address.host in ("127.0.0.1", "::1", "localhost")):
            return {}
        named = as_text(self.options["token_file"]) or os.environ.get("BEARER_TOKEN_FILE", "")
        return {"Authorization": f"Bearer {read_secret(Path(named))}"} if named else {}

    def _tls(self) -> ssl.SSLContext:
        cert = as_text(self.options["cert_file"]) or os.environ.get("X509_USER_PROXY", "")
        key = as_text(self.options["key_file"]) or cert
        authorities = as_text(self.options["ca"])
        try:
            changed = (os.stat(cert).st_mtime_ns, private(key).st_mtime_ns) if cert else ()
            return _context(authorities, os.environ.get("X509_CERT_DIR", ""), cert, key, changed)
        except OSError as error:  # an ssl.SSLError is one
            where = " or ".join(path for path in (cert, key, authorities) if path)
            raise PilotageError("BAD_SETTINGS", f"no usable certificate in {shown(where)}: {error}") from None


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


def _taken_apart(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{shown(url[:300])} is no URL: {error}") from None
    path = unquote(parts.path)
    if parts.scheme not in Tool.schemes or not parts.hostname or not path.strip("/"):
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


def _close_all(kept: Dict[object, List[http.client.HTTPConnection]]) -> None:
    for connections in kept.values():
        for connection in connections:
            connection.close()


@functools.lru_cache(maxsize=8)
def _context(authorities: str, beside: str, cert: str, key: str, changed: Tuple[int, ...]) -> ssl.SSLContext:
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


# -- questions and answers --------------------------------------------------------------------------------------------------


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
) -> http.client.HTTPResponse:
    connection.response_class = http.client.HTTPResponse
    connection.putrequest(method, address.target, skip_host=True, skip_accept_encoding=True)
    expects = {"Expect": "100-continue"} if body is not None and body.size else {}
    usual = {"Host": address.netloc, "User-Agent": f"pilotage/{__version__}", "Accept-Encoding": "identity"}
    for name, value in {**usual, **headers, **expects}.items():
        connection.putheader(name, value)
    with suppress(*HUNG_UP):
        connection.endheaders()
    return _sent_when_wanted(connection, body) if body is not None and body.size else connection.getresponse()


def _sent_when_wanted(connection: http.client.HTTPConnection, body: Outgoing) -> http.client.HTTPResponse:
    """Send the file when the server wants it, or says nothing for a while; its answer."""
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
        return connection.getresponse()
    except socket.timeout:
        if is_sent:
            raise
    heard(http.client.CONTINUE)
    return connection.getresponse()


def _send(sock: socket.socket, body: Outgoing) -> None:
    size = 0
    with suppress(*HUNG_UP):
        for block in blocks(body.descriptor, 0, body.size, bytearray(BLOCK)):
            sock.sendall(block)
            size += len(block)
        if size != body.size:
            raise OSError(errno.EBUSY, "the file became shorter while it was sent")


def _pieces(response: http.client.HTTPResponse, deadline: Deadline) -> Iterator[bytes]:
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


def _expect(response: http.client.HTTPResponse, *statuses: int) -> None:
    if response.status in statuses:
        return
    said = ""
    with suppress(OSError, http.client.HTTPException):
        said = one_line(redact(response.read1(300).decode(errors="replace").strip()))
    number = _ERRNOS.get(response.status, errno.EIO)
    raise OSError(
        number, f"HTTP status {response.status} {one_line(response.reason[:80])}: {said}".rstrip(": ")
    )


def _checksums(told: str) -> Checksums:
    """Of the headers Digest and Repr-Digest; what cannot be read is not told."""
    found: Checksums = {}
    for name, value in _DIGEST.findall(told):
        algorithm = "md5" if name.lower() == "md5" else "adler32"
        n_digits = ALGORITHMS[algorithm]
        if not re.fullmatch(f"[0-9a-fA-F]{{{n_digits}}}", value):
            with suppress(ValueError):
                value = base64.b64decode(value, validate=True).hex()
        if len(value) == n_digits:
            found[algorithm] = value.lower()
    return found
