"""From SQLite to an empty Postgres, for an installation that has outgrown the one: every row of every table, and proof of it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peewee import BooleanField, DoubleField

from protocol.errors import PilotageError
from server.database import Database, proxy
from server.models import TABLES, Counter, Table
from server.state_directory import sqlite_path
from server.upkeep.backup import NUMBERED, known_migrations, refuse_while_used

CHUNK = 5000
"""Rows read at a time."""
MODULUS = 2**128


@dataclass(frozen=True)
class Proof:
    """The rows of a table: how many, and the sum of their hashes, which does not depend on their order."""

    table: str
    n_rows: int = 0
    digest: int = 0

    def add(self, row: tuple[Any, ...]) -> Proof:
        learned = hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
        return Proof(self.table, self.n_rows + 1, (self.digest + int.from_bytes(learned, "big")) % MODULUS)


def count(url: str) -> int:
    """How many rows there are to copy."""
    with contextlib.closing(_open(url)) as source:
        return sum(source.execute(f'SELECT count(*) FROM "{_name(table)}"').fetchone()[0] for table in TABLES)


def copy(source_url: str, target_url: str, advance: Callable[[int], object]) -> list[Proof]:
    """Copy all tables in one transaction and read them back before it ends; the servers of both are stopped.

    `advance` is told of rows written and of rows read back: twice as many as there are.
    """
    target = Database(target_url)
    if target.is_sqlite:
        raise PilotageError(
            "BAD_REQUEST", "rows are copied from SQLite to Postgres; for another SQLite take a backup"
        )
    try:
        target.migrate()
        with contextlib.closing(_open(source_url)) as source:
            source.execute("BEGIN")  # one snapshot for all tables
            _check_schema(source)
            return target.write(functools.partial(_copy_all, source, target, advance))
    finally:
        target.close()


def _open(url: str) -> sqlite3.Connection:
    path = sqlite_path(url)
    if not url.startswith("sqlite:") or not path.is_file():
        raise PilotageError("NOT_FOUND", f"there is no SQLite database {path} to copy from")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=30)


def _check_schema(source: sqlite3.Connection) -> None:
    there = [name for (name,) in source.execute("SELECT name FROM schema_migration ORDER BY name")]
    if there != known_migrations():
        raise PilotageError(
            "WRONG_STATE", "the schema is not that of this version; first: pilotage db migrate"
        )


def _copy_all(source: sqlite3.Connection, target: Database, advance: Callable[[int], object]) -> list[Proof]:
    refuse_while_used(target, "copy")
    Counter.delete().execute()  # those that the migrations made
    for table in TABLES:
        if table.select().exists():
            raise PilotageError(
                "ALREADY_EXISTS",
                f"the database has rows in {_name(table)}; copy into an empty one that no server has used",
                advice="make a new one: createdb NAME",
            )
    proofs = []
    for table in TABLES:
        written = _write(source, table, advance)
        found = _read_back(table, advance)
        if written != found:
            raise PilotageError(
                "WRONG_STATE",
                f"{_name(table)}: {written.n_rows} rows were written and {found.n_rows} found, or their contents differ",
            )
        proofs.append(written)
    _set_sequences(source)
    return proofs


def _write(source: sqlite3.Connection, table: type[Table], advance: Callable[[int], object]) -> Proof:
    proof = Proof(_name(table))
    cursor = source.execute(f'SELECT {_columns(table)} FROM "{_name(table)}"')
    connection = proxy.connection()
    while rows := cursor.fetchmany(CHUNK):
        with connection.cursor() as target:
            with target.copy(f'COPY "{_name(table)}" ({_columns(table)}) FROM STDIN') as into:
                for row in _typed(table, rows):
                    into.write_row(row)
                    proof = proof.add(row)
        advance(len(rows))
    return proof


def _read_back(table: type[Table], advance: Callable[[int], object]) -> Proof:
    proof = Proof(_name(table))
    with proxy.connection().cursor(name="read_back") as cursor:
        cursor.execute(f'SELECT {_columns(table)} FROM "{_name(table)}"')
        while rows := cursor.fetchmany(CHUNK):
            for row in _typed(table, rows):
                proof = proof.add(row)
            advance(len(rows))
    return proof


def _typed(table: type[Table], rows: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows as Postgres knows them: SQLite has neither truth values nor one type per column."""
    kinds: list[Callable[[Any], Any]] = [_kind(field) for field in table._meta.sorted_fields]
    for row in rows:
        yield tuple(None if value is None else kind(value) for kind, value in zip(kinds, row, strict=True))


def _kind(field: Any) -> Callable[[Any], Any]:
    if isinstance(field, BooleanField):
        return bool
    return float if isinstance(field, DoubleField) else lambda value: value


def _columns(table: type[Table]) -> str:
    return ", ".join(f'"{field.column_name}"' for field in table._meta.sorted_fields)


def _name(table: type[Table]) -> str:
    return str(table._meta.table_name)


def _set_sequences(source: sqlite3.Connection) -> None:
    """Go on numbering where SQLite stood, also where the last rows are gone already."""
    stood = dict(source.execute("SELECT name, seq FROM sqlite_sequence"))
    for table in TABLES:
        key = table._meta.primary_key
        if key.__class__.__name__ != "BigAutoField":
            continue
        name, column = _name(table), key.column_name
        highest = table.select(key).order_by(key.desc()).limit(1).scalar() or 0
        last = max(highest, stood.get(name, 0) if name in NUMBERED else 0)
        if last:
            proxy.execute_sql("SELECT setval(pg_get_serial_sequence(%s, %s), %s)", (name, column, last))
    ready_nr = Counter.get(Counter.name == "ready_nr").value
    if ready_nr:
        proxy.execute_sql("SELECT setval('ready_nr', %s)", (ready_nr,))
