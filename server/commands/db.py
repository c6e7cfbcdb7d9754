"""`pilotage db`: the life of the data: schema, health, backup and restore, the move to Postgres, old rows, strays in storages."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from client import progress, tables
from client.commands import Group
from client.commands.common import Duration, examples, json_option
from protocol.errors import PilotageError
from server import settings, state_directory
from server.core import Core
from server.database import Database, told
from server.upkeep import backup as backups
from server.upkeep import copying, health, reconcile

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Installation:
    """The state directory and the database of a server, as it would find them itself."""

    directory: Path
    url: str

    @property
    def options(self) -> str:
        """What makes a further command mean this installation too, as a shell reads it; passwords are to be put in."""
        default = settings.load({}).path("server", "state_directory").expanduser().absolute()
        words = [] if self.directory == default else ["--state", str(self.directory)]
        if self.url != state_directory.own_database(self.directory):
            words += ["--database", state_directory.named(self.url)]
        return "".join(f" {shlex.quote(word)}" for word in words)

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite:")

    @contextlib.contextmanager
    def database(self, must_exist: bool = True) -> Iterator[Database]:
        path = state_directory.sqlite_path(self.url)
        if must_exist and self.is_sqlite and not path.is_file():
            raise PilotageError("DATABASE_UNREADABLE", f"there is no database {path}")
        database = Database(self.url)
        try:
            with told(self.url), database.reading():
                yield database
        finally:
            database.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """On SQLite no server may run meanwhile: it is the one that writes. Servers on Postgres are seen by their connections."""
        if not self.is_sqlite:
            yield
            return
        with state_directory.locked(state_directory.prepare(self.directory)):
            yield


def of_installation(function: F) -> F:
    """Give a command the options that say which server's data is meant, and the installation as its first argument."""

    @functools.wraps(function)
    def command(config: Path | None, **options: Any) -> Any:
        os.umask(0o077)
        logging.getLogger("server.database").addHandler(logging.NullHandler())  # the command says it itself
        names = ("server__state_directory", "database__url")
        chosen = settings.load({name: options.pop(name) for name in names}, config)
        directory = chosen.path("server", "state_directory").expanduser().absolute()
        url = state_directory.database_url(directory, chosen.text("database", "url"))
        return function(Installation(directory, url), **options)

    for option in (
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Settings file of the server, after the usual ones.",
        ),
        click.option(
            "--database",
            "database__url",
            metavar="URL",
            help="Its database, if it is not in the state directory.",
        ),
        click.option(
            "--state",
            "--state-directory",
            "server__state_directory",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="State directory of the server (default: ~/.local/share/pilotage).",
        ),
    ):
        command = option(command)
    return command  # type: ignore[return-value]


@click.group(cls=Group)
def db() -> None:
    """The database of a server: schema, health, backup, restore, and what becomes of old rows.

    These commands look at the installation itself, and need no server.
    """


@db.command(
    epilog=examples("pilotage db migrate", "pilotage db migrate --database postgresql://pilotage@db/pilotage")
)
@json_option
@of_installation
def migrate(installation: Installation, as_json: bool) -> None:
    """Bring the schema up to date; each start of a server does so too.

    Servers of an older version are stopped before: they do not know the new schema.
    """
    with installation.held(), installation.database(must_exist=False) as database:
        missing = health.status(installation.url, database).missing
        if missing:
            backups.refuse_while_used(database, "migrate")
        applied = database.migrate()
    if as_json:
        tables.show({"applied": applied})
        return
    for name in applied:
        tables.write(f"applied {name}")
    if not applied:
        tables.write("The schema is up to date.")


_TABLES = (
    tables.Column("table", lambda row: row.name),
    tables.Column("rows", lambda row: row.n_rows, right=True),
)
_TABLES_ON_POSTGRES = (
    *_TABLES,
    tables.Column("dead", lambda row: row.n_dead, right=True),
    tables.Column("size", lambda row: None if row.size is None else tables.size(row.size), right=True),
    tables.Column("vacuumed (UTC)", lambda row: row.vacuumed),
    tables.Column("", lambda row: row.advice),
)


@db.command(epilog=examples("pilotage db status", "pilotage db status --json"))
@json_option
@of_installation
@click.pass_context
def status(context: click.Context, installation: Installation, as_json: bool) -> None:
    """Show the schema's version, sizes, rows, dead rows, and what holds back their removal; exit code 1 if a migration is missing."""
    with installation.database() as database:
        found = health.status(installation.url, database)
    if as_json:
        tables.show(dataclasses.asdict(found))
    else:
        _print_status(found)
    if found.missing:
        context.exit(1)


def _print_status(found: health.Status) -> None:
    tables.print_facts(
        {
            "database": f"{found.kind}, {tables.size(found.size)}",
            "schema": found.version or "none yet",
            "missing": ", ".join(found.missing),
            "jobs": f"{found.n_hot_jobs} in the hot tables, {found.n_archived_jobs} in the archive",
            "free": tables.size(found.free_size) if found.free_size is not None else None,
            "log (WAL)": tables.size(found.wal_size) if found.wal_size is not None else None,
            "oldest transaction": f"{found.oldest_seconds:.0f} s: {found.oldest}" if found.oldest else None,
        }
    )
    tables.write("")
    tables.print_table(found.tables, _TABLES if found.kind == "sqlite" else _TABLES_ON_POSTGRES)
    for line in found.advice:
        tables.write(f"\n{tables.cell(line)}")


@db.command(epilog=examples("pilotage db backup /backup/pilotage-2026-11-21.tar.gz"))
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--no-bundles", is_flag=True, help="Leave out the users' code (--ship).")
@json_option
@of_installation
def backup(installation: Installation, file: Path, no_bundles: bool, as_json: bool) -> None:
    """Write a consistent copy of the database, the server's key and the bundles into one file; the server may run.

    The file holds secrets: it has mode 0600, and FILE must not exist. Files on storages are not in it.
    """
    if not file.absolute().parent.is_dir():
        raise PilotageError("BAD_PATH", f"there is no directory {file.absolute().parent}")
    manifest = backups.backup(installation.url, installation.directory, file, with_bundles=not no_bundles)
    if as_json:
        tables.show({"file": str(file), **dataclasses.asdict(manifest)})
        return
    tables.write(
        f"{file}: {tables.some(len(manifest.files), 'file')}, {tables.size(manifest.size)} before compression."
    )


@db.command(
    epilog=examples(
        "pilotage server stop", "pilotage db restore /backup/pilotage-2026-11-21.tar.gz --replace"
    )
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE")
@click.option("--replace", is_flag=True, help="In the place of the database that is there.")
@json_option
@of_installation
def restore(installation: Installation, file: Path, replace: bool, as_json: bool) -> None:
    """Put a backup back, with the server stopped. It is verified before anything is changed.

    Pilots that hold attempts from before are told to stop, and their jobs run again. Numbers go on far ahead, so that none
    is given twice. Look afterwards at what the storages hold beyond it: pilotage db reconcile.
    """
    directory = state_directory.prepare(installation.directory)
    with state_directory.locked(directory), told(installation.url):
        restored = backups.restore(installation.url, directory, file, replace)
        state_directory.note_database(directory, installation.url)
    if restored.is_copy:
        _warn_of_the_original(restored)
    if as_json:
        former = str(restored.former) if restored.former else None
        tables.show({**dataclasses.asdict(restored), "former": former})
        return
    tables.print_facts(
        {
            "restored": f"backup of {restored.manifest.made}, of version {restored.manifest.program}",
            "migrated": ", ".join(restored.migrated),
            "epoch": f"{restored.epoch}: attempts from before are refused",
            "numbers": f"new tasks, jobs and attempts are numbered {restored.passed_over:,} further on, so that none"
            " that was given since the backup is given twice",
            "former database": restored.former,
        }
    )
    tables.write(f"Next: pilotage db reconcile{installation.options}")
    tables.write(f"Then: pilotage server start{installation.options}")


def _warn_of_the_original(restored: backups.Restored) -> None:
    """Two installations with the same storages: what the one does there may be the other's loss."""
    shown = [f"{name} ({url})" for name, url in restored.storages.items()]
    names = ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
    tables.say(
        f"Warning: the backup is of {restored.manifest.origin or 'an installation that it does not name'}, and this one uses"
        f" the same storages: {names}. If that one still works, jobs of both write there, and 'db reconcile --quarantine'"
        " takes its files away: read 'Trying a restore beside a live server' in docs/data.md before you start this one."
    )


@db.command(epilog=examples("pilotage server stop", "pilotage db copy postgresql://pilotage@db/pilotage"))
@click.argument("url", metavar="URL")
@json_option
@of_installation
def copy(installation: Installation, url: str, as_json: bool) -> None:
    """Copy an installation on SQLite to an empty Postgres, with the server stopped; every row is read back and compared.

    Start the server on the same state directory with --database URL then: pilots keep their jobs. Without that option, and
    without [database] url in server.ini, it does not start any more.
    """
    with installation.held():
        with progress.counted("rows", 2 * copying.count(installation.url)) as advance, told(url):
            proofs = copying.copy(installation.url, url, advance)
        state_directory.note_database(installation.directory, url)
    if as_json:
        tables.show([dataclasses.asdict(proof) for proof in proofs])
        return
    tables.print_table(
        proofs,
        (
            tables.Column("table", lambda proof: proof.table),
            tables.Column("rows", lambda proof: proof.n_rows, right=True),
            tables.Column("checksum", lambda proof: f"{proof.digest:032x}"),
        ),
    )
    there = Installation(installation.directory, url)
    tables.write("All rows were read back and are the same.")
    tables.write(f"Next: pilotage server start{there.options}, or [database] url in server.ini")


@db.command(
    epilog=examples("pilotage db prune --older-than 90d --dry-run", "pilotage db prune --older-than 90d")
)
@click.option("--older-than", type=Duration(), required=True, metavar="AGE", help="As 90d, 12h or 4w.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
@click.option("--compact", is_flag=True, help="Give the room back to the disk (SQLite).")
@json_option
@of_installation
def prune(installation: Installation, older_than: int, dry_run: bool, compact: bool, as_json: bool) -> None:
    """Remove what is older: archived jobs, pilots that ended, the trail of administrative actions, dead tokens, unused bundles.

    Tasks, datasets, files and the accounting (`pilotage usage`) stay. On SQLite the server is stopped meanwhile, but
    not for --dry-run.
    """
    alone = contextlib.nullcontext() if dry_run else installation.held()
    with alone, installation.database() as database:
        core = Core(database, b"", installation.directory)
        pruned = health.prune(core, older_than, dry_run)
        sizes = (
            health.compact(installation.url) if compact and installation.is_sqlite and not dry_run else None
        )
    if as_json:
        tables.show([dataclasses.asdict(each) for each in pruned])
        return
    verb = "would go" if dry_run else "removed"
    tables.print_table(
        pruned,
        (tables.Column("what", lambda each: each.what), tables.Column(verb, lambda each: each.n, right=True)),
    )
    if sizes:
        tables.write(f"The file had {tables.size(sizes[0])} and has {tables.size(sizes[1])} now.")


_STRAYS = (
    tables.Column("file", lambda stray: stray.path),
    tables.Column("size", lambda stray: tables.size(stray.size), right=True),
    tables.Column("why", lambda stray: stray.why),
    tables.Column("proof", lambda stray: stray.proof),
    tables.Column("job", lambda stray: f"{stray.job_id} runs again" if stray.rerun else stray.job_id),
    tables.Column("removed after (UTC)", lambda stray: tables.when(stray.removed_after)),
)


@db.command(
    "reconcile", epilog=examples("pilotage db reconcile", "pilotage db reconcile --quarantine /srv/strays")
)
@click.option(
    "--quarantine",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Move strays of attempts that are over in here.",
)
@click.option(
    "--data-root",
    default="",
    metavar="DIR",
    help="Where addresses such as file:outputs lie on this machine (SCRIPT_PREFIX).",
)
@json_option
@of_installation
def reconcile_command(
    installation: Installation, quarantine: Path | None, data_root: str, as_json: bool
) -> None:
    """After a restore: which files on the storages of this machine the database does not know, and which jobs run again.

    Nothing is taken into the catalogue: the checksums that would prove a file were lost with the rows. Nothing is moved without
    --quarantine, but a server removes what attempts of archived jobs left, as long as it knows them: the table says of which
    files, and after when. The server may run.
    """
    with installation.database():
        findings = reconcile.look(installation.url, data_root, quarantine)
        tasks = reconcile.open_tasks(list(findings.reruns))
    if as_json:
        tables.show(
            {
                "nFiles": findings.n_files,
                "strays": [
                    {**dataclasses.asdict(stray), "path": str(stray.path), "place": str(stray.place)}
                    for stray in findings.strays
                ],
                "reruns": findings.reruns,
                "notReached": findings.not_reached,
                "moved": findings.moved,
                "notMoved": findings.not_moved,
            }
        )
        return
    if findings.strays:
        tables.print_table(findings.strays, _STRAYS)
    for dataset, ids in findings.reruns.items():
        shown = ", ".join(map(str, ids[:20])) + (", ..." if len(ids) > 20 else "")
        task = f" (task {tasks[dataset]})" if dataset in tasks else ""
        tables.write(
            f"Dataset {tables.cell(dataset)}{task}: {tables.some(len(ids), 'job')} run again: {shown}"
        )
    for name, why in findings.not_reached.items():
        tables.write(f"Not looked at: {tables.cell(name)}: {tables.cell(why)}")
    for name, why in findings.not_moved.items():
        tables.write(f"Not moved: {tables.cell(name)}: {tables.cell(why)}")
    tables.write(
        f"{tables.some(findings.n_files, 'file')} looked at, {tables.some(len(findings.strays), 'stray')}"
        + (f", {findings.moved} moved." if quarantine else ".")
    )
