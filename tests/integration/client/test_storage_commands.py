"""`pilotage storage ...` as an operator types it, against a real server."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from client.session import Session
from protocol.messages.requests import TaskSpec, TokenSpec
from protocol.messages.views import DatasetCleaned, DatasetView
from server.auditing import replica_checks, storage_checks
from tests.integration.client.conftest import Pilotage, Server
from tests.waiting import wait_until

CONTENT = b"the bytes of a file"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_checks, "sleep", lambda seconds: None)


@pytest.fixture
def store(pilotage: Pilotage, server: Server, tmp_path: Path) -> Path:
    """A storage of this name with three registered files, a to c."""
    name = f"S{secrets.token_hex(3)}"
    root = tmp_path / name
    assert pilotage("storage", "create", name, f"file://{root}").code == 0
    for lfn in "abc":
        (root / "in").mkdir(exist_ok=True)
        (root / "in" / lfn).write_bytes(CONTENT)
    assert pilotage("dataset", "register", name, root / "in").code == 0
    return root


def test_a_storage_is_checked_repaired_and_cleared_of_what_nobody_knows(
    pilotage: Pilotage, server: Server, session: Session, store: Path, tmp_path: Path
) -> None:
    words = ("storage", "check", store.name, "--state", server.state)
    clean = pilotage(*words)
    assert (clean.code, clean.out.splitlines()[-1]) == (
        0,
        "3 replicas looked at, the bytes of 3 compared: all is as the catalogue says.",
    )
    (store / "in" / "a").unlink()
    (store / "in" / "b").write_bytes(CONTENT.upper())
    dark = store / "who-knows.\x1b[2J"
    dark.write_bytes(b"dark")
    found = pilotage(*words)
    assert found.code == 1, found.err
    assert "is not at" in found.out and "has blake3" in found.out and "\x1b" not in found.out
    assert "2 wrong, 1 dark. --repair notes it in the catalogue" in found.out
    facts = json.loads(pilotage(*words, "--json").out)
    assert [(fault["lfn"], fault["check"], fault["nGood"]) for fault in facts["faults"]] == [
        ("a", "lost-file", 0),
        ("b", "wrong-checksum", 0),
    ]
    assert facts["storages"][0]["dark"] == 1 and facts["marked"] is None
    assert not [file for file in session.dataset_files(store.name) if file.replicas[0].state != "good"]  # type: ignore[index]

    fresh = pilotage(*words, "--quarantine", tmp_path / "dark")
    assert dark.exists() and "it was changed within the grace time" in fresh.out
    os.utime(dark, (1.0, 1.0))
    repaired = pilotage(*words, "--repair", "--quarantine", tmp_path / "dark")
    assert repaired.code == 1
    assert "1 file moved away. The catalogue knows: 2 replicas marked." in repaired.out
    assert len(list((tmp_path / "dark" / store.name).iterdir())) == 1
    listed = pilotage("dataset", "files", store.name).out
    assert "1; bad: lost-file: it is not at" in listed
    (store / "in" / "b").write_bytes(CONTENT)
    again = pilotage(*words, "--repair")
    assert "1 that were suspect or bad are right again." in again.out
    states = {file.lfn: file.replicas[0].state for file in session.dataset_files(store.name)}  # type: ignore[index]
    assert states == {"a": "bad", "b": "good", "c": "good"}


def test_what_cannot_be_looked_at_is_said_and_ends_with_2(
    pilotage: Pilotage, server: Server, store: Path, tmp_path: Path
) -> None:
    name = f"R{secrets.token_hex(3)}"
    assert pilotage("storage", "create", name, "root://eos.example//spd").code == 0
    seen = pilotage("storage", "check", name, "--state", server.state)
    assert seen.code == 2 and "this host cannot look into root: addresses" in seen.out
    unknown = pilotage("storage", "check", "NOWHERE", "--state", server.state)
    assert unknown.code == 2 and "no storage NOWHERE" in unknown.err
    inside = pilotage("storage", "check", store.name, "--state", server.state, "--quarantine", store / "dark")
    assert inside.code == 2 and "within storage" in inside.err


def test_repair_without_a_server_is_refused_before_anything_is_looked_at(
    pilotage: Pilotage, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    assert pilotage("db", "migrate", "--state", tmp_path / "state").code == 0
    refused = pilotage("storage", "check", "--repair", "--state", tmp_path / "state")
    assert refused.code == 2 and "looked at" not in refused.out


def test_repair_without_an_admins_token_is_refused_before_anything_is_looked_at(
    pilotage: Pilotage,
    server: Server,
    session: Session,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = session.create_token(TokenSpec(f"u{secrets.token_hex(3)}", role="user")).token
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text(str(secret))
    monkeypatch.setenv("PILOTAGE_CLIENT__TOKEN_FILE", str(tmp_path / "token"))
    looked: list[object] = []
    monkeypatch.setattr(replica_checks, "look", lambda *words: looked.append(words))
    refused = pilotage("storage", "check", store.name, "--state", server.state, "--repair")
    assert refused.code == 2 and "admin" in refused.err and not looked


def test_how_full_storages_are_is_shown_as_a_table_and_as_json(
    pilotage: Pilotage, server: Server, store: Path
) -> None:
    words = ("storage", "usage", store.name, "--state", server.state)
    titles, row = pilotage(*words, "--by", "dataset").out.splitlines()
    assert titles.split() == ["storage", "dataset", "files", "size"]
    assert row.split() == [store.name, store.name, "3", "57", "B"]
    [line] = json.loads(pilotage(*words, "--json").out)
    assert (line["nFiles"], line["size"]) == (3, 57)
    (store / "who-knows").write_bytes(CONTENT)
    [disk] = json.loads(pilotage(*words, "--disk", "--json").out)
    assert (disk["nFiles"], disk["size"], disk["nLogs"]) == (4, 76, 0)
    refused = pilotage(*words, "--disk", "--by", "task")
    assert refused.code == 2 and "exclude each other" in refused.err


def test_old_logs_go_when_that_is_confirmed_and_nothing_else_does(
    pilotage: Pilotage, server: Server, session: Session, store: Path, tmp_path: Path
) -> None:
    ended, running = (
        session.submit_task(TaskSpec(f"{store.name}-{word}", ["true"], n_jobs=1))
        for word in ("ended", "runs")
    )
    session.cancel_task(ended.task_id)
    wait_until(lambda: session.task(ended.task_id).ended, 20, "the end of the task")
    old = store / "log" / f"task-{ended.task_id}"
    kept = [
        old / "notes.txt",
        store / "log" / f"task-{running.task_id}" / "job-2.2.tar.gz",
        store / "log" / "task-99999999" / "job-3.3.tar.gz",
        tmp_path / "elsewhere" / "job-4.4.tar.gz",
    ]
    for path in (old / "job-1.1.tar.gz", old / "job-1.2.tar.gz", *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    words = ("storage", "clean", "--state", server.state, "--logs-older-than", "1s")

    def told() -> str:
        seen = pilotage(*words)
        assert seen.code == 0 and "2 files, 10 B. Nothing was removed: --yes does it." in seen.out
        return seen.out

    assert ended.name in wait_until(told, 20, "logs that are a second old")
    assert (old / "job-1.1.tar.gz").exists()
    done = pilotage(*words, "--yes", "--json")
    assert done.code == 0 and json.loads(done.out)["logs"][0]["nFiles"] == 2
    assert not (old / "job-1.1.tar.gz").exists() and all(path.exists() for path in kept)
    old.rename(tmp_path / "moved")
    old.symlink_to(tmp_path / "elsewhere")
    pilotage(*words, "--yes")
    assert kept[-1].exists(), "a link in the place of a folder is not followed"
    session.cancel_task(running.task_id)


def test_outputs_are_cleaned_by_age_name_and_state(
    pilotage: Pilotage, server: Server, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which ones are asked for; what the server makes of that is tested there."""
    asked: list[tuple[str, bool]] = []

    def made(name: str, state: str, closed: str | None, task_id: int | None = 1) -> DatasetView:
        return DatasetView(
            name, name, state, n_files=3, size=9, created=long_ago, closed=closed, task_id=task_id
        )

    def clean(self: Session, name: str, *, dry: bool = False) -> DatasetCleaned:
        asked.append((name, dry))
        return DatasetCleaned(name, 3, 9, 3 if dry else 0, "task x reads it" if name == "old.2" else "")

    long_ago, soon = "2026-01-01T00:00:00.000Z", "2199-01-01T00:00:00.000Z"
    shown = [
        made("old.1", "closed", long_ago),
        made("old.2", "closed", long_ago),
        made("older", "closed", long_ago),
        made("old.raw", "closed", long_ago, None),
        made("old.new", "closed", soon),
        made("old.open", "open", None),
        made("old.gone", "deleted", long_ago),
    ]
    monkeypatch.setattr(
        Session, "datasets", lambda self, state: (each for each in shown if each.state == state)
    )
    monkeypatch.setattr(Session, "clean_dataset", clean)
    words = ("storage", "clean", "--state", server.state, "--dataset", "old.*")
    seen = pilotage(*words, "--outputs-older-than", "1d")
    assert asked == [("old.1", True), ("old.2", True)]
    assert seen.code == 0 and "Would go: 3 files, 9 B." in seen.out and "task x reads it" in seen.out
    asked.clear()
    assert pilotage(*words, "--outputs-older-than", "1d", "-y").code == 1, "one of them stays"
    assert asked == [("old.1", False), ("old.2", False)]
    asked.clear()
    assert pilotage(*words, "--deleted", "--yes").code == 0
    assert asked == [("old.gone", False)]
    assert "say what may go" in pilotage("storage", "clean", "--state", server.state).err


def test_cleaning_a_dataset_ends_when_a_request_removes_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([5, 3, 3])
    monkeypatch.setattr(Session, "_one", lambda *_: DatasetCleaned("d", 7, 7, next(left)))
    assert session.clean_dataset("d").n_left == 3


def test_logs_are_not_chosen_by_dataset(pilotage: Pilotage, server: Server) -> None:
    words = ("--logs-older-than", "1s", "--dataset", "mine", "--yes")
    refused = pilotage("storage", "clean", "--state", server.state, *words)
    assert refused.code == 2 and "--logs-older-than and --dataset exclude each other" in refused.err
