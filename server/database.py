"""The one place that knows SQLite from Postgres: opening, writing, numbering, and doing something in one process only.

Everything is written through `Database.write(work)`, which runs `work` in a transaction and comes back when it is on disk.
On SQLite one writer thread takes all the works that wait at the same time into one transaction, each under a savepoint of
its own, so that they share one fsync and never wait for a lock. On Postgres each work is a transaction of its own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import peewee
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase

from protocol.errors import PilotageError

logger = logging.getLogger(__name__)
T = TypeVar("T")

proxy: peewee.DatabaseProxy = peewee.DatabaseProxy()
"""What the models are bound to; `Database` puts the real one in."""

MIGRATIONS = Path(__file__).parent / "migrations"
GROUP_LIMIT = 64
"""Most works in one transaction of the SQLite writer."""
CONFLICT_TRIES = 5
"""How often a work on Postgres is run when another transaction gets into its way each time."""
CONFLICTS = frozenset({"40001", "40P01", "23505"})
"""SQLSTATE of serialization failure, deadlock, and a name that another transaction took after this one had looked."""
UNREACHABLE = (peewee.OperationalError, peewee.InterfaceError, MaxConnectionsExceeded)
"""What says that the database cannot do it now: away, full, or all connections in use."""
GROUP_SECONDS = 0.02
"""The writer closes its transaction after this time, so that no reader's snapshot and no waiting request grows old."""


class Database:
    """An open database with its schema up to date."""

    def __init__(self, url: str) -> None:
        """`sqlite:////absolute/path` or `postgresql://user@host:port/name`; raises BAD_SETTINGS for anything else."""
        self.is_sqlite = url.startswith("sqlite:")
        self._peewee = _open(url)
        proxy.initialize(self._peewee)
        self._writer = _Writer(self._peewee) if self.is_sqlite else None

    def migrate(self) -> list[str]:
        """Apply the numbered migrations that are missing, each once; their names. Whoever comes second waits."""
        with self._advisory_lock("migrate", "pg_advisory_lock"), self.reading():
            names: list[str] = Runner(self._peewee, str(MIGRATIONS)).up()
        return names

    def write(self, work: Callable[[], T]) -> T:
        """Run `work` in a transaction; what it returns is on disk when this returns, what it raises undoes it.

        It may be run more than once: on Postgres again when another transaction came between, so it keeps nothing outside.
        """
        try:
            return self._writer.run(work) if self._writer is not None else self._write_on_postgres(work)
        except UNREACHABLE as error:
            raise _unavailable(error) from error

    def _write_on_postgres(self, work: Callable[[], T]) -> T:
        for _ in range(CONFLICT_TRIES - 1):
            try:
                with self._connected(), self._peewee.atomic():
                    return work()
            except (peewee.OperationalError, peewee.IntegrityError) as error:
                if _sqlstate(error) not in CONFLICTS:
                    raise
                logger.debug("a transaction is run again: %s", error)
        with self._connected(), self._peewee.atomic():
            return work()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A connection of this thread for reads; on SQLite it stays open, on Postgres it goes back to the pool."""
        try:
            with self._connected():
                yield
        except UNREACHABLE as error:
            raise _unavailable(error) from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """The thread's connection; on Postgres whoever opened it gives it back."""
        opened = self._peewee.connect(reuse_if_open=True)
        try:
            yield
        finally:
            if opened and not self.is_sqlite:
                self._peewee.close()

    def locked(self, query: Any, *of: Any) -> Any:
        """Rows that only this transaction changes until it ends; others wait. SQLite has one writer and needs nothing.

        Of a join, lock the rows `of` these tables in this order: who locks in another order waits for ever for each other.
        """
        return query if self.is_sqlite else query.for_update(of=of or None)

    def skip_locked(self, query: Any, *of: Any) -> Any:
        """The same, but rows that another transaction has locked are passed over; of a join, lock the rows `of` these tables."""
        return query if self.is_sqlite else query.for_update(of=of or None, skip_locked=True)

    def next_numbers(self, sequence: str, n: int) -> range:
        """The next `n` numbers of a sequence; inside `write` only."""
        if self.is_sqlite:
            statement = "UPDATE counter SET value = value + ? WHERE name = ?"
            self._peewee.execute_sql(statement, (n, sequence))
            last = self._peewee.execute_sql(
                "SELECT value FROM counter WHERE name = ?", (sequence,)
            ).fetchone()[0]
        else:
            statement = "UPDATE counter SET value = value + %s WHERE name = %s RETURNING value"
            last = self._peewee.execute_sql(statement, (n, sequence)).fetchone()[0]
        return range(last - n + 1, last + 1)

    @contextlib.contextmanager
    def only_one(self, name: str) -> Iterator[bool]:
        """Whether this process is the one that does `name` now; on SQLite there is only one process."""
        with self._advisory_lock(name, "pg_try_advisory_lock") as got:
            yield got

    @contextlib.contextmanager
    def _advisory_lock(self, name: str, function: str) -> Iterator[bool]:
        """Postgres keeps the lock for this connection, so everything inside uses the same one."""
        if self.is_sqlite:
            yield True
            return
        key = int.from_bytes(name.encode()[:7], "big")
        with self._connected():
            # pg_advisory_lock waits until it has the lock and returns nothing.
            got = self._peewee.execute_sql(f"SELECT {function}(%s)", (key,)).fetchone()[0] is not False
            try:
                yield got
            finally:
                if got:
                    self._peewee.execute_sql("SELECT pg_advisory_unlock(%s)", (key,))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        if not self._peewee.is_closed():
            self._peewee.close()
        if not self.is_sqlite:
            self._peewee.close_all()


def _unavailable(error: Exception) -> PilotageError:
    """For whoever asks: that it may pass. What the database says (its address, say) is for the operator's log."""
    logger.error("the database does not answer", extra={"reason": str(error)})
    return PilotageError("SERVER_UNAVAILABLE", "the database does not take it now")


def _open(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        path = parts.path[1:] if parts.path.startswith("//") else parts.path
        if not path.startswith("/"):
            raise PilotageError(
                "BAD_SETTINGS",
                f"a SQLite database is named by an absolute path: sqlite:////srv/pilotage.db, not {url[:200]}",
            )
        pragmas = {
            "journal_mode": "wal",
            "synchronous": "full",
            "foreign_keys": 1,
            "busy_timeout": 10_000,
            "cache_size": -64_000,
            "temp_store": "memory",
        }
        return peewee.SqliteDatabase(path, pragmas=pragmas)
    if parts.scheme in ("postgresql", "postgres"):
        return PooledPostgresqlDatabase(
            url, max_connections=40, stale_timeout=300, timeout=10, prefer_psycopg3=True
        )
    raise PilotageError(
        "BAD_SETTINGS",
        f"{parts.scheme or url[:40]!r} is no database; use sqlite:////path or postgresql://user@host:port/name",
    )


def _sqlstate(error: peewee.PeeweeException) -> str:
    """The code of the driver's error that peewee wraps; "" if it has none."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


_Item = tuple[Callable[[], Any], Future[Any]]
"""A work that waits, and where its outcome is told."""


class _Writer:
    """The one thread that writes to SQLite."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._works: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="database-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T]) -> T:
        if threading.current_thread() is self._thread:
            return work()
        future: Future[T] = Future()
        self._works.put((work, future))
        if self._ended.is_set():
            self._refuse_waiting()
        return future.result()

    def stop(self) -> None:
        """End when what waits before this is written; what comes later is refused."""
        self._works.put(None)
        self._thread.join()

    def _loop(self) -> None:
        running = True
        while running:
            item = self._works.get()
            if item is None:
                break
            running = self._group(item)
        if not self._database.is_closed():
            self._database.close()
        self._ended.set()
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._works.get_nowait()
                if item is not None:
                    item[1].set_exception(PilotageError("SERVER_UNAVAILABLE", "the server is stopping"))

    def _group(self, item: _Item | None) -> bool:
        """One transaction: the first work and those that wait behind it. False when the writer is told to stop.

        Outcomes are told when the transaction is on disk, also those that are errors: they may rest on what a neighbour wrote.
        """
        taken: list[_Item] = []
        tell: list[Callable[[], None]] = []
        begin = time.monotonic()
        try:
            self._database.connect(reuse_if_open=True)
            with self._database.atomic("IMMEDIATE"):
                while item is not None:
                    taken.append(item)
                    tell.append(self._outcome(*item))
                    if len(taken) >= GROUP_LIMIT or time.monotonic() - begin > GROUP_SECONDS:
                        break
                    try:
                        item = self._works.get_nowait()
                    except queue.Empty:
                        break
        except Exception as error:  # noqa: BLE001  the transaction itself: no work of it came to be
            logger.error("a transaction failed: %s", error)
            if not taken and item is not None:
                taken.append(item)
            tell = [functools.partial(future.set_exception, error) for _, future in taken]
        for each in tell:
            each()
        return item is not None

    def _outcome(self, work: Callable[[], Any], future: Future[Any]) -> Callable[[], None]:
        """Run one work under a savepoint of its own; how to tell what came of it."""
        try:
            with self._database.savepoint():
                result = work()
        except Exception as error:  # the work's own: its savepoint is undone, the others go on
            if not self._database.connection().in_transaction:
                raise  # SQLite gave up the whole transaction, as it may when the disk is full
            return functools.partial(future.set_exception, error)
        return functools.partial(future.set_result, result)
