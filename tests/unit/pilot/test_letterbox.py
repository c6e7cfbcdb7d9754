"""The pilot's end of a shared directory: what it writes, what it takes for an answer, and when it gives up."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from pilot import letterbox
from pilot.letterbox import Answer, Letter, Letterbox
from pilot.server_client import is_passing
from protocol.errors import PilotageError
from tests.waiting import wait_until


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """As a bridge makes it."""
    path = tmp_path / "shared"
    for each in (path, path / letterbox.REQUESTS, path / letterbox.ANSWERS):
        letterbox.make(each)
    return path


def asked(shared: Path) -> Path:
    return wait_until(lambda: next(iter(shared.glob(f"{letterbox.REQUESTS}/[!.]*")), None), what="a request")  # type: ignore[return-value]


@contextmanager
def answering(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def answer(shared: Path, content: bytes) -> None:
    """To the request that lies there."""
    client, _, number = asked(shared).name.partition(".")
    place = shared / letterbox.ANSWERS / client
    part = place / ".part"
    part.write_bytes(content)
    part.rename(place / number)


def files(shared: Path) -> list[Path]:
    return [path for path in shared.rglob("*") if not path.is_dir()]


def test_a_request_and_its_answer_are_for_nobody_else_and_vanish(shared: Path) -> None:
    seen: list[tuple[int, bytes]] = []

    def bridge() -> None:
        request = asked(shared)
        modes = [
            request.stat().st_mode,
            *(path.stat().st_mode for path in shared.rglob("*") if path.is_dir()),
        ]
        seen.append((max(stat.S_IMODE(mode) & 0o077 for mode in modes), request.read_bytes()))
        head = {"status": 200, "headers": {"Date": "today"}}
        answer(shared, json.dumps(head).encode() + b"\n" + b'{"a":\n1}')

    box = Letterbox(shared, 0.05)
    with answering(bridge):
        found = box.ask("POST", "/v1/getJob", b'{"b": 2}', 10)
    assert found == Answer(200, {"Date": "today"}, b'{"a":\n1}')
    [(others, request)] = seen
    assert others == 0
    head, _, body = request.partition(b"\n")
    assert json.loads(head) == {"method": "POST", "path": "/v1/getJob", "seconds": 10}
    assert body == b'{"b": 2}'
    assert files(shared) == []
    box.close()
    assert list((shared / letterbox.ANSWERS).iterdir()) == []


def test_a_question_that_nobody_answers_is_taken_back(shared: Path) -> None:
    with pytest.raises(PilotageError, match="no answer within 0.1 s; does a bridge run") as caught:
        Letterbox(shared, 0.05).ask("POST", "/v1/getJob", b"{}", 0.1)
    assert caught.value.name == "BRIDGE_SILENT"
    assert is_passing(caught.value), "it is said again"
    assert files(shared) == []


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"[]\n", b'{"status": "200", "headers": {}}\n', b'{"status": 200}\n']
)
def test_what_is_no_answer_is_not_taken_for_one(shared: Path, content: bytes) -> None:
    with (
        answering(lambda: answer(shared, content)),
        pytest.raises(PilotageError, match="is no answer") as caught,
    ):
        Letterbox(shared, 0.05).ask("POST", "/v1/getJob", b"{}", 10)
    assert caught.value.name == "BRIDGE_SILENT"


def test_who_waits_for_a_bridge_says_so_once_for_each_request(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(PilotageError):
        Letterbox(shared, 0.01).ask("POST", "/v1/getJob", b"{}", 0.3)
    assert caplog.messages == ["no bridge has answered yet; does one run?"]


def test_a_file_system_that_fails_counts_as_a_bridge_that_is_silent(shared: Path) -> None:
    box = Letterbox(shared, 0.05)
    (shared / letterbox.REQUESTS).rmdir()
    with pytest.raises(PilotageError) as caught:
        box.ask("POST", "/v1/getJob", b"{}", 10)
    assert caught.value.name == "BRIDGE_SILENT"


def test_a_directory_reached_by_a_link_or_open_to_others_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shared)
    shared.chmod(0o750)
    for path in (tmp_path / "link", shared, tmp_path / "nowhere"):
        with pytest.raises(PilotageError) as caught:
            Letterbox(path, 0.05)
        assert caught.value.name == "BAD_SETTINGS"


def test_a_file_is_never_written_over_another(shared: Path, tmp_path: Path) -> None:
    """What lies under a name is replaced by a rename, so that a link there leads nowhere."""
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (shared / "name").symlink_to(outside)
    with letterbox.opened(shared) as root:
        letterbox.write(root, "name", Letter({}, b"theirs"))
    assert outside.read_text() == "mine"
    assert (shared / "name").read_bytes() == b"{}\ntheirs"
