"""F3: the power goes at any moment; what was acknowledged is there, whole, and the database opens."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from server.core import Core
from server.database import Database, proxy
from server.models import Counter, Dataset, Site

CUTS = 1000 if os.environ.get("PILOTAGE_SOAK") else 60


def snapshot(source: Path, target: Path) -> None:
    """The bytes of the files as they are, in an order in which a disk may have kept them: database, log, index."""
    for end in ("", "-wal", "-shm"):
        beside = source.with_name(source.name + end)
        if beside.exists():
            shutil.copyfile(beside, target.with_name(target.name + end))


def whole(path: Path) -> set[str]:
    """Open a copy as a server would; the works that are in it. Each wrote three rows, and all of them are there or none."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        found = [
            {name for (name,) in connection.execute(f"SELECT name FROM {table} WHERE name LIKE 'w%'")}
            for table in ("site", "dataset", "counter")
        ]
    finally:
        connection.close()
    assert found[0] == found[1] == found[2]
    return found[0]


@pytest.mark.timeout(1800)
def test_f03_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged(
    sqlite_core_url: str, tmp_path: Path
) -> None:
    """60 cuts here, 1,000 by `make soak`; a checkpoint now and then, so that cuts fall into those too."""
    path = Path(sqlite_core_url.removeprefix("sqlite:///"))
    core = Core(Database(sqlite_core_url), b"k", tmp_path)
    acknowledged: set[str] = set()
    stop, go = threading.Event(), threading.Event()
    chance = random.Random(3)

    def write(thread: int) -> None:
        number = 0
        while not stop.is_set():
            if not go.wait(0.1):
                continue
            name = f"w{thread}-{number}"

            def work(name: str = name) -> None:
                Site.create(name=name)
                Dataset.create(name=name, scope="x" * chance.randrange(1, 3000))
                Counter.create(name=name, value=1)

            core.database.write(work)
            acknowledged.add(name)
            number += 1
            if number % 50 == 0:
                core.database.write(lambda: Counter.update(value=2).where(Counter.value == 1).execute())
        proxy.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        sizes = []
        for cut in range(CUTS):
            go.set()
            stop.wait(chance.random() * 0.02)
            told = set(acknowledged)
            copy = tmp_path / f"cut{cut}" / "pilotage.db"
            copy.parent.mkdir()
            # Between the three copies the writer goes on, as a disk keeps pages of different moments; but no page may be
            # of a moment after a checkpoint that its neighbours have not seen: that is what fsync forbids a disk too.
            with frozen(path):
                snapshot(path, copy)
            go.clear()  # so that a thousand cuts do not look at ever more
            there = whole(copy)
            assert told <= there, f"lost: {sorted(told - there)[:5]}"
            sizes.append(len(there))
            shutil.rmtree(copy.parent)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        core.database.close()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


class frozen:
    """No checkpoint of the log into the file happens in here; writes to the log go on."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)

    def __enter__(self) -> None:
        # A reader of this moment: a checkpoint goes no further than it, and the log is not begun anew.
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT count(*) FROM site").fetchone()

    def __exit__(self, *exc_info: object) -> None:
        self._connection.execute("COMMIT")
        self._connection.close()


def test_f03_a_log_that_was_cut_in_a_transaction_gives_all_before_it(
    sqlite_core_url: str, tmp_path: Path
) -> None:
    """The log torn at each of many lengths: what comes back are the first works, in order, each of them whole."""
    path = Path(sqlite_core_url.removeprefix("sqlite:///"))
    core = Core(Database(sqlite_core_url), b"k", tmp_path)
    with core.database.reading():
        for number in range(20):

            def work(number: int = number) -> None:
                Site.create(name=f"w{number:02}")
                Dataset.create(name=f"w{number:02}", scope="x" * 2000)
                Counter.create(name=f"w{number:02}", value=1)

            core.database.write(work)
        copy = tmp_path / "torn.db"
        snapshot(path, copy)
    core.database.close()
    log = copy.with_name("torn.db-wal").read_bytes()
    whole_file = copy.read_bytes()
    chance = random.Random(5)
    seen = set()
    for length in sorted(chance.sample(range(len(log)), 60)):
        copy.write_bytes(whole_file)
        copy.with_name("torn.db-wal").write_bytes(log[:length])
        copy.with_name("torn.db-shm").unlink(missing_ok=True)
        there = sorted(whole(copy))
        assert there == [f"w{number:02}" for number in range(len(there))]
        seen.add(len(there))
    assert len(seen) > 10
