"""A backup of all that a server must not lose, in one file, and its way back.

The file is a .tar.gz: a manifest with versions and checksums, a consistent copy of the database (SQLite's own copy while
the server runs, or what `pg_dump` says), the server's key, and the users' bundles. It holds secrets and has mode 0600.

What is restored is older than the world: pilots hold attempts that it does not know, and storages hold files. So a restored
database begins a new *epoch*: the tokens of all attempts before it fit no more, and numbers that may have been given out
since the backup are passed over, so that no attempt ever writes a name that another one wrote.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import IO, Any

from protocol import __version__
from protocol.errors import PilotageError
from server.access import tokens
from server.database import MIGRATIONS, Database, proxy
from server.models import TABLES, AdminEvent, Counter, Storage
from server.paging import iso
from server.state_directory import named, sqlite_path
from server.upkeep.garbage import FOREIGN_ATTEMPT

FORMAT = 1
MANIFEST = "manifest.json"
KEY = "server.key"
BUNDLES = "bundles/"
COPIES = {"sqlite": "database.sqlite", "postgres": "database.sql"}
BLOCK = 2**20
LARGEST_MANIFEST = 64 * 2**20

NUMBERED = ("attempt", "dataset", "file", "job", "job_class", "task")
"""Tables whose numbers are never given again (migration 0003)."""
NUMBERS_PER_SECOND = 50_000
"""More than any installation has given out, of any table, in each second since the backup."""
NUMBERS_AT_LEAST = 10_000_000
"""And so many more, for a clock that stood wrong."""


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself; `files` are its members with their size and SHA-256."""

    database: str
    migrations: list[str]
    made: str
    made_at: float
    format: int = FORMAT
    program: str = __version__
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: str = ""
    """The state directory and the database that it was taken of; empty in backups of versions that did not say so."""

    @property
    def size(self) -> int:
        return sum(each["size"] for each in self.files.values())


def kind_of(url: str) -> str:
    return "sqlite" if url.startswith("sqlite:") else "postgres"


def origin_of(url: str, directory: Path) -> str:
    return f"{directory.resolve()} with {named(url)}"


def known_migrations() -> list[str]:
    """The migrations of this program, in order."""
    return sorted(path.stem for path in MIGRATIONS.glob("[0-9]*.py"))


# -- there ------------------------------------------------------------------------------------------------------------------


def backup(url: str, directory: Path, target: Path, with_bundles: bool = True) -> Manifest:
    """Write a backup of the state `directory` and its database; the server may run. `target` must not exist."""
    if target.exists():
        raise PilotageError("ALREADY_EXISTS", f"{target} is there already; name another file")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    copy = target.with_name(f".{target.name}.{os.getpid()}.copy")
    try:
        made_at = time.time()
        migrations = _copy_sqlite(url, copy) if kind_of(url) == "sqlite" else _dump(url, copy)
        members = {COPIES[kind_of(url)]: copy, KEY: directory / KEY}
        if with_bundles:
            members |= {
                f"{BUNDLES}{path.name}": path for path in sorted((directory / "bundles").glob("[0-9a-f]*"))
            }
        facts = {name: _facts(path) for name, path in members.items() if path.is_file()}
        manifest = Manifest(
            kind_of(url), migrations, iso(made_at), made_at, files=facts, origin=origin_of(url, directory)
        )
        _pack(manifest, members, part)
        os.link(part, target)  # unlike a rename it never takes the place of another file
        _sync(target.parent)
    finally:
        for each in (part, copy):
            each.unlink(missing_ok=True)
    return manifest


def _copy_sqlite(url: str, copy: Path) -> list[str]:
    path = sqlite_path(url)
    if not path.is_file():
        raise PilotageError("NOT_FOUND", f"there is no database {path}")
    _touch_private(copy)
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as source:
        with contextlib.closing(sqlite3.connect(copy)) as target:
            # In one step: one snapshot, which no writer disturbs.
            source.backup(target, pages=-1)
            target.execute("PRAGMA journal_mode = DELETE")
            _check(target)
            return [name for (name,) in target.execute("SELECT name FROM schema_migration ORDER BY name")]


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise PilotageError("DATABASE_UNREADABLE", f"the database is damaged: {verdict}")


def _dump(url: str, copy: Path) -> list[str]:
    _touch_private(copy)
    with open(copy, "wb") as output:
        _run_tool(["pg_dump", "--format=plain", "--no-owner", "--no-privileges"], url, output)
    import psycopg  # where there is no Postgres, it need not be installed

    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM schema_migration ORDER BY name")]


def _run_tool(words: Sequence[str], url: str, output: IO[bytes]) -> None:
    """Run a program of Postgres on the database; the password goes by its environment, for all can read a command line."""
    from psycopg import conninfo

    facts = conninfo.conninfo_to_dict(url)
    password = facts.pop("password", None)
    environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    command = [_tool(words[0]), *words[1:], f"--dbname={conninfo.make_conninfo('', **facts)}"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, env=environment, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise PilotageError(
            "PROGRAM_FAILED", f"{words[0]} ended with {done.returncode}: {'; '.join(said[:3])}"
        )


def _tool(name: str) -> str:
    """Where a program of Postgres lies; Debian keeps those of each version in a directory of its own."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: _number(path.parent.parent.name)
    )
    found = shutil.which(name) or (str(debian[-1]) if debian else None)
    if found is None:
        raise PilotageError(
            "MISSING_EXTRA",
            f"{name} is not here; install the client programs of Postgres (postgresql-client)",
        )
    return found


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _touch_private(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _facts(path: Path) -> dict[str, Any]:
    learned, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            learned.update(block)
            size += len(block)
    return {"size": size, "sha256": learned.hexdigest()}


def _pack(manifest: Manifest, members: dict[str, Path], part: Path) -> None:
    _touch_private(part)
    with open(part, "wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=3, format=tarfile.PAX_FORMAT) as archive:
            text = json.dumps(asdict(manifest), indent=1).encode()
            archive.addfile(_member(MANIFEST, len(text), manifest.made_at), io.BytesIO(text))
            for name, facts in manifest.files.items():
                with open(members[name], "rb") as content:
                    archive.addfile(_member(name, facts["size"], manifest.made_at), content)
        file.flush()
        os.fsync(file.fileno())


def _member(name: str, size: int, at: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(at)
    return member


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- and back ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restored:
    """What a restore did: the epoch that began, how far numbers went on, and where the former database lies."""

    manifest: Manifest
    epoch: int
    passed_over: int
    migrated: list[str]
    former: Path | None
    storages: dict[str, str]
    """The addresses of all storages: the same as those of the installation that the backup is of."""
    is_copy: bool = False
    """Whether that installation may be another one, which goes on beside this one."""


def restore(url: str, directory: Path, source: Path, replace: bool = False) -> Restored:
    """Put a backup in the place of a state whose server is stopped; the caller holds the directory.

    What is wrong with the file is said before anything is changed. A database that is there already is replaced only if
    the caller says so; on SQLite it is kept under another name.
    """
    scratch = sqlite_path(url).parent if kind_of(url) == "sqlite" else directory
    with _unpacked(source, scratch) as (manifest, folder):
        unknown = sorted(set(manifest.migrations) - set(known_migrations()))
        if unknown:
            raise PilotageError(
                "WRONG_STATE",
                f"the backup is of a newer version ({manifest.program}, with {unknown[0]}); this is {__version__}",
            )
        if manifest.database != kind_of(url):
            raise PilotageError(
                "WRONG_STATE",
                f"the backup is of {manifest.database} and the database here is {kind_of(url)}; restore it on"
                f" {manifest.database}"
                + (", then: pilotage db copy URL" if manifest.database == "sqlite" else ""),
            )
        put_back = _restore_sqlite if manifest.database == "sqlite" else _restore_postgres
        restored = put_back(url, manifest, folder, replace)
        _put_files(folder, directory)
    return replace_fields(restored, is_copy=manifest.origin != origin_of(url, directory))


@contextlib.contextmanager
def _unpacked(source: Path, scratch: Path) -> Iterator[tuple[Manifest, Path]]:
    """The manifest of a backup, and a folder with its members, each as large as it says and with that checksum."""
    for left in scratch.glob(".restore-*"):
        shutil.rmtree(left)  # of one that was killed
    folder = scratch / f".restore-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        _read_through(source)
        yield _unpack(source, folder), folder
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise PilotageError("BAD_REQUEST", f"{source} is no backup, or not a whole one: {error}") from error
    finally:
        shutil.rmtree(folder)


def _read_through(source: Path) -> None:
    """To the checksum at its end, which a tar archive that is read as a stream never comes to."""
    with gzip.open(source) as whole:
        while whole.read(1 << 20):
            pass


def _unpack(source: Path, folder: Path) -> Manifest:
    with tarfile.open(source, mode="r|gz") as archive:
        manifest, found = None, set()
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                raise ValueError(f"{member.name!a} is no plain file")
            if manifest is None:
                manifest = _read_manifest(member, content)
                continue
            _extract(member.name, content, manifest.files[member.name], folder)
            found.add(member.name)
    if manifest is None or found != set(manifest.files):
        raise ValueError("members are missing")
    return manifest


def _read_manifest(member: tarfile.TarInfo, content: IO[bytes]) -> Manifest:
    if member.name != MANIFEST or member.size > LARGEST_MANIFEST:
        raise ValueError("it does not begin with a manifest")
    facts = json.loads(content.read())
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']!r} is not known here")
    manifest = Manifest(**facts)
    for name in manifest.files:
        bundle = name.removeprefix(BUNDLES)
        if name not in (KEY, COPIES[manifest.database]) and (
            bundle == name or not set(bundle) <= set("0123456789abcdef")
        ):
            raise ValueError(f"{name[:80]!a} does not belong into it")
    return manifest


def _extract(name: str, content: IO[bytes], facts: dict[str, Any], folder: Path) -> None:
    path = folder / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _touch_private(path)
    with open(path, "wb") as file:
        left = facts["size"]
        while left and (block := content.read(min(left, BLOCK))):
            file.write(block)
            left -= len(block)
        file.flush()
        os.fsync(file.fileno())
    if _facts(path) != facts:
        raise ValueError(f"{name} is damaged: its checksum is another one")


def _restore_sqlite(url: str, manifest: Manifest, folder: Path, replace: bool) -> Restored:
    path, copy = sqlite_path(url), folder / COPIES["sqlite"]
    if path.exists() and not replace:
        raise PilotageError(
            "ALREADY_EXISTS", f"{path} is there; with --replace it makes way, and is kept under another name"
        )
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        _check(connection)
    database = Database(f"sqlite:///{copy}")
    try:
        migrated = database.migrate()
        epoch, passed_over = database.write(lambda: _begin_epoch_on_sqlite(manifest))
        with database.reading():
            storages = _storages()
            proxy.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        database.close()
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    former = _swap(copy, path)
    return Restored(manifest, epoch, passed_over, migrated, former, storages)


def _swap(copy: Path, path: Path) -> Path | None:
    """Put a database into its place; at each moment there is a whole one. Where the former one lies."""
    former = None
    if path.exists():
        former = path.with_name(f"{path.name}.before-restore-{time.time_ns()}")
        os.link(path, former)
        for end in ("-wal", "-shm"):
            beside = path.with_name(path.name + end)
            if beside.exists():
                beside.rename(former.with_name(former.name + end))
    os.rename(copy, path)
    _sync(path.parent)
    return former


def _restore_postgres(url: str, manifest: Manifest, folder: Path, replace: bool) -> Restored:
    database = Database(url)
    try:
        with database.reading():
            refuse_while_used(database, "restore")
            if not replace and set(proxy.get_tables()) & set(_table_names()):
                raise PilotageError(
                    "ALREADY_EXISTS", "the database has tables already; --replace removes them"
                )
        epoch, passed_over = _next_epoch(manifest), _passed_over(manifest)
        _load(url, folder, epoch, passed_over)
        migrated = database.migrate()
        database.write(lambda: _record(manifest, epoch))
        with database.reading():
            storages = _storages()
    finally:
        database.close()
    return Restored(manifest, epoch, passed_over, migrated, None, storages)


def _load(url: str, folder: Path, epoch: int, passed_over: int) -> None:
    """All in one transaction: away with the former tables, the backup in, and on with the numbers."""
    first, last = folder / "first.sql", folder / "last.sql"
    names = ", ".join(f'"{name}"' for name in _table_names())
    first.write_text(f"DROP TABLE IF EXISTS {names} CASCADE;\nDROP SEQUENCE IF EXISTS ready_nr;\n")
    moves = [
        f"IF to_regclass('{sequence}') IS NOT NULL THEN"
        f" PERFORM setval('{sequence}', (SELECT last_value FROM {sequence}) + {passed_over}); END IF;"
        for sequence in (*(f"{name}_id_seq" for name in NUMBERED), "ready_nr")
    ]
    last.write_text(
        "SELECT pg_catalog.set_config('search_path', 'public', false);\n"
        f"UPDATE counter SET value = value + {passed_over} WHERE name = 'ready_nr';\n"
        f"INSERT INTO counter (name, value) VALUES ('{tokens.KEY_EPOCH}', {epoch})"
        " ON CONFLICT (name) DO UPDATE SET value = greatest(counter.value + 1, excluded.value);\n"
        f"DO $$ BEGIN {' '.join(moves)} END $$;\n"
        f"INSERT INTO counter (name, value) SELECT '{FOREIGN_ATTEMPT}', last_value FROM attempt_id_seq"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value;\n"
    )
    words = ["psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    files = [f"--file={path}" for path in (first, folder / COPIES["postgres"], last)]
    with open(os.devnull, "wb") as nowhere:
        _run_tool([*words, *files], url, nowhere)


def refuse_while_used(database: Database, verb: str) -> None:
    """WRONG_STATE while others are connected to this Postgres database: servers, on whatever host."""
    if database.is_sqlite:
        return
    rows = proxy.execute_sql(
        "SELECT coalesce(host(client_addr), 'this machine'), count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        " GROUP BY 1 ORDER BY 1"
    ).fetchall()
    if rows:
        who = ", ".join(f"{n} from {host}" for host, n in rows)
        raise PilotageError(
            "WRONG_STATE",
            f"to {verb}, nobody else may be connected to the database, and there are {who}; stop the servers",
        )


def _table_names() -> list[str]:
    return [*(table._meta.table_name for table in TABLES), "schema_migration"]


def _next_epoch(manifest: Manifest) -> int:
    """By the clock, so that of a backup that is restored twice each gets another one."""
    return int(max(time.time(), manifest.made_at))


def _passed_over(manifest: Manifest) -> int:
    """How far numbers go on; by the time since the backup, so that a second restore repeats none of the first either."""
    return NUMBERS_AT_LEAST + int(max(0.0, time.time() - manifest.made_at) * NUMBERS_PER_SECOND)


def _begin_epoch_on_sqlite(manifest: Manifest) -> tuple[int, int]:
    """Inside `Database.write`."""
    passed_over = _passed_over(manifest)
    row = Counter.get_or_none(Counter.name == tokens.KEY_EPOCH)
    epoch = max(_next_epoch(manifest), row.value + 1 if row else 0)
    Counter.delete().where(Counter.name == tokens.KEY_EPOCH).execute()
    Counter.create(name=tokens.KEY_EPOCH, value=epoch)
    Counter.update(value=Counter.value + passed_over).where(Counter.name == "ready_nr").execute()
    for name in NUMBERED:
        proxy.execute_sql("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ?", (passed_over, name))
    Counter.delete().where(Counter.name == FOREIGN_ATTEMPT).execute()
    proxy.execute_sql(
        "INSERT INTO counter (name, value) SELECT ?, seq FROM sqlite_sequence WHERE name = 'attempt'",
        (FOREIGN_ATTEMPT,),
    )
    _record(manifest, epoch)
    return epoch, passed_over


def _record(manifest: Manifest, epoch: int) -> None:
    AdminEvent.create(
        who="operator", action="db restore", subject=f"backup of {manifest.made}", detail=f"epoch {epoch}"
    )


def _storages() -> dict[str, str]:
    return {row.name: row.url for row in Storage.select().order_by(Storage.name)}


def _put_files(folder: Path, directory: Path) -> None:
    """The key and the bundles, each in one step."""
    for path in (folder / KEY, *sorted((folder / BUNDLES).glob("*"))):
        place = directory / path.relative_to(folder)
        if not path.is_file() or (place.is_file() and _facts(place) == _facts(path)):
            continue
        place.parent.mkdir(mode=0o700, exist_ok=True)
        part = place.with_name(f".incoming-{place.name}")
        part.unlink(missing_ok=True)
        _touch_private(part)
        shutil.copyfile(path, part)
        part.rename(place)
