"""The copytool http against servers that redirect, drip, want credentials, or speak an old HTTP: what WebDAV servers of sites do."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Tuple
from urllib.parse import urlsplit

import pytest
import trustme

import copytools
from copytools import web
from copytools.base import CopyTool
from protocol.errors import PilotageError

FOREVER = 30.0
OPTIONS = {"connect_seconds": "2", "silent_seconds": "5"}


class Server:
    """Keeps files in memory. What it is asked is in `asked`, method and path; what it was told, in `told`."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.files: Dict[str, bytes] = {}
        self.asked: List[Tuple[str, str]] = []
        self.told: List[Mapping[str, str]] = []
        self.send_on = ""
        """Another server, to which it sends whoever asks for a file."""
        self.says_continue = True
        self.status = 0
        """What it answers to everything; 0: what is right."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_expect_100(self) -> bool:
                if outer.send_on or outer.status or not outer.says_continue:
                    return True
                return super().handle_expect_100()

            def do_GET(self) -> None:
                outer.asked.append((self.command, self.path))
                outer.told.append(dict(self.headers.items()))
                if outer.send_on or outer.status:
                    self.answer(outer.status or 307, location=outer.send_on + self.path)
                elif self.command == "PUT":
                    outer.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                    self.answer(201)
                elif self.command == "DELETE":
                    self.answer(204 if outer.files.pop(self.path, None) is not None else 404)
                elif self.path not in outer.files:
                    self.answer(404)
                else:
                    self.answer(200, outer.files[self.path])

            do_PUT = do_HEAD = do_DELETE = do_GET

            def answer(self, status: int, body: bytes = b"", location: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if context is not None:
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        scheme = "http" if context is None else "davs"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: List[Server] = []

    def one_more(context: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(context))
        return servers[-1]

    yield one_more
    for server in servers:
        server.close()


@pytest.fixture
def tool() -> CopyTool:
    return copytools.load("http", OPTIONS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a"
    made.write_bytes(os.urandom(3_000_000))
    return made


def refused(action: Callable[[], object]) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        action()
    return caught.value


def secret(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


# -- redirections -------------------------------------------------------------------------------------------------------


def test_an_upload_follows_a_redirection_and_the_token_stays_with_whom_it_is_meant_for(
    start: Callable[..., Server], path: Path, tmp_path: Path
) -> None:
    """As a door that hands each file to a data server: the file goes there, once."""
    door, data = start(), start()
    door.send_on = data.url
    token = secret(tmp_path / "token", "letmeinplease")
    options = {**OPTIONS, "token_file": token, "token_hosts": urlsplit(door.url).netloc}
    mine = copytools.load("http", options)
    mine.copy_out(path, f"{door.url}/a.1", FOREVER)
    assert data.files == {"/a.1": path.read_bytes()} and door.files == {}
    mine.copy_in(f"{door.url}/a.1", tmp_path / "back", FOREVER)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert all(headers["Authorization"] == "Bearer letmeinplease" for headers in door.told)
    assert not any("Authorization" in headers for headers in data.told)


def test_redirections_that_go_round_come_to_an_end(
    start: Callable[..., Server], tool: CopyTool, tmp_path: Path
) -> None:
    door = start()
    door.send_on = door.url
    error = refused(lambda: tool.copy_in(f"{door.url}/a", tmp_path / "a", FOREVER))
    assert error.name == "STAGE_IN_FAILED" and "redirections" in error.detail


@pytest.mark.parametrize("leads_to", ["file:///etc/passwd", "ftp://127.0.0.1"])
def test_a_redirection_to_what_is_no_web_address_is_not_followed(
    start: Callable[..., Server], tool: CopyTool, tmp_path: Path, leads_to: str
) -> None:
    door = start()
    door.send_on = leads_to
    assert refused(lambda: tool.copy_in(f"{door.url}/a", tmp_path / "a", FOREVER)).name == "BAD_PATH"


def test_a_redirection_that_is_no_address_is_an_error_of_the_storage(
    start: Callable[..., Server], tool: CopyTool, tmp_path: Path
) -> None:
    door = start()
    door.send_on = "http://["
    assert refused(lambda: tool.copy_in(f"{door.url}/a", tmp_path / "a", FOREVER)).name == "STAGE_IN_FAILED"


def test_b25_an_address_where_machines_keep_their_secrets_is_refused(
    start: Callable[..., Server], tool: CopyTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = start()
    door.files["/latest/meta-data"] = b"secret"
    monkeypatch.setattr(socket.socket, "getpeername", lambda sock: ("169.254.169.254", 80))
    error = refused(lambda: tool.copy_in(f"{door.url}/latest/meta-data", tmp_path / "a", FOREVER))
    assert error.name == "BAD_PATH" and "machines' own use" in error.detail
    assert door.asked == []


# -- servers that are slow, or old --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"], ids=["head", "body"]
)
def test_f14_a_server_that_gives_a_byte_now_and_then_holds_nobody_for_longer_than_the_time_limit(
    tool: CopyTool, tmp_path: Path, head: bytes
) -> None:
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        with contextlib.suppress(OSError), server.accept()[0] as theirs:
            theirs.sendall(head)
            while not over.wait(0.1):
                theirs.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = threading.Thread(target=drip, args=(server,))
        dripping.start()
        began = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        error = refused(lambda: tool.copy_in(url, tmp_path / "a", 1.0))
        took = time.monotonic() - began
        over.set()
        dripping.join()
    assert error.name == "STAGE_IN_TIMEOUT"
    assert took < 10
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_know_expect_gets_the_file_unasked(
    start: Callable[..., Server], tool: CopyTool, path: Path
) -> None:
    old = start()
    old.says_continue = False
    tool.copy_out(path, f"{old.url}/a.1", FOREVER)
    assert old.files["/a.1"] == path.read_bytes()


def test_connections_are_kept_from_one_file_to_the_next(
    start: Callable[..., Server], tool: CopyTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    server.files["/a"] = b"a" * 100_000
    made: List[object] = []
    reach = web.reach
    monkeypatch.setattr(web, "reach", lambda *given: made.append(given) or reach(*given))
    for number in range(5):
        tool.until(lambda: False).copy_in(f"{server.url}/a", tmp_path / str(number), FOREVER)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "STAGE_OUT_AUTHENTICATION"), (403, "STAGE_OUT_AUTHENTICATION"), (429, "STORAGE_OVERLOADED"),
     (503, "STORAGE_OVERLOADED"), (502, "STORAGE_UNREACHABLE"), (500, "STAGE_OUT_FAILED"), (418, "STAGE_OUT_FAILED")],
)  # fmt: skip
def test_what_a_status_means(
    start: Callable[..., Server], tool: CopyTool, path: Path, status: int, expected: str
) -> None:
    server = start()
    server.status = status
    error = refused(lambda: tool.copy_out(path, f"{server.url}/a.1", FOREVER))
    assert error.name == expected and f"HTTP status {status}" in error.detail


# -- credentials --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA, start: Callable[..., Server]) -> Server:
    """It wants a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return start(context)


@pytest.fixture
def trust(authority: trustme.CA, tmp_path: Path) -> Dict[str, str]:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {**OPTIONS, "ca": str(tmp_path / "ca.pem")}


@pytest.fixture
def proxy(authority: trustme.CA, tmp_path: Path) -> Path:
    made = tmp_path / "proxy.pem"
    authority.issue_cert("pilot@example.org").private_key_and_cert_chain_pem.write_to_path(made)
    made.chmod(0o600)
    return made


def test_a_certificate_opens_the_door_of_a_server_whose_own_is_trusted(
    secure: Server, trust: Dict[str, str], proxy: Path, path: Path
) -> None:
    mine = copytools.load("http", {**trust, "cert_file": str(proxy)})
    mine.copy_out(path, f"{secure.url}/a.1", FOREVER)
    assert secure.files["/a.1"] == path.read_bytes()


def test_the_proxy_of_the_grid_is_found_where_its_variable_says(
    secure: Server, trust: Dict[str, str], proxy: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X509_USER_PROXY", str(proxy))
    copytools.load("http", trust).copy_out(path, f"{secure.url}/a.1", FOREVER)
    assert secure.files["/a.1"] == path.read_bytes()


def test_who_has_no_certificate_is_told_so(secure: Server, trust: Dict[str, str], path: Path) -> None:
    mine = copytools.load("http", trust)
    error = refused(lambda: mine.copy_out(path, f"{secure.url}/a.1", FOREVER))
    assert error.name == "STAGE_OUT_AUTHENTICATION", error


def test_a_server_that_nobody_vouches_for_gets_nothing(secure: Server, tool: CopyTool, path: Path) -> None:
    error = refused(lambda: tool.copy_out(path, f"{secure.url}/a.1", FOREVER))
    assert error.name == "STORAGE_UNREACHABLE" and "certificate" in error.detail.lower()
    assert secure.files == {} and secure.told == []


@pytest.mark.parametrize("option", ["cert_file", "token_file"])
def test_a_secret_that_others_can_read_is_refused(
    secure: Server, trust: Dict[str, str], proxy: Path, path: Path, option: str
) -> None:
    proxy.chmod(0o644)
    mine = copytools.load("http", {**trust, option: str(proxy), "token_hosts": "127.0.0.1"})
    error = refused(lambda: mine.copy_out(path, f"{secure.url}/a.1", FOREVER))
    assert error.name == "BAD_SETTINGS" and "chmod 600" in error.detail


def test_a_certificate_that_is_not_there_is_no_missing_input(
    trust: Dict[str, str], secure: Server, tmp_path: Path
) -> None:
    mine = copytools.load("http", {**trust, "cert_file": str(tmp_path / "none.pem")})
    error = refused(lambda: mine.copy_in(f"{secure.url}/a", tmp_path / "a", FOREVER))
    assert error.name == "BAD_SETTINGS" and "none.pem" in error.detail


def test_a_token_without_a_word_about_who_may_see_it_is_refused(tmp_path: Path) -> None:
    """A user chooses the address of an input: it must not be the way to the pilot's token."""
    error = refused(lambda: copytools.load("http", {"token_file": str(tmp_path / "token")}))
    assert error.name == "BAD_SETTINGS" and "token_hosts" in error.detail


def test_the_token_is_shown_to_no_other_server(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start()
    server.files["/a"] = b"a"
    token = secret(tmp_path / "token", "letmeinplease")
    mine = copytools.load("http", {**OPTIONS, "token_file": token, "token_hosts": "storage.example"})
    mine.copy_in(f"{server.url}/a", tmp_path / "a", FOREVER)
    assert not any("Authorization" in headers for headers in server.told)
