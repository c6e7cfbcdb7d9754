"""`pilotage db ...` and `pilotage usage`, as an operator types them."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from client.commands import usage as usage_command
from protocol.messages import UsageView
from server import state_directory
from server.upkeep.backup import known_migrations
from tests.integration.client.conftest import Pilotage, Server


@pytest.fixture
def state(tmp_path: Path, pilotage: Pilotage) -> Path:
    """An installation without a server, its schema up to date."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    done = pilotage("db", "migrate", "--state", directory)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"applied {name}" for name in known_migrations()]
    assert "up to date" in pilotage("db", "migrate", "--state", directory).out
    assert (directory / "pilotage.db").stat().st_mode & 0o077 == 0
    return directory


def test_migrate_is_refused_while_a_server_holds_the_state(pilotage: Pilotage, server: Server) -> None:
    refused = pilotage("db", "migrate", "--state", server.state)
    assert refused.code == 1
    assert f"in use by process {server.pid}" in refused.err
    assert "pilotage server stop" in refused.err


def test_a_running_server_is_looked_at_and_backed_up(
    pilotage: Pilotage, server: Server, tmp_path: Path
) -> None:
    seen = pilotage("db", "status", "--state", server.state)
    assert seen.code == 0, seen.err
    assert known_migrations()[-1] in seen.out
    assert "0 in the archive" in seen.out
    facts = json.loads(pilotage("db", "status", "--state", server.state, "--json").out)
    assert facts["missing"] == []
    done = pilotage("db", "backup", tmp_path / "b.tar.gz", "--state", server.state)
    assert done.code == 0, done.err
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600


def test_status_of_an_older_schema_says_so_and_ends_with_1(pilotage: Pilotage, state: Path) -> None:
    with sqlite3.connect(state / "pilotage.db") as connection:
        connection.execute("DELETE FROM schema_migration WHERE name > '0002'")
    seen = pilotage("db", "status", "--state", state)
    assert seen.code == 1
    assert "0003_archive" in seen.out
    assert "pilotage db migrate" in seen.out


def test_status_of_nothing_makes_no_database(pilotage: Pilotage, tmp_path: Path) -> None:
    refused = pilotage("db", "status", "--state", tmp_path / "nowhere")
    assert refused.code == 1
    assert "there is no database" in refused.err
    assert not (tmp_path / "nowhere").exists()


def test_backup_and_restore_into_an_empty_state(pilotage: Pilotage, state: Path, tmp_path: Path) -> None:
    (state / "server.key").write_text("ab" * 32)
    file, other = tmp_path / "b.tar.gz", tmp_path / "other"
    assert pilotage("db", "backup", file, "--state", state).code == 0
    restored = pilotage("db", "restore", file, "--state", other)
    assert restored.code == 0, restored.err
    assert "attempts from before are refused" in restored.out
    assert (other / "server.key").read_text() == "ab" * 32
    assert pilotage("db", "status", "--state", other).code == 0
    refused = pilotage("db", "restore", file, "--state", other)
    assert refused.code == 1
    assert "--replace" in refused.err
    again = pilotage("db", "restore", file, "--state", other, "--replace")
    assert again.code == 0
    assert len(list(other.glob("pilotage.db.before-restore-*"))) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("restore", "FILE", "--replace"),
        ("prune", "--older-than", "1d"),
        ("copy", "postgresql://nobody@127.0.0.1:1/x"),
    ],
)
def test_what_changes_the_data_waits_for_the_server_to_stop(
    pilotage: Pilotage, state: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    file = tmp_path / "b.tar.gz"
    assert pilotage("db", "backup", file, "--state", state).code == 0
    with state_directory.locked(state):
        refused = pilotage("db", *(str(file) if word == "FILE" else word for word in words), "--state", state)
    assert refused.code == 1
    assert "in use by" in refused.err


def test_prune_says_what_would_go(pilotage: Pilotage, state: Path) -> None:
    dry = pilotage("db", "prune", "--older-than", "90d", "--dry-run", "--state", state)
    assert dry.code == 0, dry.err
    assert "would go" in dry.out
    real = json.loads(
        pilotage("db", "prune", "--older-than", "4w", "--compact", "--state", state, "--json").out
    )
    assert {each["n"] for each in real} == {0}
    assert pilotage("db", "prune", "--older-than", "soon", "--state", state).code == 2


def test_reconcile_tells_strays(pilotage: Pilotage, state: Path, tmp_path: Path) -> None:
    stray = tmp_path / "data" / "t.out" / "a.o.17"
    stray.parent.mkdir(parents=True)
    stray.write_text("x")
    with sqlite3.connect(state / "pilotage.db") as connection:
        connection.execute("INSERT INTO storage (name, url) VALUES ('s', ?)", (f"file://{tmp_path}/data",))
    told = pilotage("db", "reconcile", "--state", state)
    assert told.code == 0, told.err
    assert "a.o.17" in told.out
    assert "1 output file looked at, 1 stray." in told.out
    facts = json.loads(
        pilotage("db", "reconcile", "--state", state, "--quarantine", tmp_path / "q", "--json").out
    )
    assert facts["moved"] == 1
    assert not stray.exists()


def test_usage_of_a_new_server_is_empty_in_every_form(pilotage: Pilotage, server: Server) -> None:
    since = "2999-01-01"
    assert "No attempt has ended" in pilotage("usage", "--since", since).err
    assert json.loads(pilotage("usage", "--by", "group", "--since", since, "--json").out) == []
    assert pilotage("usage", "--by", "queue", "--since", since, "--csv").out.startswith("queue,nAttempts")
    assert pilotage("usage", "--since", "soon").code == 2


def test_csv_keeps_names_with_commas_apart() -> None:
    text = usage_command._csv("group", [UsageView('a,"b"', 3, 2, 0.25, 10, 20)])
    assert list(csv.reader(io.StringIO(text))) == [
        ["group", "nAttempts", "nCompleted", "coreHours", "inputBytes", "outputBytes"],
        ['a,"b"', "3", "2", "0.25", "10", "20"],
    ]
