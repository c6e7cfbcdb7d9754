"""What `write` promises: on disk when it returns, undone when it raises, and no neighbour disturbed, on both databases."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest

from protocol.errors import PilotageError
from server import database as database_module
from server.core import Core
from server.database import Database, proxy
from server.models import Counter, Site
from tests.components import require
from tests.filesystems import mounted
from tests.integration.server.world import World, at_once
from tests.postgres import Cluster
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def names() -> set[str]:
    return {site.name for site in Site.select()}


def put(core: Core, name: str) -> Any:
    return core.database.write(lambda: Site.create(name=name))


class OwnMistake(Exception):
    """Raised by a work."""


# -- one work ---------------------------------------------------------------------------------------------------------------


def test_what_a_work_returns_comes_back_and_is_there(core: Core) -> None:
    assert put(core, "x").name == "x"
    assert "x" in names()


def test_what_a_work_raises_comes_out_and_undoes_all_of_it(core: Core) -> None:
    def work() -> None:
        Site.create(name="x")
        Counter.update(value=99).execute()
        raise OwnMistake

    with pytest.raises(OwnMistake):
        core.database.write(work)
    assert "x" not in names()
    assert {row.value for row in Counter.select()} == {0}
    put(core, "y")


def test_a_work_that_breaks_a_rule_of_the_schema_is_undone(core: Core) -> None:
    def work() -> None:
        Site.create(name="x")
        Site.create(name="LOCAL")

    with pytest.raises(peewee.IntegrityError):
        core.database.write(work)
    assert names() == {"LOCAL"}
    put(core, "x")


def test_a_work_may_write_within_its_own_transaction(core: Core) -> None:
    def work() -> None:
        put(core, "inner")
        raise OwnMistake

    with pytest.raises(OwnMistake):
        core.database.write(work)
    assert "inner" not in names()


def test_nobody_sees_a_transaction_that_has_not_ended(core: Core) -> None:
    inside, looked = threading.Event(), threading.Event()

    def work() -> None:
        Site.create(name="x")
        inside.set()
        assert looked.wait(10)

    writer = threading.Thread(target=lambda: core.database.write(work))
    writer.start()
    assert inside.wait(10)
    seen = names()
    looked.set()
    writer.join(10)
    assert seen == {"LOCAL"}
    assert names() == {"LOCAL", "x"}


def test_numbers_of_a_sequence_are_given_once(core: Core) -> None:
    def take(n: int) -> range:
        return core.database.write(lambda: core.database.next_numbers("ready_nr", n))

    futures = at_once([lambda n=n: take(n) for n in range(1, 13)])
    given = [number for future in futures for number in future.result()]
    assert sorted(given) == list(range(1, len(given) + 1))
    assert len(take(0)) == 0
    assert list(take(2)) == [len(given) + 1, len(given) + 2]


def test_many_more_writers_than_connections_all_get_their_turn(core: Core) -> None:
    for future in at_once([lambda n=n: put(core, f"s{n}") for n in range(60)]):
        future.result()
    assert len(names()) == 61


# -- one transaction, many works (SQLite) ----------------------------------------------------------------------------------------


class Writer:
    """Lets works wait on SQLite while a transaction is being made, so that they share the next one or this one."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.n_commits = 0
        self._commit = core.database._peewee.commit
        core.database._peewee.commit = self._counted

    def _counted(self) -> None:
        self._commit()
        self.n_commits += 1

    def together(self, *works: Callable[[], Any]) -> list[BaseException | Any]:
        """The outcome of each."""
        busy, free = threading.Event(), threading.Event()
        outcomes: list[Any] = [None] * len(works)
        waiting = self.core.database._writer._waiting  # type: ignore[union-attr]

        def block() -> None:
            busy.set()
            assert free.wait(10)

        def run(index: int) -> None:
            try:
                outcomes[index] = self.core.database.write(works[index])
            except Exception as error:  # noqa: BLE001 - the outcome
                outcomes[index] = error

        def hold() -> None:
            with contextlib.suppress(PilotageError):  # it shares the transaction's fate
                self.core.database.write(block)

        threads = [threading.Thread(target=hold)]
        threads[0].start()
        assert busy.wait(10)
        for index in range(len(works)):
            threads.append(threading.Thread(target=run, args=(index,)))
            threads[-1].start()
            wait_until(lambda index=index: len(waiting) == index + 1, what="the work to wait in the queue")
        self.n_commits = 0
        free.set()
        for thread in threads:
            thread.join(20)
        return outcomes

    def commits(self) -> int:
        return self.n_commits


@pytest.fixture
def writer(sqlite_core_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    monkeypatch.setattr(database_module, "GROUP_SECONDS", 30)
    database = Database(sqlite_core_url)
    try:
        yield Writer(Core(database, b"k", tmp_path))
    finally:
        database.close()


def create(name: str) -> Callable[[], str]:
    return lambda: str(Site.create(name=name).name)


def fail_after(name: str) -> Callable[[], None]:
    def work() -> None:
        Site.create(name=name)
        raise OwnMistake

    return work


def test_works_that_wait_at_the_same_time_share_one_transaction(writer: Writer) -> None:
    assert writer.together(*(create(f"s{n}") for n in range(10))) == [f"s{n}" for n in range(10)]
    assert writer.commits() == 1
    assert len(names()) == 11


def test_a_transaction_takes_a_limited_number_of_works(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "GROUP_LIMIT", 4)
    writer.together(*(create(f"s{n}") for n in range(11)))
    assert writer.commits() == 3, "with the work that kept the writer busy there were twelve"
    assert len(names()) == 12


def test_a_work_that_fails_does_not_disturb_its_neighbours(writer: Writer) -> None:
    outcomes = writer.together(create("a"), fail_after("b"), create("c"), create("a"), create("d"))
    assert writer.commits() == 1
    assert [outcomes[0], outcomes[2], outcomes[4]] == ["a", "c", "d"]
    assert isinstance(outcomes[1], OwnMistake)
    assert isinstance(outcomes[3], peewee.IntegrityError)
    assert names() == {"LOCAL", "a", "c", "d"}


def test_a_work_sees_what_its_neighbour_wrote_before_it(writer: Writer) -> None:
    outcomes = writer.together(create("a"), names, fail_after("b"), names)
    assert outcomes[1] == outcomes[3] == {"LOCAL", "a"}


def test_when_the_transaction_cannot_be_written_no_work_is_told_that_it_is(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not the one that failed by itself: it may have seen what now is not there."""

    def disk_full() -> None:
        raise peewee.OperationalError("database or disk is full")

    def commit_fails() -> None:
        monkeypatch.setattr(writer.core.database._peewee, "commit", disk_full)

    outcomes = writer.together(create("a"), commit_fails, fail_after("b"), create("c"))
    monkeypatch.undo()
    assert [getattr(outcome, "name", outcome) for outcome in outcomes] == ["SERVER_UNAVAILABLE"] * 4
    assert names() == {"LOCAL"}
    assert writer.together(create("a")) == ["a"], "and it goes on"


def test_when_sqlite_gives_up_the_transaction_in_the_middle_nothing_of_it_is_told_as_done(
    writer: Writer,
) -> None:
    """As it may when the disk is full: the transaction is rolled back under the writer's feet."""

    def given_up() -> None:
        proxy.execute_sql("ROLLBACK")
        raise peewee.OperationalError("database or disk is full")

    outcomes = writer.together(create("a"), given_up, create("c"))
    assert [getattr(outcome, "name", outcome) for outcome in outcomes[:2]] == ["SERVER_UNAVAILABLE"] * 2
    told = {"c"} if outcomes[2] == "c" else set()
    assert names() == {"LOCAL", *told}
    put(writer.core, "later")


def test_after_the_end_of_the_writer_a_work_is_refused_and_does_not_wait_for_ever(writer: Writer) -> None:
    outcomes = writer.together(
        create("a"), lambda: setattr(writer.core.database._writer, "_stopped", True), create("b")
    )  # type: ignore[union-attr]
    assert outcomes[0] == "a"
    assert outcomes[2] == "b" or getattr(outcomes[2], "name", "") == "SERVER_UNAVAILABLE"
    with pytest.raises(PilotageError) as caught:
        put(writer.core, "c")
    assert caught.value.name == "SERVER_UNAVAILABLE"


def test_g1_sqlite_writes_through_to_the_disk(writer: Writer) -> None:
    def pragmas() -> list[Any]:
        words = ("journal_mode", "synchronous", "foreign_keys")
        return [proxy.execute_sql(f"PRAGMA {word}").fetchone()[0] for word in words]

    assert writer.core.database.write(pragmas) == ["wal", 2, 1]


# -- killed -----------------------------------------------------------------------------------------------------------------

CHILD = textwrap.dedent(
    """
    import os, sys, threading
    from server.database import Database
    from server.models import Site

    database = Database(sys.argv[1])

    def write(thread):
        number = 0
        while True:
            name = f"{sys.argv[2]}-{thread}-{number}"
            database.write(lambda: Site.create(name=name))
            os.write(1, f"{name}\\n".encode())
            number += 1

    for thread in range(4):
        threading.Thread(target=write, args=(thread,)).start()
    """
)


def test_g1_what_was_acknowledged_survives_kill_9(database_url: str) -> None:
    moments = random.Random(7)
    acknowledged: set[str] = set()
    for turn in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, database_url, str(turn)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(moments.randrange(1, 120))]
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=30)
        # The last line may be cut: then it was not told.
        told = b"".join(lines) + rest[: rest.rfind(b"\n") + 1]
        acknowledged |= set(told.decode().split())
    assert len(acknowledged) > 10
    database = Database(database_url)
    try:
        with database.reading():
            assert acknowledged <= names()
            if database.is_sqlite:
                assert proxy.execute_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
            put(Core(database, b"k", ROOT), "and it goes on")
    finally:
        database.close()


@pytest.mark.component("mount")
def test_f12_on_a_full_disk_writes_are_refused_and_go_on_when_there_is_room(sqlite_template: Path) -> None:
    with mounted("size=3m") as place:
        (place / "pilotage.db").write_bytes(sqlite_template.read_bytes())
        (place / "ballast").write_bytes(bytes(1 << 20))
        database = Database(f"sqlite:///{place}/pilotage.db")
        core = Core(database, b"k", place)
        told: set[str] = set()
        try:
            with pytest.raises(PilotageError) as caught:
                for number in range(100):
                    put(core, f"{number:04}" + "x" * 100_000)
                    told.add(f"{number:04}")
            assert caught.value.name == "SERVER_UNAVAILABLE"
            with database.reading():
                assert {name[:4] for name in names()} == {*told, "LOCA"}, (
                    "reads work, and nothing half is there"
                )
            (place / "ballast").unlink()
            put(core, "more" + "x" * 100_000)
            with database.reading():
                assert {name[:4] for name in names()} == {*told, "LOCA", "more"}
                assert proxy.execute_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
        finally:
            database.close()


@pytest.mark.component("postgres")
def test_what_was_answered_is_on_disk_even_where_the_cluster_would_not_wait_for_it(postgres_url: str) -> None:
    """The clusters of the tests have synchronous_commit = off. Options in the address stay."""
    database = Database(f"{postgres_url}?options=-c%20statement_timeout%3D7000")
    try:
        with database.reading():
            shown = [
                proxy.execute_sql(f"SHOW {name}").fetchone()[0]
                for name in ("synchronous_commit", "statement_timeout")
            ]
        assert shown == ["on", "7s"]
    finally:
        database.close()


# -- migrations -------------------------------------------------------------------------------------------------------------


def test_migrations_are_applied_once(core: Core) -> None:
    before = World(core).rows()
    assert core.database.migrate() == []
    assert core.database.migrate() == []
    assert World(core).rows() == before


@pytest.fixture(
    params=["sqlite_core_url", pytest.param("postgres_url", marks=pytest.mark.component("postgres"))]
)
def own_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Whose schema a test may change."""
    database = Database(request.getfixturevalue(request.param))
    try:
        database.migrate()
        yield database
    finally:
        database.close()


def test_f22_a_migration_that_fails_leaves_the_schema_before_it(
    own_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for path in database_module.MIGRATIONS.glob("0*.py"):
        (folder / path.name).write_text(path.read_text())
    monkeypatch.setattr(database_module, "MIGRATIONS", folder)
    (folder / "0101_good.py").write_text(
        "def up(migrator, db):\n    db.execute_sql('CREATE TABLE one (a INT)')\n"
    )
    half = "def up(migrator, db):\n    db.execute_sql('CREATE TABLE two (a INT)')\n"
    (folder / "0102_half.py").write_text(half + "    raise RuntimeError('died here')\n")
    with pytest.raises(RuntimeError, match="died here"):
        own_database.migrate()
    with own_database.reading():
        tables = set(proxy.get_tables())
    assert "one" in tables
    assert "two" not in tables
    (folder / "0102_half.py").write_text(half)
    assert own_database.migrate() == ["0102_half"]
    with own_database.reading():
        assert "two" in proxy.get_tables()


MIGRATE = """
import sys
from server.database import Database
database = Database(sys.argv[1])
print(*database.migrate())
database.close()
"""


def test_of_several_servers_that_start_at_once_one_migrates(postgres_url: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, postgres_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(3)
    ]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    migrations = sorted(path.stem for path in database_module.MIGRATIONS.glob("0*.py"))
    assert sorted(" ".join(out for out, _ in outputs).split()) == migrations


# -- Postgres ---------------------------------------------------------------------------------------------------------------


def test_connections_go_back_to_the_pool(postgres_core: Core) -> None:
    pool = postgres_core.database._peewee
    put(postgres_core, "x")
    assert not pool._in_use
    with postgres_core.database.reading():
        put(postgres_core, "y")
        names()
        with postgres_core.database.reading():
            assert len(pool._in_use) == 1
        put(postgres_core, "z")
        assert len(pool._in_use) == 1
    with pytest.raises(OwnMistake):
        postgres_core.database.write(fail_after("x2"))
    assert not pool._in_use


def test_two_transactions_that_wait_for_each_other_are_both_done(postgres_core: Core) -> None:
    """Postgres ends one of them; it is run again."""
    put(postgres_core, "x")
    put(postgres_core, "y")
    meet = threading.Barrier(2)
    runs: list[str] = []

    def work(first: str, second: str) -> Callable[[], None]:
        def run() -> None:
            proxy.execute_sql("SET LOCAL deadlock_timeout = '20ms'")
            runs.append(first)
            Site.update(state=first).where(Site.name == first).execute()
            if runs.count(first) == 1:
                meet.wait(10)
            Site.update(state=first).where(Site.name == second).execute()

        return run

    database = postgres_core.database
    futures = at_once([lambda: database.write(work("x", "y")), lambda: database.write(work("y", "x"))])
    for future in futures:
        future.result()
    assert len(runs) >= 3, "on a slow machine they may meet more than once"
    with database.reading():
        states = {site.state for site in Site.select().where(Site.name.in_(["x", "y"]))}
    assert states in ({"x"}, {"y"})


def test_a_work_that_is_always_in_conflict_is_given_up(postgres_core: Core) -> None:
    put(postgres_core, "x")
    runs = []

    def work() -> None:
        runs.append(1)
        Site.create(name="x")

    with pytest.raises(peewee.IntegrityError):
        postgres_core.database.write(work)
    assert len(runs) == database_module.CONFLICT_TRIES


def test_one_process_at_a_time_does_what_only_one_may_do(postgres_core: Core) -> None:
    database, inside, leave = postgres_core.database, threading.Event(), threading.Event()

    def hold() -> bool:
        with database.only_one("reaper") as chosen:
            put(postgres_core, "written within")
            with database.reading():
                names()
            inside.set()
            assert leave.wait(10)
        return chosen

    def look() -> list[bool]:
        assert inside.wait(10)
        with database.only_one("reaper") as chosen, database.only_one("closer") as other:
            seen = [chosen, other]
        leave.set()
        return seen

    held, looked = at_once([hold, look])
    assert held.result() is True
    assert looked.result() == [False, True]
    with database.only_one("reaper") as chosen:
        assert chosen
    assert not database._peewee._in_use


def test_on_sqlite_there_is_only_one(writer: Writer) -> None:
    with writer.core.database.only_one("reaper") as chosen:
        assert chosen


@pytest.fixture
def honest_cluster() -> Iterator[Cluster]:
    """A Postgres of our own that writes before it answers, as every one does that is not for tests."""
    require("postgres")
    cluster = Cluster("synchronous_commit=on")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.mark.component("postgres")
def test_f02_a_database_that_was_killed_is_used_again_when_it_is_back(
    honest_cluster: Cluster, tmp_path: Path
) -> None:
    honest_cluster.execute("CREATE DATABASE pilotage")
    database = Database(honest_cluster.url("pilotage"))
    core = Core(database, b"k", tmp_path)
    try:
        database.migrate()
        for future in at_once([lambda n=n: put(core, f"before{n}") for n in range(8)]):
            future.result()
        honest_cluster.stop(signal.SIGQUIT)
        for call in (lambda: put(core, "away"), lambda: read(database)):
            with pytest.raises(PilotageError) as caught:
                call()
            assert caught.value.name == "SERVER_UNAVAILABLE"
        honest_cluster.start()

        def heals() -> bool:
            try:
                put(core, "back")
                return "back" in read(database)
            except PilotageError as error:
                assert error.name == "SERVER_UNAVAILABLE"
                return False

        wait_until(heals, 10, "the pool to heal")
        assert read(database) == {"back", *(f"before{n}" for n in range(8))}
    finally:
        database.close()


def read(database: Database) -> set[str]:
    with database.reading():
        return names()
