"""The session with odd servers: every answer becomes a view or an error of the catalogue, never anything else."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, Dict

import pytest
import trustme

from client import settings
from client.session import Session
from protocol import __version__
from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, FileSpec, TaskSpec
from tests.integration.client.standin import Answer, standing_in

TASK: Dict[str, Any] = {
    "taskId": 3, "name": "t", "owner": "admin", "state": "RUNNING", "nJobs": 2, "counts": {"READY": 2}, "nAttempts": 0,
    "created": "2026-01-01T00:00:00.000Z", "resourceType": "cpu", "priority": 0,
}  # fmt: skip
REFUSAL = {"error": "NOT_FOUND", "code": 3201, "text": "…", "detail": "no task 9", "advice": "…"}


def test_a_task_travels_as_the_protocol_spells_it_and_comes_back_as_a_view() -> None:
    with standing_in(Answer(201, TASK)) as server, Session(server.url, "secret-token") as session:
        view = session.submit_task(TaskSpec(name="t", command=["true"], n_jobs=2))
    assert (view.task_id, view.n_jobs, view.counts) == (3, 2, {"READY": 2})
    request = server.seen[0]
    assert (request.method, request.path) == ("POST", "/v1/tasks")
    assert json.loads(request.body)["nJobs"] == 2
    assert request.headers["Authorization"] == "Bearer secret-token"
    assert request.headers["User-Agent"].startswith(f"pilotage-client/{__version__}")


def test_a_list_is_fetched_page_by_page() -> None:
    pages = [{"items": [{**TASK, "taskId": 9}], "nextCursor": 9}, {"items": [{**TASK, "taskId": 4}]}]
    with standing_in(*(Answer(200, page) for page in pages)) as server, Session(server.url, "x") as session:
        assert [view.task_id for view in session.tasks(state="RUNNING")] == [9, 4]
    assert "after=" not in server.seen[0].path
    assert "after=9" in server.seen[1].path
    assert all("state=RUNNING" in request.path and "name=" not in request.path for request in server.seen)


def test_the_server_s_refusal_is_its_error_with_its_detail() -> None:
    answer = Answer(404, {**REFUSAL, "fields": {"task": "9", "name": "x", "detail": "y"}})
    with standing_in(answer) as server, Session(server.url, "x") as session:
        with pytest.raises(PilotageError, match="no task 9") as caught:
            session.task(9)
    assert caught.value.name == "NOT_FOUND"
    assert caught.value.fields["task"] == "9"


def test_an_error_of_a_newer_server_keeps_its_words() -> None:
    answer = Answer(418, {**REFUSAL, "error": "TEAPOT", "text": "it is a teapot"})
    with standing_in(answer) as server, Session(server.url, "x") as session:
        with pytest.raises(PilotageError, match="TEAPOT: it is a teapot: no task 9"):
            session.task(9)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>hello</html>", (("Content-Type", "text/html"),)),
        Answer(404, b"nginx", (("Content-Type", "text/plain"),)),
        Answer(200, [1, 2]),
        Answer(302, b"", (("Location", "http://127.0.0.1:1/"),)),
        Answer(502, b"Bad gateway"),
    ],
    ids=["a web page", "a foreign 404", "a list", "a redirect", "a proxy"],
)
def test_what_is_no_pilotage_server_is_called_so(answer: Answer) -> None:
    with standing_in(answer) as server, Session(server.url, "x") as session:
        with pytest.raises(PilotageError, match="is that a Pilotage server"):
            session.task("t")
    assert len(server.seen) == 1, "a token is not sent on to where a redirect points"


@pytest.mark.parametrize("body", [{"taskId": 1}, {"items": 5}], ids=["fields missing", "no list"])
def test_an_answer_in_another_shape_is_an_error_of_the_server(body: Any) -> None:
    with standing_in(Answer(200, body)) as server, Session(server.url, "x") as session:
        with pytest.raises(PilotageError, match="answers in another shape than this client") as caught:
            list(session.tasks()) if "items" in body else session.task("t")
    assert caught.value.name == "SERVER_ERROR"


@pytest.mark.parametrize(("status", "name"), [(503, "SERVER_UNAVAILABLE"), (429, "TOO_MANY_REQUESTS")])
def test_a_server_that_is_busy_is_asked_again_after_its_time(status: int, name: str) -> None:
    busy = Answer(status, {**REFUSAL, "error": name}, (("Retry-After", "0"),))
    with standing_in(busy, busy, Answer(201, TASK)) as server, Session(server.url, "x") as session:
        assert session.submit_task({"name": "t"}).name == "t"
    assert len(server.seen) == 3


def test_a_server_that_is_busy_for_long_is_told_so_at_once() -> None:
    busy = Answer(503, {**REFUSAL, "error": "SERVER_UNAVAILABLE"}, (("Retry-After", "3600"),))
    with standing_in(busy) as server, Session(server.url, "x") as session:
        with pytest.raises(PilotageError) as caught:
            session.task("t")
    assert caught.value.name == "SERVER_UNAVAILABLE"
    assert len(server.seen) == 1


def test_a_lost_reply_is_asked_for_again_but_nothing_is_made_twice() -> None:
    with standing_in(Answer(drop=True), Answer(200, TASK)) as server, Session(server.url, "x") as session:
        assert session.task("t").task_id == 3
    assert len(server.seen) == 2
    with standing_in(Answer(drop=True), Answer(201, TASK)) as server, Session(server.url, "x") as session:
        with pytest.raises(PilotageError) as caught:
            session.submit_task({"name": "t"})
    assert caught.value.name == "SERVER_UNREACHABLE"
    assert len(server.seen) == 1


def test_a_closed_port_is_a_server_that_cannot_be_reached() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    with (
        Session(url, "x") as session,
        pytest.raises(PilotageError, match="Connection refused") as caught,
    ):
        session.task("t")
    assert caught.value.name == "SERVER_UNREACHABLE"


def test_a_server_that_never_answers_is_given_up_after_the_time() -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        with Session(url, "x", timeout_seconds=0.1) as session:
            with pytest.raises(PilotageError, match=r"no answer within 0\.1 s"):
                session.submit_task({"name": "t"})


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:1", "http://[::1", "ftp://x"])
def test_an_address_that_leads_nowhere_is_an_error_of_the_catalogue(url: str) -> None:
    with Session(url, "x") as session, pytest.raises(PilotageError) as caught:
        session.task("t")
    assert caught.value.name == "SERVER_UNREACHABLE"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 300])
def test_a_name_that_cannot_be_is_refused_here(name: str) -> None:
    with (
        Session("http://127.0.0.1:1", "x") as session,
        pytest.raises(PilotageError, match="is no name for a dataset"),
    ):
        session.dataset(name)


def test_files_of_a_dataset_are_sent_with_it() -> None:
    view = {
        "name": "d",
        "scope": "d",
        "state": "closed",
        "nFiles": 1,
        "size": 5,
        "created": "2026-01-01T00:00:00.000Z",
    }
    spec = DatasetSpec("d", files=[FileSpec("a", 5, "file:///a", {"md5": "0" * 32})], close=True)
    with standing_in(Answer(201, view)) as server, Session(server.url, "x") as session:
        assert session.create_dataset(spec).n_files == 1
    sent = json.loads(server.seen[0].body)
    assert sent["files"] == [{"lfn": "a", "size": 5, "url": "file:///a", "checksums": {"md5": "0" * 32}}]


def test_who_asks_with_the_other_scheme_is_told_which_one_the_port_speaks() -> None:
    with standing_in() as plain:
        url = plain.url.replace("http:", "https:")
        with Session(url, "x") as session, pytest.raises(PilotageError) as caught:
            session.task("t")
        assert caught.value.detail == f"{url}: this port speaks plain HTTP: use {plain.url}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            while True:
                try:
                    connection, _ = door.accept()
                    context.wrap_socket(connection, server_side=True).close()
                except ssl.SSLError:
                    connection.close()
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"127.0.0.1:{door.getsockname()[1]}"
        with Session(f"http://{url}", "x") as session, pytest.raises(PilotageError) as caught:
            session.task("t")
        door.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert caught.value.detail == f"http://{url}: this port speaks TLS: use https://{url}"
    assert caught.value.next_step == "give that address, with --server or in the settings"


def test_a_server_s_certificate_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"https://localhost:{door.getsockname()[1]}"
        body = json.dumps(TASK).encode()

        def serve() -> None:
            for _ in range(2):
                connection, _ = door.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as stream:
                        stream.recv(65536)
                        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                except ssl.SSLError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with Session(url, "x") as session, pytest.raises(PilotageError, match="TLS failed") as caught:
            session.task("t")
        assert caught.value.name == "SERVER_UNREACHABLE"
        with Session(url, "x", cacert=str(tmp_path / "ca.pem")) as session:
            assert session.task("t").task_id == 3
        thread.join()


# -- finding the server -------------------------------------------------------------------------------------------


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def state_directory(tmp_path: Path, url: str, start_time: int) -> Path:
    tmp_path.joinpath("server.json").write_text(
        json.dumps({"url": url, "pid": os.getpid(), "start_time": start_time, "database": "sqlite"})
    )
    tmp_path.joinpath("admin.token").write_text("first-token\n")
    tmp_path.joinpath("admin.token").chmod(0o600)
    return tmp_path


def find(directory: Path, **given: str) -> Session:
    options = {
        "client__state_directory": str(directory),
        **{f"client__{name}": value for name, value in given.items()},
    }
    return Session.find(settings.load(options, None, {"HOME": str(directory)}, directory))


def test_the_own_server_is_found_with_its_first_token(tmp_path: Path) -> None:
    with standing_in(Answer(200, TASK)) as server:
        with find(state_directory(tmp_path, server.url, started(os.getpid()))) as session:
            assert session.task("t").task_id == 3
    assert server.seen[0].headers["Authorization"] == "Bearer first-token"


def test_a_server_that_was_killed_gets_no_token(tmp_path: Path) -> None:
    """Its process number, and its port, may be somebody else's by now."""
    with standing_in(Answer(200, TASK)) as server:
        directory = state_directory(tmp_path, server.url, started(os.getpid()) + 1)
        with pytest.raises(PilotageError, match="none runs on the state directory") as caught:
            find(directory)
    assert caught.value.name == "SERVER_UNREACHABLE"
    assert f"pilotage server start --state {tmp_path}" in caught.value.fields["advice"]


def test_the_first_token_is_sent_to_no_other_server(tmp_path: Path) -> None:
    directory = state_directory(tmp_path, "http://127.0.0.1:1", started(os.getpid()))
    with pytest.raises(PilotageError, match="--token-file") as caught:
        find(directory, server="http://127.0.0.1:2")
    assert caught.value.name == "UNAUTHENTICATED"


def test_a_token_file_that_is_named_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("my-token\n")
    (tmp_path / "mine").chmod(0o600)
    with standing_in(Answer(200, TASK)) as server:
        with find(tmp_path, server=server.url, token_file=str(tmp_path / "mine")) as session:
            session.task("t")
    assert server.seen[0].headers["Authorization"] == "Bearer my-token"


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("my-token\n")
    (tmp_path / "mine").chmod(0o644)
    with pytest.raises(PilotageError, match="chmod 600"):
        find(tmp_path, server="http://127.0.0.1:2", token_file=str(tmp_path / "mine"))
