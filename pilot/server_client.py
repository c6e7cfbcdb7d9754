"""The pilot's side of the wire: one pool of connections, one function per message, and what is worth saying again.

On a node that does not reach the server a letterbox takes the place of the connections. The only file that imports urllib3. A failure is a PilotageError: SERVER_UNREACHABLE when no answer came, else the error that the
server names. Every call may be repeated: each message is made so that the server takes a repetition as such.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import logging
import math
import platform
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar
from urllib.parse import quote

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

from protocol import __version__
from protocol.errors import BY_NAME, PilotageError
from protocol.messages import from_wire, to_wire
from protocol.messages.pilots import (
    AttemptUpdate,
    AttemptUpdates,
    GetJobReply,
    GetJobRequest,
    Heartbeat,
    HeartbeatReply,
    PilotEnd,
    PilotRegistration,
    QueueForPilot,
    UpdateReplies,
    UpdateReply,
    WaitReply,
)
from protocol.redaction import one_line
from protocol.tls import wrong_scheme

if TYPE_CHECKING:  # most pilots need none
    from pilot.letterbox import Letterbox

logger = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")

LARGEST_REPLY = 64 * 1024 * 1024
LARGEST_WAIT_REPLY = 64 * 1024
LEAST_SECONDS = 1.0
ANSWER_SECONDS = 10.0
"""The answer to a wait may come so much later than it should."""
PASSING = frozenset(
    (
        "SERVER_UNREACHABLE",
        "SERVER_UNAVAILABLE",
        "TOO_MANY_REQUESTS",
        "SERVER_ERROR",
        "BRIDGE_SILENT",
        "UNAUTHENTICATED",
        "FORBIDDEN",
    )
)
"""Errors that may pass: the same word is said again later. A refused token is one: it may be renewed while results wait."""

CREDENTIALS = frozenset(("UNAUTHENTICATED", "FORBIDDEN"))
PILOT_TOKEN = "ask an operator for a pilot's token: pilotage token create NAME --role pilot --out FILE"

_BY_STATUS = {
    400: "BAD_REQUEST", 401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED",
    408: "SERVER_UNAVAILABLE", 409: "STALE_ATTEMPT", 413: "TOO_LARGE", 429: "TOO_MANY_REQUESTS",
    500: "SERVER_ERROR", 503: "SERVER_UNAVAILABLE",
}  # fmt: skip
"""What a status means when the body does not say: an answer of something between us and the server."""


def user_agent() -> str:
    return f"pilotage-pilot/{__version__} (Python {platform.python_version()}; {platform.system()} {platform.machine()})"


def is_passing(error: PilotageError) -> bool:
    return error.name in PASSING


class Backoff:
    """Waits that double from one failure to the next, each somewhere between half and all of its length."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first, self._longest = first_seconds, longest_seconds
        self._failures = 0

    def next(self, error: Optional[PilotageError] = None) -> float:
        """Seconds to wait after this failure; never less than the server asked for."""
        wait = min(self._longest, self._first * 2.0 ** min(self._failures, 30)) * random.uniform(0.5, 1.0)
        self._failures += 1
        asked = error.fields.get("retry_after", 0.0) if error else 0.0
        return max(wait, float(asked) * random.uniform(1.0, 1.25))

    def reset(self) -> None:
        self._failures = 0


def _warn(error: PilotageError, wait: float, until: str) -> None:
    logger.warning(
        "the server does not answer; is its address right?",
        extra={
            "error": error.name,
            "detail": error.detail,
            "again_in": round(wait, 1),
            "gives_up_at": until,
        },
    )


def insist(
    call: Callable[[], T],
    backoff: Backoff,
    give_up_seconds: float,
    warn: Callable[[PilotageError, float, str], None] = _warn,
) -> T:
    """Say it again and again while the server does not answer; the last failure when it is given up.

    A refused token, a certificate that is not trusted and http instead of https are failures at once: they have to be put right.
    `warn` tells of each failure that is not the last, with the seconds to the next try and the time of giving up.
    """
    give_up_at = time.monotonic() + give_up_seconds
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + give_up_seconds))
    while True:
        try:
            return call()
        except PilotageError as error:
            hopeless = error.name in CREDENTIALS or error.fields.get("hopeless") or not is_passing(error)
            left = give_up_at - time.monotonic()
            if hopeless or left <= 0:
                raise
            wait = min(backoff.next(error), left)
            warn(error, wait, shown)
            time.sleep(wait)


class ServerClient:
    """Connections to one server, used by all threads of the pilot."""

    def __init__(
        self,
        url: str,
        token: str,
        tls: Optional[ssl.SSLContext],
        connect_seconds: float,
        read_seconds: float,
        connections: int = 4,
        letterbox: Optional[Letterbox] = None,
        token_now: Optional[Callable[[], str]] = None,
        token_file: Optional[Path] = None,
    ) -> None:
        """`connections` are kept for the next request: job control, reporter and heartbeat speak at the same time, and one more
        at the end. With a `letterbox` there are none. `token_now` says the token anew when the server refuses the one we have, which is
        in `token_file`, for who is told so.
        """
        self.url = url
        self._letterbox = letterbox
        self._read_seconds = read_seconds
        self._headers = {"User-Agent": user_agent(), "Authorization": f"Bearer {token}"}
        self._token_now, self._token_file = token_now, token_file
        self._timeout = urllib3.Timeout(connect=connect_seconds, read=read_seconds)
        self._tls, self._connect_seconds = tls, connect_seconds
        self.clock_skew: Optional[float] = None
        """Seconds by which the server's clock is ahead of ours, as its first answer said; None: it has not said."""
        self._pool = urllib3.PoolManager(num_pools=2, maxsize=connections, retries=False, ssl_context=tls)

    # -- the messages -------------------------------------------------------------------------------------------------------

    def register(self, word: PilotRegistration, patience: float = math.inf) -> QueueForPilot:
        """`patience`: seconds until the caller gives the server up; no answer is awaited for longer, but for a second at least."""
        return _read(QueueForPilot, self._post("/v1/registerPilot", word, self._within(patience)))

    def get_job(self, word: GetJobRequest, patience: float = math.inf) -> GetJobReply:
        """`patience` as for `register`."""
        reply = _read(GetJobReply, self._post("/v1/getJob", word, self._within(patience)))
        # Who has only a letterbox cannot reach the address to wait at.
        return reply if self._letterbox is None else replace(reply, ticket=None)

    def update(self, word: AttemptUpdate, seconds: Optional[float] = None) -> UpdateReply:
        return _read(UpdateReply, self._post("/v1/updateJob", word, seconds))

    def update_all(self, words: AttemptUpdates, seconds: Optional[float] = None) -> UpdateReplies:
        replies = _read(UpdateReplies, self._post("/v1/updateJobs", words, seconds))
        if len(replies.answers) != len(words.updates):
            raise PilotageError("SERVER_ERROR", f"{len(words.updates)} words, {len(replies.answers)} answers")
        return replies

    def heartbeat(self, word: Heartbeat) -> HeartbeatReply:
        return _read(HeartbeatReply, self._post("/v1/heartbeat", word))

    def end_pilot(self, word: PilotEnd, seconds: float) -> None:
        self._post("/v1/endPilot", word, seconds)

    def fetch_bundle(self, digest: str, to: Path, largest: int) -> str:
        """Write a bundle into a new file; its SHA-256. BUNDLE_FAILED if it is larger than it should be."""
        response = self._request("GET", f"/v1/bundles/{quote(digest, safe='')}")
        try:
            if response.status != 200:
                raise _error(response.status, response.headers, response.read(LARGEST_REPLY))
            sha256, size = hashlib.sha256(), 0
            with open(to, "xb") as file:
                for piece in response.stream(1 << 20, decode_content=False):
                    size += len(piece)
                    if size > largest:
                        raise PilotageError("BUNDLE_FAILED", f"bundle {digest} has more than {largest} bytes")
                    sha256.update(piece)
                    file.write(piece)
            return sha256.hexdigest()
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()  # what was not read must not be taken for the next answer

    def waiting(self) -> Waiting:
        """A connection of its own, on which the pilot waits for work."""
        return Waiting(self._tls, self._connect_seconds)

    def pass_on(self, method: str, path: str, body: Optional[bytes]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of what the server says to another pilot's request; SERVER_UNREACHABLE if it says nothing."""
        response = self._request(method, path, body)
        return response.status, response.headers, self._all_of(response)

    def close(self) -> None:
        self._pool.clear()
        if self._letterbox is not None:
            self._letterbox.close()

    # -- the connection -----------------------------------------------------------------------------------------------------

    def _within(self, patience: float) -> float:
        return min(self._read_seconds, max(LEAST_SECONDS, patience))

    def _post(self, path: str, word: Any, seconds: Optional[float] = None) -> Mapping[str, Any]:
        body = json.dumps(to_wire(word), separators=(",", ":")).encode()
        asked_at = time.time()
        response = self._request("POST", path, body, seconds)
        if self.clock_skew is None:
            self.clock_skew = clock_skew(response.headers.get("Date"), asked_at, time.time())
        data = self._all_of(response)
        if not 200 <= response.status < 300:
            error = _error(response.status, response.headers, data)
            if error.name in CREDENTIALS and self._token_file is not None:
                error.fields["advice"] = f"the token is the one in {self._token_file}; {PILOT_TOKEN}"
            raise error
        return _object(data)

    def _all_of(self, response: urllib3.BaseHTTPResponse) -> bytes:
        try:
            return response.read(LARGEST_REPLY)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            response.release_conn()

    def _request(
        self, method: str, path: str, body: Optional[bytes] = None, seconds: Optional[float] = None
    ) -> urllib3.BaseHTTPResponse:
        if self._letterbox is not None:
            answer = self._letterbox.ask(method, path, body or b"", seconds or self._read_seconds)
            return urllib3.HTTPResponse(
                io.BytesIO(answer.body), answer.headers, answer.status, preload_content=False
            )
        timeout = self._timeout
        if seconds is not None:
            timeout = urllib3.Timeout(seconds, connect=min(seconds, self._connect_seconds))
        for last in (False, True):
            headers = (
                {**self._headers, "Content-Type": "application/json"} if body is not None else self._headers
            )
            try:
                response = self._pool.request(
                    method, self.url + path, body=body, headers=headers, timeout=timeout,
                    preload_content=False, redirect=False,
                )  # fmt: skip
            except urllib3.exceptions.ProtocolError as error:
                # Mostly a connection kept too long that the server has just closed: once more, at once.
                if last:
                    raise self._unreachable(error) from None
            except urllib3.exceptions.HTTPError as error:
                raise self._unreachable(error) from None
            else:
                if last or response.status != 401 or not self._has_new_token(headers["Authorization"]):
                    return response
                response.release_conn()
        raise AssertionError("unreachable")

    def _has_new_token(self, refused: str) -> bool:
        """Somebody has renewed it in its file, or another thread has seen that before."""
        if self._token_now is not None and self._headers["Authorization"] == refused:
            with contextlib.suppress(PilotageError):
                self._headers = {**self._headers, "Authorization": f"Bearer {self._token_now()}"}
        return self._headers["Authorization"] != refused

    def _unreachable(self, error: Exception) -> PilotageError:
        refused_by_us = isinstance(error, urllib3.exceptions.SSLError)
        hung_up = isinstance(error, urllib3.exceptions.ProtocolError)
        # A server that has answered once has the scheme that we speak.
        wrong = (
            wrong_scheme(self.url, error) if self.clock_skew is None and (refused_by_us or hung_up) else ""
        )
        return PilotageError(
            "SERVER_UNREACHABLE",
            f"{self.url}: {wrong or one_line(str(error))}",
            hopeless=refused_by_us or bool(wrong),
            advice="give that address, with --url" if wrong else "",
        )


@contextlib.contextmanager
def last_word() -> Iterator[None]:
    """What is said here is worth one try: nobody waits for it any more."""
    try:
        yield
    except PilotageError as error:
        logger.warning(
            "the server did not hear the last word", extra={"error": error.name, "detail": error.detail}
        )


class Waiting:
    """The connection on which the pilot waits for work; kept from one wait to the next. It shows its ticket, and no token."""

    def __init__(self, tls: Optional[ssl.SSLContext], connect_seconds: float) -> None:
        self._tls = tls
        self._connect_seconds = connect_seconds
        self._lock = threading.Lock()
        self._connection: Optional[HTTPConnection] = None
        self._to: tuple[Any, ...] = ()
        """Scheme, user, host and port of the connection."""
        self._ended = False

    def wait(self, url: str, ticket: str, seconds: float) -> bool:
        """Whether there may be a job now, else `seconds` are over; sooner if it is ended. An error if the server cannot say."""
        whole = max(1, int(seconds))
        try:
            address = parse_url(f"{url}?ticket={quote(str(ticket), safe='')}&timeout={whole}")
            if address.scheme not in ("http", "https") or not address.host:
                raise ValueError("no address of the web")
            status, headers, data = self._ask(address, whole + ANSWER_SECONDS)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            self.close()
            raise PilotageError("SERVER_UNREACHABLE", f"{one_line(url)}: {one_line(str(error))}") from None
        if status != 200:
            self.close()
            raise _error(status, headers, data)
        reply = _read(WaitReply, _object(data))
        if not isinstance(reply.jobs, bool):
            raise PilotageError("SERVER_ERROR", f"the answer is no WaitReply: {ascii(data[:100])}")
        return reply.jobs

    def end(self) -> None:
        """End the wait that is going on, and all further ones at once; from any thread."""
        with self._lock:
            self._ended = True
            if self._connection is not None and self._connection.sock is not None:
                with contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which takes its session from under the thread that reads.
                    socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Until the next wait, which may be far."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _ask(self, address: Url, seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        kept = self._connection
        if kept is not None and kept.is_connected and self._to == address[:4]:
            with contextlib.suppress(http.client.HTTPException, ConnectionError, ssl.SSLError):  # just closed
                return self._ask_on(kept, address, seconds)
        return self._ask_on(self._connect(address), address, seconds)

    def _ask_on(
        self, connection: HTTPConnection, address: Url, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection.timeout = seconds
        headers = {"User-Agent": user_agent()}
        connection.request("GET", address.request_uri, headers=headers, preload_content=False)
        response = connection.getresponse()
        return response.status, response.headers, response.read(LARGEST_WAIT_REPLY)

    def _connect(self, address: Url) -> HTTPConnection:
        self.close()
        made = (
            HTTPSConnection(
                address.host or "", address.port, timeout=self._connect_seconds, ssl_context=self._tls
            )
            if address.scheme == "https"
            else HTTPConnection(address.host or "", address.port, timeout=self._connect_seconds)
        )
        with self._lock:
            if self._ended:
                raise OSError("the pilot ends")
            self._connection, self._to = made, address[:4]
        made.connect()
        if self._ended:
            raise OSError("the pilot ends")
        return made


def clock_skew(date: Optional[str], asked_at: float, answered_at: float) -> Optional[float]:
    """How far the server's clock is from ours, in seconds; 0 if the date may lie between question and answer. A date has no fractions."""
    try:
        then = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    if then > answered_at:
        return then - answered_at
    return min(0.0, then + 1.0 - asked_at)


def _read(cls: type[M], body: Mapping[str, Any]) -> M:
    """An answer that is no such message at all is the server's failure, and may pass; unknown fields are none."""
    try:
        return from_wire(cls, body)
    except (TypeError, ValueError, AttributeError) as error:
        raise PilotageError("SERVER_ERROR", f"the answer is no {cls.__name__}: {error}") from None


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise PilotageError("SERVER_ERROR", f"the answer is no JSON object: {ascii(data[:100])}")
    return content


def _error(status: int, headers: Mapping[str, str], data: bytes) -> PilotageError:
    """What a failure means: the catalogue name in its body, as far as that fits its status; else by its status alone."""
    usual = _BY_STATUS.get(status, "SERVER_ERROR" if status >= 500 else "BAD_REQUEST")
    try:
        content = json.loads(data)
        name, detail = str(content["error"]), str(content.get("detail", ""))
        ours = name in BY_NAME
    except (ValueError, KeyError, TypeError, AttributeError):
        name, detail, ours = usual, f"HTTP status {status}: {ascii(data[:200])}", False
    if name not in BY_NAME or is_passing(PilotageError(usual)) != is_passing(PilotageError(name)):
        name = usual
    return PilotageError(name, detail, status=status, retry_after=_retry_after(headers), ours=ours)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; a date, which HTTP also allows, would need clocks that agree, and counts as nothing."""
    text = headers.get("Retry-After") or ""
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else 0.0
