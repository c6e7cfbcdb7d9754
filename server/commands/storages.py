"""`pilotage storage check|usage|clean`: storages held against the catalogue, how full they are, and what need not stay there."""

from __future__ import annotations

import dataclasses
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from client import progress, tables
from client import settings as client_settings
from client.commands import show_error
from client.commands.common import Duration, examples, json_option, limit_option, print_list
from client.session import Session
from client.tables import Column
from protocol.errors import PilotageError
from protocol.messages import to_wire
from protocol.messages.requests import ReplicaFinding
from protocol.messages.views import DatasetCleaned, DatasetView
from protocol.states import DatasetState, ReplicaState
from server.auditing import replica_checks, storage_checks, storage_usage
from server.auditing.replica_checks import BY_ADDRESS, Report
from server.auditing.snapshot import Snapshot
from server.auditing.strangers import Kind
from server.commands.audit import checksum_options, data_root_option, storage_options
from server.commands.db import Installation, of_installation
from server.upkeep import old_logs, reconcile
from server.upkeep.old_logs import Logs

DAMAGE, BLIND = 1, 2
"""Exit codes: something is wrong; a storage could not be looked at. 0: all is as the catalogue says."""
NOWHERE = "(by address)"
"""Files that users registered by addresses which lie in no storage."""


def _name(storage: str) -> str:
    return NOWHERE if storage == BY_ADDRESS else storage


@dataclasses.dataclass
class Checked:
    """Replicas against the catalogue, files on disk against the catalogue, and what was done about it."""

    report: Report
    disk: reconcile.Findings
    n_marked: int | None = None
    """Replicas that have another state in the catalogue now; None: --repair was not asked for."""

    def n_of_kind(self, storage: str, kind: Kind) -> int:
        return sum(stray.storage == storage and stray.kind is kind for stray in self.disk.strays)

    @property
    def not_looked_at(self) -> list[str]:
        """Without storages that this host cannot look into at all."""
        directories = [
            f"{what}: {why}" for what, why in self.disk.not_reached.items() if what.startswith("/")
        ]
        return [*self.report.not_looked_at, *directories]

    @property
    def dark(self) -> list[reconcile.Stray]:
        return [stray for stray in self.disk.strays if stray.kind is Kind.ORPHAN]


@click.command(
    epilog="The exit code is 0 if all is as the catalogue says, 1 if not, 2 if a storage could not be looked into.\n\n"
    + examples(
        "pilotage storage check",
        "pilotage storage check NFS --checksums all --repair",
        "pilotage storage check LOCAL --quarantine /srv/dark --json",
    )
)
@click.argument("names", nargs=-1, metavar="[STORAGE]...")
@checksum_options
@click.option("--repair", is_flag=True, help="Note in the catalogue what is bad, and what is right again.")
@click.option(
    "--quarantine",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Move files that nobody knows in here, and what attempts that are over left.",
)
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True,
              help="Files to show of each kind; 0: all. All are counted.")  # fmt: skip
@json_option
@of_installation
@click.pass_context
def check(
    context: click.Context,
    installation: Installation,
    names: tuple[str, ...],
    repair: bool,
    quarantine: Path | None,
    limit: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare the storages that this machine sees with the catalogue: lost, cut, damaged files, and files that nobody knows.

    Without STORAGE all of them, and files that users registered by their addresses. It changes nothing unless asked to, and
    the server may run. With --repair, for which the server has to run, jobs read another replica of a file that is bad here.
    """
    try:
        wish = storage_options(**options)
        checked = _check(installation, names, wish, repair, quarantine)
    except PilotageError as error:
        show_error(error)
        context.exit(BLIND)
    if as_json:
        tables.show(_as_facts(checked))
    else:
        _print(checked, limit)
    is_wrong = bool(checked.report.faults or checked.dark or checked.disk.not_moved)
    blind = [name for name in names if checked.report.tallies[name].unseen]
    context.exit(DAMAGE if is_wrong else BLIND if blind else 0)


def _check(
    installation: Installation,
    names: tuple[str, ...],
    wish: storage_checks.Options,
    repair: bool,
    quarantine: Path | None,
) -> Checked:
    session = _session(installation) if repair else None
    if session is not None:
        next(session.tokens(), None)  # what only an admin may ask: known before hours of looking, too
    with Snapshot(installation.url) as snapshot:
        report = replica_checks.look(snapshot, names, wish, progress.counted)
        about = snapshot.one("SELECT COUNT(*) AS n FROM replica WHERE storage_id IS NOT NULL") or {"n": 0}
    n_marked = None
    if session is not None:  # before anything is moved
        with session:
            n_marked = session.mark_replicas(findings_of(report))
    seen = [name for name, tally in report.tallies.items() if not tally.unseen]
    with installation.database(), progress.counted("files on disk", about["n"]) as advance:
        disk = reconcile.look(
            installation.url,
            wish.data_root,
            quarantine,
            storages=seen,
            grace_seconds=wish.grace_seconds,
            advance=advance,
        )
    return Checked(report, disk, n_marked)


def _session(installation: Installation) -> Session:
    """With the server of this installation; that it runs is known before hours of looking."""
    session = Session.find(client_settings.load({"client__state_directory": installation.directory}))
    session.health()
    return session


def findings_of(report: Report) -> list[ReplicaFinding]:
    """What the catalogue is to know of it."""
    return [
        *(
            ReplicaFinding(fault.replica_id, fault.url, ReplicaState.BAD.value, fault.reason)
            for fault in report.faults
        ),
        *(ReplicaFinding(number, url, ReplicaState.GOOD.value) for number, url in report.right_again),
    ]


# -- what a check shows ----------------------------------------------------------------------------------------------------------


def _as_facts(checked: Checked) -> dict[str, Any]:
    return {
        "storages": [
            {
                "storage": tally.name,
                "url": tally.url,
                "nReplicas": tally.n_replicas,
                "nCompared": tally.n_compared,
                **{name: tally.faults[name] for name in replica_checks.PROBLEMS},
                "dark": checked.n_of_kind(tally.name, Kind.ORPHAN),
                "garbage": checked.n_of_kind(tally.name, Kind.GARBAGE),
                "notLookedAt": tally.unseen,
            }
            for tally in checked.report.tallies.values()
        ],
        "faults": [{**to_wire(fault), "reason": fault.reason} for fault in checked.report.faults],
        "rightAgain": [url for _, url in checked.report.right_again],
        "dark": [
            {"storage": stray.storage, "path": str(stray.path), "size": stray.size, "why": stray.why}
            for stray in checked.dark
        ],
        "marked": checked.n_marked,
        "moved": checked.disk.moved,
        "notMoved": checked.disk.not_moved,
        "notLookedAt": checked.not_looked_at,
    }


_FAULTS = (
    Column("storage", lambda fault: _name(fault.storage)),
    Column("dataset", lambda fault: fault.dataset),
    Column("file", lambda fault: fault.lfn),
    Column("what is wrong", lambda fault: fault.reason),
    Column("other good replicas", lambda fault: fault.n_good, right=True),
)
_DARK = (
    Column("storage", lambda stray: stray.storage),
    Column("file that nobody knows", lambda stray: stray.path),
    Column("size", lambda stray: tables.size(stray.size), right=True),
    Column("why", lambda stray: stray.why),
)


def _print(checked: Checked, limit: int) -> None:
    report = checked.report
    columns = (
        Column("storage", lambda tally: _name(tally.name)),
        Column("files", lambda tally: tally.n_replicas, right=True),
        Column("compared", lambda tally: tally.n_compared, right=True),
        Column("lost", lambda tally: tally.faults["lost-file"] or None, right=True),
        Column("wrong size", lambda tally: tally.faults["wrong-size"] or None, right=True),
        Column("wrong checksum", lambda tally: tally.faults["wrong-checksum"] or None, right=True),
        Column("dark", lambda tally: checked.n_of_kind(tally.name, Kind.ORPHAN) or None, right=True),
        Column("garbage", lambda tally: checked.n_of_kind(tally.name, Kind.GARBAGE) or None, right=True),
    )
    tables.print_table([tally for tally in report.tallies.values() if not tally.unseen], columns)
    for rows, its_columns in ((report.faults, _FAULTS), (checked.dark, _DARK)):
        if rows:
            tables.write("")
            tables.print_table(rows[:limit] if limit else rows, its_columns)
            if limit and len(rows) > limit:
                tables.write(f"and {len(rows) - limit} more (--limit 0 shows all)")
    unseen = [f"{_name(tally.name)}: {tally.unseen}" for tally in report.tallies.values() if tally.unseen]
    if unseen or checked.not_looked_at:
        tables.write("\nNot looked at:")
        for reason in (*unseen, *checked.not_looked_at):
            tables.write(f"  {tables.cell(reason)}")
    for path, why in checked.disk.not_moved.items():
        tables.write(f"Not moved: {tables.cell(path)}: {tables.cell(why)}")
    tables.write(f"\n{_verdict(checked)}")


def _verdict(checked: Checked) -> str:
    report = checked.report
    n, n_compared = (
        sum(getattr(tally, name) for tally in report.tallies.values())
        for name in ("n_replicas", "n_compared")
    )
    what = f"{tables.some(n, 'replica')} looked at, the bytes of {n_compared} compared"
    found = f"{len(report.faults)} wrong, {len(checked.dark)} dark"
    words = [f"{what}: {found if report.faults or checked.dark else 'all is as the catalogue says'}."]
    if checked.disk.moved:
        words.append(f"{tables.some(checked.disk.moved, 'file')} moved away.")
    if report.right_again:
        words.append(f"{len(report.right_again)} that were suspect or bad are right again.")
    if checked.n_marked is not None:
        words.append(f"The catalogue knows: {tables.some(checked.n_marked, 'replica')} marked.")
    elif report.faults or report.right_again:
        words.append("--repair notes it in the catalogue, so that jobs read other replicas.")
    return " ".join(words)


# -- usage ------------------------------------------------------------------------------------------------------------------


@click.command(
    epilog=examples(
        "pilotage storage usage",
        "pilotage storage usage NFS --by dataset --limit 10",
        "pilotage storage usage --disk --json",
    )
)
@click.argument("names", nargs=-1, metavar="[STORAGE]...")
@click.option("--by", type=click.Choice(list(storage_usage.BY)), default="storage", show_default=True,
              help="What a line is about.")  # fmt: skip
@click.option(
    "--disk", is_flag=True, help="Look at what lies in the storages of this machine instead, logs too."
)
@data_root_option
@limit_option
@json_option
@of_installation
def usage(
    installation: Installation,
    names: tuple[str, ...],
    by: str,
    disk: bool,
    data_root: str,
    limit: int,
    as_json: bool,
) -> None:
    """Show how many files and bytes each storage has, by the catalogue, or each dataset or task on it; the most first."""
    if disk and by != "storage":
        raise click.UsageError(f"--disk and --by {by} exclude each other: a disk knows no datasets and tasks")
    with Snapshot(installation.url) as snapshot:
        if disk:
            found = list(storage_usage.by_disk(snapshot, names, data_root))
            print_list(found, _ON_DISK, limit, as_json, "No storage.")
            return
        lines = storage_usage.by_catalogue(snapshot, names, by, progress.counted)
    of = () if by == "storage" else (Column(by, lambda line: line.of or None),)
    columns = (
        Column("storage", lambda line: _name(line.storage)),
        *of,
        Column("files", lambda line: line.n_files, right=True),
        Column("size", lambda line: tables.size(line.size), right=True),
    )
    print_list(lines, columns, limit, as_json, "No file.")


_ON_DISK = (
    Column("storage", lambda each: each.storage),
    Column("files", lambda each: each.n_files, right=True),
    Column("size", lambda each: tables.size(each.size), right=True),
    Column("of these logs", lambda each: each.n_logs, right=True),
    Column("size of logs", lambda each: tables.size(each.logs_size), right=True),
    Column("not looked at", lambda each: each.unseen),
)


# -- clean ------------------------------------------------------------------------------------------------------------------


@click.command(
    epilog=examples(
        "pilotage storage clean --logs-older-than 90d",
        "pilotage storage clean --outputs-older-than 365d --dataset 'test-*'",
        "pilotage storage clean --deleted --yes",
    )
)
@click.option("--logs-older-than", type=Duration(), metavar="AGE",
              help="Logs, on this machine's storages, of tasks that ended so long ago: as 90d, 12h or 4w.")  # fmt: skip
@click.option("--outputs-older-than", type=Duration(), metavar="AGE",
              help="Outputs of tasks, in datasets that were closed so long ago.")  # fmt: skip
@click.option("--deleted", is_flag=True, help="What is left of datasets that were deleted.")
@click.option(
    "--dataset", "pattern", default="*", metavar="GLOB", help="Of these datasets only.  [default: all]"
)
@click.option("-y", "--yes", is_flag=True, help="Do it; without this it is only said what would go.")
@data_root_option
@json_option
@of_installation
@click.pass_context
def clean(
    context: click.Context,
    installation: Installation,
    logs_older_than: int | None,
    outputs_older_than: int | None,
    deleted: bool,
    pattern: str,
    yes: bool,
    data_root: str,
    as_json: bool,
) -> None:
    """Remove what need not be kept: old logs, old outputs, what deleted datasets left. Says what would go, unless --yes.

    A dataset whose outputs go is deleted for good. For outputs the server has to run: its sweeper removes their files. Files that
    users registered, and outputs that a task still reads, stay. The exit code is 1 if something could not be removed.
    """
    if logs_older_than is None and outputs_older_than is None and not deleted:
        raise click.UsageError("say what may go: --logs-older-than, --outputs-older-than or --deleted")
    if logs_older_than is not None and pattern != "*":
        raise click.UsageError("--logs-older-than and --dataset exclude each other: logs are of no dataset")
    logs = [] if logs_older_than is None else _clean_logs(installation, logs_older_than, data_root, yes)
    outputs: list[DatasetCleaned] = []
    if outputs_older_than is not None or deleted:
        with _session(installation) as session:
            outputs = _clean_outputs(session, outputs_older_than, deleted, pattern, yes)
    if as_json:
        tables.show(
            {
                "done": yes,
                "datasets": outputs,
                "logs": [
                    {"storage": each.storage, "task": each.task, "nFiles": len(each.names), "size": each.size,
                     "notRemoved": each.not_removed}
                    for each in logs
                ],
            }
        )  # fmt: skip
    else:
        _print_cleaned(logs, outputs, yes)
    if yes and (any(each.not_removed for each in logs) or any(each.why_not for each in outputs)):
        context.exit(1)


def _clean_logs(installation: Installation, seconds: int, data_root: str, yes: bool) -> list[Logs]:
    with Snapshot(installation.url) as snapshot:
        places = storage_usage.places(snapshot, data_root)
        found = list(old_logs.find(snapshot, places, time.time() - seconds))
    for logs in found if yes else ():
        old_logs.remove(logs)
    return found


def _clean_outputs(
    session: Session, seconds: int | None, deleted: bool, pattern: str, yes: bool
) -> list[DatasetCleaned]:
    """Of tasks alone: what users registered is theirs."""
    found: list[DatasetView] = []
    if seconds is not None:
        before = time.time() - seconds
        found += [each for each in session.datasets(state=DatasetState.CLOSED.value) if _is_old(each, before)]
    if deleted:
        found += session.datasets(state=DatasetState.DELETED.value)
    wanted = [
        each
        for each in found
        if each.task_id is not None and each.n_files and fnmatchcase(each.name, pattern)
    ]
    return [session.clean_dataset(dataset.name, dry=not yes) for dataset in wanted]


def _is_old(dataset: DatasetView, before: float) -> bool:
    return dataset.closed is not None and tables.moment(dataset.closed).timestamp() < before


def _print_cleaned(logs: list[Logs], outputs: list[DatasetCleaned], yes: bool) -> None:
    if outputs:
        columns = (
            Column("dataset", lambda each: each.dataset),
            Column("files", lambda each: each.n_files, right=True),
            Column("size", lambda each: tables.size(each.size), right=True),
            Column("stays, because", lambda each: each.why_not),
        )
        tables.print_table(outputs, columns)
    if logs:
        tables.print_table(
            logs,
            (
                Column("logs of task", lambda each: each.task),
                Column("storage", lambda each: each.storage),
                Column("files", lambda each: len(each.names), right=True),
                Column("size", lambda each: tables.size(each.size), right=True),
                Column("not removed", lambda each: each.not_removed),
            ),
        )
    going = [each for each in outputs if not each.why_not]
    n = sum(each.n_files for each in going) + sum(len(each.names) for each in logs)
    size = tables.size(sum(each.size for each in going) + sum(each.size for each in logs))
    if not n:
        tables.write("Nothing to remove.")
    elif yes:
        tables.write(
            f"Removed: {tables.some(n, 'file')}, {size}; of outputs the server removes the files now."
        )
    else:
        tables.write(f"Would go: {tables.some(n, 'file')}, {size}. Nothing was removed: --yes does it.")
