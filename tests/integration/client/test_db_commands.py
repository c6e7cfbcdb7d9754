"""`pilotage db ...` and `pilotage usage`, as an operator types them."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest

from client.commands import usage as usage_command
from protocol.messages.views import UsageView
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
    (titles,) = [line for line in seen.out.splitlines() if line.startswith("table")]
    assert titles.split() == ["table", "rows"], "the others would be empty on SQLite"
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
    refused = pilotage("db", "prune", "--older-than", "soon", "--state", state)
    assert refused.code == 2
    assert "'soon' is no time; write it as 30d, 4w, 12h, 45m or 90s" in refused.err


def test_what_would_go_is_said_while_a_server_runs(pilotage: Pilotage, server: Server) -> None:
    dry = pilotage("db", "prune", "--older-than", "90d", "--dry-run", "--state", server.state)
    assert dry.code == 0 and "would go" in dry.out, dry.err


def test_the_state_directory_has_one_option_everywhere(pilotage: Pilotage, state: Path) -> None:
    for command in (("db", "status"), ("audit",), ("server", "stop")):
        done = pilotage(*command, "--state-directory", state)
        assert done.code == 0, done


def test_without_a_server_the_command_that_starts_one_there_is_told(pilotage: Pilotage, state: Path) -> None:
    done = pilotage("server", "status", "--state", state)
    assert done.code == 1 and done.out.endswith(f"pilotage server start --state {state}\n")


def test_a_backup_into_no_directory_names_it(pilotage: Pilotage, state: Path, tmp_path: Path) -> None:
    done = pilotage("db", "backup", tmp_path / "none" / "b.tar.gz", "--state", state)
    assert done.err == f"Error: a path cannot be used: there is no directory {tmp_path}/none\n"


def test_reconcile_tells_strays(pilotage: Pilotage, state: Path, tmp_path: Path) -> None:
    stray = tmp_path / "data" / "t.out" / "a.o.17"
    stray.parent.mkdir(parents=True)
    stray.write_text("x")
    with sqlite3.connect(state / "pilotage.db") as connection:
        connection.execute("INSERT INTO storage (name, url) VALUES ('s', ?)", (f"file://{tmp_path}/data",))
    told = pilotage("db", "reconcile", "--state", state)
    assert told.code == 0, told.err
    assert "a.o.17" in told.out
    assert "1 file looked at, 1 stray." in told.out
    facts = json.loads(
        pilotage("db", "reconcile", "--state", state, "--quarantine", tmp_path / "q", "--json").out
    )
    assert facts["moved"] == 1
    assert not stray.exists()


def test_reconcile_tells_what_the_server_removes_by_itself(
    pilotage: Pilotage, state: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "t.out"
    folder.mkdir(parents=True)
    for name in ("a.o.17", "a.o.18"):
        (folder / name).write_text("x")
    with sqlite3.connect(state / "pilotage.db") as connection:
        connection.execute("INSERT INTO storage (name, url) VALUES ('s', ?)", (f"file://{tmp_path}/data",))
        row = (17, f"file://{folder}/a.o.17", 4_102_444_800)
        connection.execute("INSERT INTO garbage (attempt_id, url, due) VALUES (?, ?, ?)", row)
    told = pilotage("db", "reconcile", "--state", state)
    noted, other = [line for line in told.out.splitlines() if "a.o.1" in line]
    assert "removed after (UTC)" in told.out
    assert "2100-01-01 00:00:00" in noted and other.endswith("-")
    facts = json.loads(pilotage("db", "reconcile", "--state", state, "--json").out)
    assert [each["removed_after"] for each in facts["strays"]] == ["2100-01-01T00:00:00.000Z", None]


@pytest.mark.component("postgres")
def test_status_on_postgres_shows_dead_rows_sizes_and_the_last_vacuum(
    pilotage: Pilotage, state: Path, postgres_url: str
) -> None:
    assert pilotage("db", "migrate", "--state", state, "--database", postgres_url).code == 0
    seen = pilotage("db", "status", "--state", state, "--database", postgres_url)
    (titles,) = [line for line in seen.out.splitlines() if line.startswith("table")]
    assert titles.split() == ["table", "rows", "dead", "size", "vacuumed", "(UTC)"]


def test_usage_of_a_new_server_is_empty_in_every_form(pilotage: Pilotage, server: Server) -> None:
    since = "2999-01-01"
    assert "No attempt has ended" in pilotage("usage", "--since", since).err
    assert json.loads(pilotage("usage", "--by", "group", "--since", since, "--json").out) == []
    assert pilotage("usage", "--by", "queue", "--since", since, "--csv").out.startswith("queue,nAttempts")
    wrong = pilotage("usage", "--since", "soon")
    assert wrong.code == 2 and "'soon' is no day, as 2026-11-01" in wrong.err
    turned = pilotage("usage", "--since", "2026-12-01", "--until", "2026-01-01")
    assert turned.code == 2 and "--since 2026-12-01 is after --until 2026-01-01" in turned.err


def test_csv_keeps_names_with_commas_apart() -> None:
    text = usage_command._csv("group", [UsageView('a,"b"', 3, 2, 0.25, 10, 20)])
    assert list(csv.reader(io.StringIO(text))) == [
        ["group", "nAttempts", "nCompleted", "coreHours", "inputBytes", "outputBytes"],
        ['a,"b"', "3", "2", "0.25", "10", "20"],
    ]


# -- which database ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("server", "start", "--port", "0"),
        ("audit",),
        ("db", "status"),
        ("db", "migrate"),
        ("db", "backup", "FILE"),
        ("db", "reconcile"),
        ("db", "prune", "--older-than", "1d"),
    ],
)
def test_of_a_server_that_works_elsewhere_the_old_database_is_not_taken_unasked(
    pilotage: Pilotage, state: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    state_directory.note_database(state, "postgresql://ada:geheim@db/pilotage")
    file = tmp_path / "b.tar.gz"
    refused = pilotage(*(str(file) if word == "FILE" else word for word in words), "--state", state)
    assert refused.code in (1, 2)
    assert "postgresql://ada:(hidden)@db/pilotage" in refused.err
    assert f"to go back: --database sqlite:///{state}/pilotage.db" in refused.err
    assert not file.exists()
    assert (
        pilotage("db", "status", "--state", state, "--database", f"sqlite:///{state}/pilotage.db").code == 0
    )


@pytest.mark.component("postgres")
def test_after_a_copy_the_server_does_not_go_back_to_the_old_database_by_itself(
    pilotage: Pilotage, state: Path, postgres_url: str
) -> None:
    copied = pilotage("db", "copy", postgres_url, "--state", state)
    assert copied.code == 0, copied.err
    assert f"pilotage server start --state {state} --database " in copied.out
    refused = pilotage("server", "start", "--state", state, "--port", "0")
    assert refused.code == 1
    assert "postgresql:" in refused.err
    assert "--database" in refused.err


def test_a_running_server_names_its_database(pilotage: Pilotage, server: Server) -> None:
    own = f"sqlite:///{server.state}/pilotage.db"
    assert own in pilotage("server", "status", "--state", server.state).out
    assert json.loads(pilotage("server", "status", "--state", server.state, "--json").out)["database"] == own


@pytest.mark.component("postgres")
@pytest.mark.parametrize("words", [("status",), ("migrate",), ("copy",), ("reconcile",)])
def test_a_database_that_cannot_be_reached_is_told_with_its_address_and_the_reason(
    pilotage: Pilotage, state: Path, words: tuple[str, ...]
) -> None:
    url = "postgresql://ada:geheim@127.0.0.1:1/none"
    given = (url,) if words == ("copy",) else ("--database", url)
    refused = pilotage("db", *words, *given, "--state", state)
    assert refused.code == 1
    assert "postgresql://ada:(hidden)@127.0.0.1:1/none" in refused.err
    assert "refused" in refused.err.lower()
    assert "Retry-After" not in refused.err
    assert "geheim" not in refused.err
    assert state_directory.database_url(state), "nothing was noted"


@pytest.mark.component("postgres")
def test_a_server_whose_database_cannot_be_reached_says_why_it_does_not_start(
    pilotage: Pilotage, tmp_path: Path
) -> None:
    refused = pilotage(
        "server", "start", "--state", tmp_path / "s", "--database", "postgresql://ada:geheim@127.0.0.1:1/none"
    )
    assert refused.code == 1
    assert "postgresql://ada:(hidden)@127.0.0.1:1/none" in refused.err
    assert "refused" in refused.err.lower()
    assert not (tmp_path / "s" / state_directory.ELSEWHERE).exists(), "it never worked there"


# -- a restore in another place ---------------------------------------------------------------------------------------------


def test_a_restore_in_another_place_warns_of_the_storages_and_says_how_to_go_on_there(
    pilotage: Pilotage, state: Path, tmp_path: Path
) -> None:
    with sqlite3.connect(state / "pilotage.db") as connection:
        connection.execute("INSERT INTO storage (name, url) VALUES ('s', 'file:///srv/of-all')")
    file, other = tmp_path / "b.tar.gz", tmp_path / "other place"
    assert pilotage("db", "backup", file, "--state", state).code == 0
    there = pilotage("db", "restore", file, "--state", other)
    assert there.code == 0, there.err
    assert "s (file:///srv/of-all)" in there.err
    assert str(state) in there.err
    assert f"pilotage db reconcile --state '{other}'" in there.out
    assert f"pilotage server start --state '{other}'" in there.out
    here = pilotage("db", "restore", file, "--state", state, "--replace")
    assert here.code == 0
    assert "Warning" not in here.err
