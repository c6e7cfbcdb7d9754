"""A database at one moment, looked at and never changed: SQLite opened read-only, Postgres in a read-only transaction.

For who looks at a whole installation. It binds no models and needs no server: a stopped installation, or a copy of one, does.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from protocol.errors import PilotageError
from protocol.redaction import redact
from server.database import MIGRATIONS, in_words

BUSY_SECONDS = 10
OLD_SECONDS = 10.0
"""A moment that lasts longer keeps SQLite from shortening its log and Postgres from clearing away old rows."""

Row = dict[str, Any]


class Snapshot:
    """One moment; `renew` goes on to the present one. Raises DATABASE_UNREADABLE for what cannot be looked at."""

    def __init__(self, url: str) -> None:
        """`sqlite:////absolute/path` or `postgresql://user@host:port/name`."""
        self.is_sqlite = urlsplit(url).scheme == "sqlite"
        self.name = redact(url)
        self._cursors = 0
        self._errors = (sqlite3.Error,) if self.is_sqlite else _postgres_errors(url)
        with self._explained():
            self._connection: Any = _sqlite(url) if self.is_sqlite else _postgres(url)
        try:
            self._begin()
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._began = time.monotonic()
        if self.is_sqlite:
            with self._explained():
                self._connection.execute("BEGIN")

    def renew(self) -> None:
        """Let the moment go and take the present one; between two queries only."""
        with self._explained():
            self._connection.rollback()
        self._begin()

    def renew_if_old(self) -> None:
        if time.monotonic() - self._began > OLD_SECONDS:
            self.renew()

    def rows(self, sql: str, **values: Any) -> Generator[Row, None, None]:
        """The rows of a query in the SQL that both databases share, as they come: never all of them in memory.

        `:name` is a value; where it is a list, say `IN :name`.
        """
        for name, value in list(values.items()):
            if isinstance(value, list):
                each = {f"{name}_{index}": one for index, one in enumerate(value)}
                sql = re.sub(rf":{name}\b", f"({', '.join(f':{one}' for one in each) or 'NULL'})", sql)
                values = {**{key: kept for key, kept in values.items() if key != name}, **each}
        with self._explained():
            yield from self._on_sqlite(sql, values) if self.is_sqlite else self._on_postgres(sql, values)

    def one(self, sql: str, **values: Any) -> Row | None:
        """The first row, or None."""
        with contextlib.closing(self.rows(sql, **values)) as rows:
            return next(rows, None)

    def _on_sqlite(self, sql: str, values: Row) -> Iterator[Row]:
        cursor = self._connection.execute(sql, values)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def _on_postgres(self, sql: str, values: Row) -> Iterator[Row]:
        self._cursors += 1
        text = re.sub(r":(\w+)", r"%(\1)s", sql.replace("%", "%%"))
        # A cursor with a name stays on the server, and so do the rows that nobody has asked for yet.
        with self._connection.cursor(f"audit_{self._cursors}") as cursor:
            cursor.execute(text, values)
            yield from cursor

    def _check_schema(self) -> None:
        """A database whose schema this program does not know is not judged by it."""
        table = (
            "SELECT name FROM sqlite_master WHERE name = 'schema_migration'"
            if self.is_sqlite
            else "SELECT to_regclass('schema_migration') AS name"
        )
        if not (self.one(table) or {}).get("name"):
            raise PilotageError("DATABASE_UNREADABLE", f"{self.name} is no database of a Pilotage server")
        applied = {row["name"] for row in self.rows("SELECT name FROM schema_migration")}
        missing = {path.stem for path in MIGRATIONS.glob("[0-9]*.py")} - applied
        if missing:
            raise PilotageError(
                "DATABASE_UNREADABLE",
                f"{self.name} is of an older version, without {min(missing)}; start its server once with this version",
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise PilotageError("DATABASE_UNREADABLE", f"{self.name}: {in_words(error)}") from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sqlite(url: str) -> sqlite3.Connection:
    parts = urlsplit(url)
    path = Path(parts.path[1:] if parts.path.startswith("//") else parts.path)
    if not path.is_file():
        raise PilotageError("DATABASE_UNREADABLE", f"there is no file {path}")
    # A reader makes files of its own beside the database. Where it may not, it can only trust that nobody writes now, and
    # nobody does whose log is not there.
    alone = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    mode = "immutable=1" if alone else "mode=ro"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, timeout=BUSY_SECONDS
    )
    connection.execute("PRAGMA query_only = 1")
    connection.execute("PRAGMA cache_size = -64000")
    return connection


def _postgres_errors(url: str) -> tuple[type[Exception], ...]:
    if urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise PilotageError("BAD_SETTINGS", f"{redact(url)[:200]!a} names no database")
    import psycopg  # late: an installation on SQLite has it not

    return (psycopg.Error,)


def _postgres(url: str) -> Any:
    import psycopg
    from psycopg.rows import dict_row

    # Each query reaches by keys for a part of the tables; a planner that does not see that reads them whole for every part.
    by_keys = " ".join(f"-c enable_{way}=off" for way in ("hashjoin", "mergejoin", "seqscan"))
    connection = psycopg.connect(
        url,
        row_factory=dict_row,
        connect_timeout=BUSY_SECONDS,
        application_name="pilotage audit",
        options=by_keys,
    )
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection
