"""Files in a stream: some thousands in each request, and again what nobody answered."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple

import pytest

from client import session as session_module
from client.session import Session
from protocol.errors import PilotageError
from protocol.messages.requests import FileSpec


class Server:
    """Answers for a session; `failures` are raised first, one per request."""

    def __init__(self, *failures: PilotageError) -> None:
        self.failures = list(failures)
        self.requests: List[Tuple[List[str], Any]] = []
        self.known: set[str] = set()

    def call(self, method: str, path: str, *, query: Dict[str, Any], raw: bytes, kind: str) -> Dict[str, Any]:
        assert (method, path, kind) == ("POST", "/v1/datasets/d/files", "application/x-ndjson")
        lfns = [json.loads(line)["lfn"] for line in raw.splitlines()]
        new = set(lfns) - self.known
        self.known |= new
        self.requests.append((lfns, query["close"]))
        if self.failures:
            raise self.failures.pop(0)
        facts = {
            "name": "d",
            "scope": "d",
            "state": "open",
            "nFiles": len(self.known),
            "size": 0,
            "created": "now",
        }
        return {**facts, "nAdded": len(new), "nKnown": len(lfns) - len(new)}


@pytest.fixture(autouse=True)
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FILES_PER_REQUEST", 3)
    monkeypatch.setattr(session_module, "RESEND_SECONDS", (0.0, 0.0))


def send(monkeypatch: pytest.MonkeyPatch, server: Server, n_files: int, **options: Any) -> Any:
    with Session("http://127.0.0.1:1", "token") as session:
        monkeypatch.setattr(session, "_call", server.call)
        files = (FileSpec(f"f{n}", 1, f"file:///f{n}") for n in range(n_files))
        return session.send_files("d", files, **options)


@pytest.mark.parametrize(("n_files", "sizes"), [(0, [0]), (3, [3]), (7, [3, 3, 1])])
def test_the_last_request_closes_the_dataset(
    monkeypatch: pytest.MonkeyPatch, n_files: int, sizes: List[int]
) -> None:
    server, told = Server(), []
    view = send(monkeypatch, server, n_files, close=True, sent=told.append)
    assert [len(lfns) for lfns, _ in server.requests] == told == sizes
    assert [close for _, close in server.requests] == [None] * (len(sizes) - 1) + ["yes"]
    assert (view.n_added, view.n_known) == (n_files, 0)


def test_what_nobody_answered_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(PilotageError("SERVER_UNREACHABLE", "gone"), PilotageError("SERVER_UNREACHABLE", "gone"))
    view = send(monkeypatch, server, 4)
    assert [lfns for lfns, _ in server.requests] == [["f0", "f1", "f2"]] * 3 + [["f3"]]
    assert (view.n_files, view.n_added, view.n_known) == (4, 1, 3)


@pytest.mark.parametrize("error", ["SERVER_UNREACHABLE", "ALREADY_EXISTS"])
def test_a_refusal_and_a_server_that_stays_away_end_it(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    server = Server(*[PilotageError(error, "no")] * 3)
    with pytest.raises(PilotageError) as caught:
        send(monkeypatch, server, 4)
    assert caught.value.name == error
    assert len(server.requests) == (3 if error == "SERVER_UNREACHABLE" else 1)
