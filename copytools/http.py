"""Files on WebDAV and other web servers: http, https, dav and davs."""

from __future__ import annotations

import base64
import errno
import http.client
import os
import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Mapping, Optional
from urllib.parse import urljoin

from copytools import web
from copytools.base import Checksums, Deadline, Option, Stored, shown
from copytools.failures import BY_STATUS
from copytools.remote import Outgoing, RemoteTool, private
from protocol.errors import PilotageError
from protocol.files import ALGORITHMS
from protocol.redaction import one_line, redact
from protocol.settings import read_secret
from protocol.values import Bounds, Type, as_text

SLOWEST_READ = 20e6
"""Bytes a second that a server may read when it has to calculate a checksum."""
_DIGEST = re.compile(r"\b(adler|adler32|md5)=:?([^,:\s]+)", re.I)


class Tool(RemoteTool):
    """Uploads are verified by the checksum of a server that tells one (RFC 3230, RFC 9530), else by their size."""

    schemes = web.SCHEMES
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
        connect, silent = (as_text(self.options[name]) for name in ("connect_seconds", "silent_seconds"))
        self._client = web.Client(float(connect), float(silent), self._token_for, self._tls)
        hosts = self.options["token_hosts"]
        assert isinstance(hosts, tuple)
        self._token_hosts = frozenset(host.lower() for host in hosts)
        if self.options["token_file"] and not hosts:
            raise PilotageError(
                "BAD_SETTINGS", f"[copytool:{self.name}] token_file needs token_hosts: who may see it"
            )

    # -- the four verbs -----------------------------------------------------------------------------------------------------

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        with self._client.asked("GET", source, deadline) as response:
            _expect(response, 200)
            if response.length is None and not response.chunked:
                raise OSError(errno.EIO, "the server does not tell how long the file is")
            with open(to, "xb") as file:
                for block in web.pieces(response, deadline):
                    file.write(block)
                    deadline.moved(len(block))

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> None:
        status = self._put(file, target, deadline)
        if status in (404, 409):  # there is no such directory
            self._make_collection(urljoin(web.taken_apart(target).url, "."), deadline)
            status = self._put(file, target, deadline)
        if status in (404, 409):
            raise OSError(errno.EIO, f"HTTP status {status}: it makes no directory for the file")

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        with self._client.asked("HEAD", url, deadline) as response:
            if response.status in (404, 410):
                return None
            _expect(response, 200)
            size = response.getheader("Content-Length", "")
            if not re.fullmatch("[0-9]{1,18}", size):
                raise OSError(errno.EIO, "the server does not tell how long the file is")
        want = {"Want-Digest": "adler32,md5", "Want-Repr-Digest": "adler=2, md5=1"}
        reads_for = min(int(size) / SLOWEST_READ, deadline.left())
        with self._client.asked("HEAD", url, deadline, want, silent_too=reads_for) as response:
            _expect(response, 200)
            told = (response.getheader(name, "") for name in ("Digest", "Repr-Digest"))
            return Stored(int(size), _checksums(", ".join(told)))

    def remove(self, url: str, deadline: Deadline) -> None:
        with self._client.asked("DELETE", url, deadline) as response:
            if response.status not in (404, 410):
                _expect(response, 200, 202, 204)

    def _put(self, file: Outgoing, target: str, deadline: Deadline) -> int:
        headers = {"Content-Length": str(file.size), "If-None-Match": "*"}
        with self._client.asked("PUT", target, deadline, headers, file) as response:
            if response.status not in (404, 409):
                _expect(response, 200, 201, 204)
            return response.status

    def _make_collection(self, url: str, deadline: Deadline) -> None:
        """And those that it lies in, as far as they are missing."""
        for last in (False, True):
            with self._client.asked("MKCOL", url, deadline) as response:
                status = response.status
                if last or status != 409:
                    _expect(response, 200, 201, 405)  # 405: it is there already
                    return
            parent = urljoin(url, "..")
            if parent == url:
                raise OSError(errno.EIO, "HTTP status 409: it makes no directory for the file")
            self._make_collection(parent, deadline)

    def _token_for(self, address: web.Address) -> Mapping[str, str]:
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
            return web.context(authorities, os.environ.get("X509_CERT_DIR", ""), cert, key, changed)
        except OSError as error:  # an ssl.SSLError is one
            where = " or ".join(path for path in (cert, key, authorities) if path)
            raise PilotageError("BAD_SETTINGS", f"no usable certificate in {shown(where)}: {error}") from None


def _expect(response: http.client.HTTPResponse, *statuses: int) -> None:
    if response.status in statuses:
        return
    said = ""
    with suppress(OSError, http.client.HTTPException):
        said = one_line(redact(response.read1(300).decode(errors="replace").strip()))
    number = BY_STATUS.get(response.status, errno.EIO)
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
