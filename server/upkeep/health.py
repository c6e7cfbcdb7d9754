"""The database's health and its old rows: schema, sizes, what holds back its clean-up, and what may go."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peewee import fn

from server.access import trail
from server.core import Core
from server.database import Database, proxy
from server.models import TABLES, AdminEvent, ArchivedJob, Attempt, Bundle, Job, JobClass, Pilot, Task, Token
from server.state_directory import sqlite_path
from server.upkeep.backup import known_migrations

CHUNK = 500
"""Rows removed in one transaction."""
DAY_SECONDS = 86_400
INCOMING_SECONDS = DAY_SECONDS
"""What of a bundle has not arrived after this will not any more."""
OLD_TRANSACTION_SECONDS = 300
LARGE_WAL = 256 * 2**20
LARGE_FREE = 64 * 2**20

# -- status -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableFacts:
    """One table: rows, those that are dead and wait for vacuum, and bytes with its indexes; None where it is not known."""

    name: str
    n_rows: int
    n_dead: int | None = None
    size: int | None = None
    vacuumed: str | None = None
    advice: str = ""


@dataclass
class Status:
    """What `pilotage db status` shows."""

    kind: str
    version: str
    missing: list[str]
    unknown: list[str]
    """Applied, and not known to this program: the database belongs to a newer one."""
    size: int = 0
    n_hot_jobs: int = 0
    n_archived_jobs: int = 0
    wal_size: int | None = None
    free_size: int | None = None
    oldest_seconds: float | None = None
    """Age of the oldest transaction; what was deleted since it began cannot be cleared away."""
    oldest: str | None = None
    tables: list[TableFacts] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def status(url: str, database: Database) -> Status:
    """Look at a database; changes nothing, and does without tables that are yet to be made. Within `Database.reading`."""
    there = set(proxy.get_tables())
    applied: list[str] = []
    if "schema_migration" in there:
        applied = [name for (name,) in _all("SELECT name FROM schema_migration ORDER BY name")]
    known = known_migrations()
    found = Status(
        kind="sqlite" if database.is_sqlite else "postgres",
        version=applied[-1] if applied else "",
        missing=[name for name in known if name not in applied],
        unknown=[name for name in applied if name not in known],
    )
    names = [table._meta.table_name for table in TABLES if table._meta.table_name in there]
    if database.is_sqlite:
        _look_at_sqlite(found, sqlite_path(url), names)
    else:
        _look_at_postgres(found, names)
    rows = {table.name: table.n_rows for table in found.tables}
    found.n_hot_jobs, found.n_archived_jobs = rows.get("job", 0), rows.get("archived_job", 0)
    if found.unknown:
        found.advice.insert(0, f"the schema is of a newer version ({found.unknown[-1]}): take that one")
    elif found.missing:
        found.advice.insert(
            0, "migrations are missing: pilotage db migrate, or start the server, which does it"
        )
    return found


def _all(sql: str, *values: Any) -> list[Any]:
    return list(proxy.execute_sql(sql, values).fetchall())


def _look_at_sqlite(found: Status, path: Path, names: Iterable[str]) -> None:
    page, pages, free = (
        _all(f"PRAGMA {name}")[0][0] for name in ("page_size", "page_count", "freelist_count")
    )
    wal = path.with_name(path.name + "-wal")
    found.size, found.free_size = page * pages, page * free
    found.wal_size = wal.stat().st_size if wal.exists() else 0
    found.tables = [TableFacts(name, _all(f'SELECT count(*) FROM "{name}"')[0][0]) for name in names]
    if found.free_size > max(LARGE_FREE, found.size / 4):
        found.advice.append(
            "a good part of the file is free; it is used again, or given back by: pilotage db prune --compact"
        )
    if found.wal_size > LARGE_WAL:
        found.advice.append(
            "the log beside the file is large: a program has been reading for long; end it (a backup, an audit, a shell)"
        )


def _look_at_postgres(found: Status, names: Iterable[str]) -> None:
    found.size = _all("SELECT pg_database_size(current_database())")[0][0]
    rows = _all(
        "SELECT relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid),"
        " to_char(greatest(last_vacuum, last_autovacuum) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')"
        " FROM pg_stat_user_tables WHERE schemaname = current_schema()"
    )
    facts = {name: rest for name, *rest in rows}
    for name in names:
        live, dead, size, vacuumed = facts[name]
        found.tables.append(TableFacts(name, live, dead, size, vacuumed, _bloat(live, dead)))
    oldest = _all(
        "SELECT extract(epoch FROM clock_timestamp() - xact_start), pid, coalesce(nullif(application_name, ''), usename),"
        " coalesce(host(client_addr), 'this machine'), state FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
        " AND backend_type = 'client backend' ORDER BY xact_start LIMIT 1"
    )
    for seconds, pid, who, host, state in oldest:
        found.oldest_seconds, found.oldest = float(seconds), f"process {pid} ({who}, {host}, {state})"
        if seconds > OLD_TRANSACTION_SECONDS:
            found.advice.append(
                f"a transaction of {found.oldest} is {int(seconds)} s old and keeps dead rows from being cleared away;"
                f" end it: SELECT pg_terminate_backend({pid})"
            )
    for (name,) in _all(
        "SELECT slot_name FROM pg_replication_slots WHERE NOT active AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)"
    ):
        found.advice.append(f"the replication slot {name} is not in use and keeps dead rows: drop it")
    for (name,) in _all("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
        found.advice.append(f"the prepared transaction {name} keeps dead rows: commit it or roll it back")


def _bloat(live: int, dead: int) -> str:
    if dead <= 10_000 or dead <= 0.3 * live:
        return ""
    return "more dead rows than autovacuum should leave: lower autovacuum_vacuum_scale_factor for it, or VACUUM it"


# -- prune ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruned:
    """What there was of one kind, and whether it is gone now."""

    what: str
    n: int
    removed: bool


def prune(core: Core, older_than_seconds: float, dry_run: bool) -> list[Pruned]:
    """Remove what nobody asks for any more, in short transactions; a server on Postgres may run meanwhile.

    Tasks, datasets, files and `Usage` stay: what was used and what there is is known for ever. The trail of administrative
    actions, which loses entries by this, says so from before the first one goes.
    """
    before = time.time() - older_than_seconds
    found = _prune(core, before, dry_run=True)
    if dry_run:
        return found
    counts = ", ".join(f"{each.n} {each.what}" for each in found if each.n)
    age = f"older than {older_than_seconds / DAY_SECONDS:g} days"
    core.database.write(lambda: trail.note("operator", "db prune", age, counts or "nothing"))
    return _prune(core, before, dry_run=False)


def _prune(core: Core, before: float, dry_run: bool) -> list[Pruned]:
    if not dry_run:
        core.database.write(lambda: Task.update(pruned=True).where(_ended(before), ~Task.pruned).execute())
    rows = [(what, _rows(core, table, condition, dry_run)) for what, table, condition in _old_rows(before)]
    files = [
        ("bundles that no task names", _bundles(core, before, dry_run)),
        ("bundles that never arrived", _incoming(core.state_directory / "bundles", dry_run)),
    ]
    return [Pruned(what, n, not dry_run) for what, n in (*rows, *files)]


def _ended(before: float) -> Any:
    """Tasks of which nothing is left but the archive, whole: of one that goes on, none of the jobs goes."""
    return Task.archived & (Task.ended < before)


def _old_rows(before: float) -> tuple[tuple[str, Any, Any], ...]:
    past = Task.select(Task.id).where(_ended(before))
    held = Attempt.select(Attempt.id).where(Attempt.pilot_id == Pilot.pilot_id, Attempt.ended_at.is_null())
    wanted = Task.select(Task.id).where(Task.job_class == JobClass.id)
    used = Job.select(Job.id).where(Job.job_class == JobClass.id)
    ended = (Pilot.ended < before) | (Pilot.ended.is_null() & (Pilot.last_seen < before) & ~fn.EXISTS(held))
    return (
        ("archived jobs", ArchivedJob, ArchivedJob.task_id.in_(past)),
        ("pilots that ended or were lost", Pilot, ended),
        ("administrative actions", AdminEvent, AdminEvent.at < before),
        ("tokens that expired or were revoked", Token, (Token.expires < before) | (Token.revoked < before)),
        ("classes of needs without tasks", JobClass, ~fn.EXISTS(wanted) & ~fn.EXISTS(used)),
    )


def _rows(core: Core, table: Any, condition: Any, dry_run: bool) -> int:
    if dry_run:
        with core.database.reading():
            return int(table.select().where(condition).count())
    key, removed, more = table._meta.primary_key, 0, True

    def work() -> int:
        ids = [value for (value,) in table.select(key).where(condition).limit(CHUNK).tuples()]
        return int(table.delete().where(key.in_(ids)).execute()) if ids else 0

    while more:
        n = core.database.write(work)
        removed, more = removed + n, n > 0
    return removed


def _bundles(core: Core, before: float, dry_run: bool) -> int:
    """Bundles sent before then which no task names, and files that belong to no bundle."""
    with core.database.reading():
        named = {json.loads(spec).get("bundle") for (spec,) in Task.select(Task.spec).tuples().iterator()}
        known = dict(Bundle.select(Bundle.digest, Bundle.created).tuples())
    folder = core.state_directory / "bundles"
    stored = {path.name for path in folder.glob("[0-9a-f]*") if path.stat().st_mtime < before}
    unused = {digest for digest, created in known.items() if created < before} | (stored - set(known))
    unused -= named
    for digest in () if dry_run else sorted(unused):
        # First the row: whoever wants to name it now is told to send it again.
        core.database.write(functools.partial(_forget, digest))
        (folder / digest).unlink(missing_ok=True)
    return len(unused)


def _forget(digest: str) -> None:
    Bundle.delete().where(Bundle.digest == digest).execute()


def _incoming(folder: Path, dry_run: bool) -> int:
    left = [
        path for path in folder.glob(".incoming-*") if path.stat().st_mtime < time.time() - INCOMING_SECONDS
    ]
    for path in () if dry_run else left:
        path.unlink(missing_ok=True)
    return len(left)


def compact(url: str) -> tuple[int, int]:
    """Give the free pages of a SQLite file back to the disk, with its server stopped; its bytes before and after."""
    path = sqlite_path(url)
    proxy.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    before = os.path.getsize(path)
    proxy.execute_sql("VACUUM")
    proxy.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return before, os.path.getsize(path)
