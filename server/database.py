"""The one place that knows SQLite from Postgres: opening, writing, numbering, and doing something in one process only.

Everything is written through `Database.write(work)`, which runs `work` in a transaction and comes back when it is on disk.
On SQLite whichever thread comes first takes all the works that wait at the same time into one transaction, each under a
savepoint of its own, so that they share one fsync and never wait for a lock of the file. On Postgres each work is a
transaction of its own. What is done for every job is said in SQL once and for both: a `Chain` of statements.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import peewee
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase

from protocol.errors import PilotageError
from protocol.redaction import redact
from server.state_directory import named

logger = logging.getLogger(__name__)
T = TypeVar("T")

proxy: peewee.DatabaseProxy = peewee.DatabaseProxy()
"""What the models are bound to; `Database` puts the real one in."""

_as_peewee_errors = peewee.__exception_wrapper__
"""Turns a driver's errors into peewee's, as its own calls do."""

MIGRATIONS = Path(__file__).parent / "migrations"
GROUP_LIMIT = 64
"""Most works in one transaction on SQLite."""
OLDEST_SQLITE = (3, 35)
"""The first one with RETURNING."""
CONFLICT_TRIES = 5
"""How often a work on Postgres is run when another transaction gets into its way each time."""
TAKEN = "23505"
"""SQLSTATE of a name or number that is there already."""
CONFLICTS = frozenset({"40001", "40P01", TAKEN})
"""SQLSTATE of serialization failure, deadlock, and a name that another transaction took after this one had looked."""
UNREACHABLE = (peewee.OperationalError, peewee.InterfaceError, peewee.InternalError, MaxConnectionsExceeded)
"""What says that the database cannot do it now: away, full, all connections in use, or (InternalError) a standby, which is read-only."""
NO_JIT = "-c jit=off"
"""On Postgres: every statement of ours is short, and where its cost is overrated, compiling it takes as long as a hundred runs of it."""
BELIEVED_SECONDS = 1.0
"""A connection to Postgres that was in use so lately is not asked whether it still lives; a request that finds it dead says 503."""
GROUP_SECONDS = 0.02
"""A transaction takes in no more works after this time, so that no reader's snapshot and no waiting request grows old."""


@dataclass(frozen=True)
class Rows:
    """Rows that a chain is given: a table of this name with these columns, each with its type in SQL."""

    name: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One statement of a chain; what it returns is a table of this name for the statements after it."""

    name: str
    sql: str
    columns: Mapping[str, str]


class Chain:
    """Statements that build on each other's rows, compiled once and done as one.

    They are written in the SQL that both databases share: `:name` is a parameter, rows that were given and what earlier
    parts returned are tables by their names, `{skip_locked}` passes over rows that another transaction has locked. A part
    sees what earlier parts returned, and must not read the tables that these changed: on Postgres all of them are one
    statement with one snapshot, on SQLite they run one after the other. The rows of the part `result` come back.
    """

    def __init__(self, *parts: Rows | Part, result: str, bulk: bool = False) -> None:
        """One for `bulk` is planned anew each time on Postgres: in between its tables may have grown a thousandfold."""
        self.parts = parts
        self.result = result
        self.prepare = False if bulk else None

    @functools.cached_property
    def postgres(self) -> str:
        """One statement for all."""
        tables = []
        for part in self.parts:
            sql = _given_on_postgres(part) if isinstance(part, Rows) else part.sql
            tables.append(f"{part.name} AS ({sql})")
        text = f"WITH {', '.join(tables)} SELECT * FROM {self.result}"
        text = text.replace("{skip_locked}", "FOR UPDATE SKIP LOCKED")
        return re.sub(r"(?<!:):(\w+)", r"%(\1)s", text.replace("%", "%%"))

    @functools.cached_property
    def sqlite(self) -> list[tuple[Part, str, list[str]]]:
        """Each statement, and the names of the parameters that it takes: rows travel as JSON."""
        known: dict[str, Rows | Part] = {}
        statements = []
        for part in self.parts:
            if isinstance(part, Part):
                used = [each for name, each in known.items() if re.search(rf"\b{name}\b", part.sql)]
                tables = ", ".join(_table_on_sqlite(each) for each in used)
                text = f"WITH {tables} {part.sql}" if used else part.sql
                text = text.replace("{skip_locked}", "")
                statements.append((part, text, re.findall(r"(?<!:):(\w+)", text)))
            known[part.name] = part
        return statements


def _given_on_postgres(rows: Rows) -> str:
    columns = ", ".join(
        f"CAST(each->>{index} AS {kind}) AS {name}" for index, (name, kind) in enumerate(rows.columns.items())
    )
    return f"SELECT {columns} FROM jsonb_array_elements(CAST(:{rows.name} AS jsonb)) AS each"


def _table_on_sqlite(rows: Rows | Part) -> str:
    columns = ", ".join(f"json_extract(value, '$[{index}]')" for index in range(len(rows.columns)))
    # Materialized: who joins two of them then gets an index, and does not read one of them again for each row of the other.
    return f"{rows.name}({', '.join(rows.columns)}) AS MATERIALIZED (SELECT {columns} FROM json_each(:{rows.name}))"


class Database:
    """An open database with its schema up to date."""

    def __init__(self, url: str) -> None:
        """`sqlite:////absolute/path` or `postgresql://user@host:port/name`; raises BAD_SETTINGS for anything else."""
        self.is_sqlite = url.startswith("sqlite:")
        self.bulk_seconds = 0.01 if self.is_sqlite else 0.05
        """How long a transaction of many rows is to take: on SQLite everybody waits for it, else who wants the same rows."""
        self.bulk_least = 20 if self.is_sqlite else 500
        """Rows below which it takes no less: on Postgres it may first pass over many that cannot be cleaned up yet."""
        if self.is_sqlite and sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise PilotageError(
                "BAD_SETTINGS",
                f"this Python has SQLite {sqlite3.sqlite_version}, and {'.'.join(map(str, OLDEST_SQLITE))} or newer is"
                " needed; take a newer Python, or Postgres",
            )
        self._peewee = _open(url)
        proxy.initialize(self._peewee)
        self._writer = _Writer(self._peewee) if self.is_sqlite else None

    def migrate(self) -> list[str]:
        """Apply the numbered migrations that are missing, each once; their names. Whoever comes second waits."""
        with self._advisory_lock("migrate", "pg_advisory_lock"), self.reading():
            names: list[str] = Runner(self._peewee, str(MIGRATIONS)).up()
        return names

    def write(self, work: Callable[[], T], *, atomic: bool = True) -> T:
        """Run `work` in a transaction; what it returns is on disk when this returns, what it raises undoes it.

        It may be run more than once: on Postgres again when another transaction came between, so it keeps nothing outside.
        A work that is one chain needs no transaction around it on Postgres (`atomic=False`), which saves two round trips.
        """
        try:
            return (
                self._writer.run(work) if self._writer is not None else self._write_on_postgres(work, atomic)
            )
        except UNREACHABLE as error:
            raise _unavailable(error) from error

    def together(self, work: Callable[[], T]) -> T:
        """Run a work made of several `write`s: on SQLite they share a transaction, and so an fsync; on Postgres each has its own."""
        return self.write(work) if self.is_sqlite else work()

    def run(self, chain: Chain, **values: Any) -> list[Any]:
        """The rows of a chain's result; inside `write`. Rows that it is given are lists of tuples."""
        for part in chain.parts:
            if isinstance(part, Rows):
                values[part.name] = json.dumps(values[part.name])
        connection = self._peewee.connection()
        if not self.is_sqlite:
            with _as_peewee_errors:
                return connection.execute(chain.postgres, values, prepare=chain.prepare).fetchall()
        result: list[Any] = []
        with _as_peewee_errors:
            for part, text, names in chain.sqlite:
                rows = connection.execute(text, {name: values[name] for name in names}).fetchall()
                if part.columns:
                    values[part.name] = json.dumps(rows)
                if part.name == chain.result:
                    result = rows
        return result

    def _write_on_postgres(self, work: Callable[[], T], atomic: bool) -> T:
        for left in reversed(range(CONFLICT_TRIES)):
            try:
                with self._connected(), self._peewee.atomic() if atomic else contextlib.nullcontext():
                    return work()
            except (peewee.OperationalError, peewee.IntegrityError) as error:
                if not left or _sqlstate(error) not in (CONFLICTS if atomic else CONFLICTS - {TAKEN}):
                    raise
                logger.debug("a transaction is run again: %s", error)
        raise AssertionError("unreachable")

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

    def next_numbers(self, sequence: str, n: int) -> Sequence[int]:
        """The next `n` numbers of a sequence, in order; inside `write` only. On Postgres nobody waits for another's numbers."""
        if not self.is_sqlite:
            cursor = self._peewee.execute_sql(
                f"SELECT nextval('{sequence}') FROM generate_series(1, %s)", (n,)
            )
            return [number for (number,) in cursor.fetchall()]
        statement = "UPDATE counter SET value = value + ? WHERE name = ? RETURNING value"
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


class _Sqlite(peewee.SqliteDatabase):
    """What has failed is told as it is."""

    def rollback(self) -> None:
        """Nothing where SQLite has given the transaction up by itself, as on a full disk: an error here would hide why."""
        if self.connection().in_transaction:
            super().rollback()


class _Pool(PooledPostgresqlDatabase):
    """Connections to Postgres, asked whether they live when they were idle for a while (peewee's own: each time)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._used: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def _is_closed(self, connection: Any) -> bool:
        idle = time.monotonic() - self._used.get(connection, -BELIEVED_SECONDS)
        return bool(connection.closed or (idle > BELIEVED_SECONDS and super()._is_closed(connection)))

    def _close(self, connection: Any, close_conn: bool = False) -> None:
        self._used[connection] = time.monotonic()
        super()._close(connection, close_conn)


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """For the command line, where whoever asks is the operator: DATABASE_UNREACHABLE with the address and what the database says."""
    try:
        yield
    except (*UNREACHABLE, PilotageError) as error:
        reason = error.__cause__ if isinstance(error, PilotageError) else error
        if not isinstance(reason, UNREACHABLE):
            raise
        raise PilotageError("DATABASE_UNREACHABLE", f"{named(url)}: {in_words(reason)}") from error


def in_words(error: object) -> str:
    """What a driver says, in one line and without passwords."""
    return "; ".join(line.strip() for line in redact(str(error)).splitlines())


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
        return _Sqlite(path, pragmas=pragmas)
    if parts.scheme in ("postgresql", "postgres"):
        # What was answered is on disk, whatever the cluster is set to: as synchronous=full is on SQLite.
        options = [*parse_qs(parts.query).get("options", ()), "-c synchronous_commit=on", NO_JIT]
        return _Pool(
            url,
            max_connections=40,
            stale_timeout=300,
            timeout=10,
            prefer_psycopg3=True,
            options=" ".join(options),
        )
    raise PilotageError(
        "BAD_SETTINGS",
        f"{parts.scheme or url[:40]!r} is no database; use sqlite:////path or postgresql://user@host:port/name",
    )


def _sqlstate(error: peewee.PeeweeException) -> str:
    """The code of the driver's error that peewee wraps; "" if it has none."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


class _Work:
    """A work that waits, and what came of it."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class _Writer:
    """Writes to SQLite, one transaction at a time: the thread that gets the lock does what all the others wait for too."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._waiting: deque[_Work] = deque()
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._stopped = False

    def run(self, run: Callable[[], T]) -> T:
        if self._owner == threading.get_ident():
            return self._within(run)
        work = _Work(run)
        self._waiting.append(work)
        with self._lock:
            self._owner = threading.get_ident()
            try:
                while not work.done:
                    self._group()
            finally:
                self._owner = None
        if work.error is not None:
            raise work.error
        result: T = work.result
        return result

    def stop(self) -> None:
        """End when what is being written is; what comes later is refused."""
        with self._lock:
            self._stopped = True

    def _within(self, run: Callable[[], T]) -> T:
        """A work of a work: undone alone when it raises."""
        connection = self._database.connection()
        connection.execute("SAVEPOINT within")
        try:
            result = run()
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO within")
                connection.execute("RELEASE within")
            raise
        connection.execute("RELEASE within")
        return result

    def _group(self) -> None:
        """One transaction: the works that wait.

        Their outcomes are told when the transaction is on disk, also those that are errors: they may rest on what a
        neighbour wrote.
        """
        taken: list[_Work] = []
        begin = time.monotonic()
        try:
            if self._stopped:
                raise PilotageError("SERVER_UNAVAILABLE", "the server is stopping")
            self._database.connect(reuse_if_open=True)
            with self._database.atomic("IMMEDIATE"):
                while self._waiting and len(taken) < GROUP_LIMIT and time.monotonic() - begin < GROUP_SECONDS:
                    taken.append(self._waiting.popleft())
                    self._do(taken[-1])
        except BaseException as error:  # the transaction itself: no work of it came to be
            if not self._stopped:
                logger.error("a transaction failed: %s", error)
            if not taken:
                taken.append(self._waiting.popleft())
            for work in taken:
                work.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for work in taken:
                work.done = True

    def _do(self, work: _Work) -> None:
        """Run one work under a savepoint of its own."""
        try:
            work.result = self._within(work.run)
        except Exception as error:  # the work's own: its savepoint is undone, the others go on
            if not self._database.connection().in_transaction:
                raise  # SQLite gave up the whole transaction, as it may when the disk is full
            work.error = error
