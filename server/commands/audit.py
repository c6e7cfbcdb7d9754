"""`pilotage audit`: the standing checker, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from client import progress, tables
from client.commands import show_error
from client.commands.common import examples
from protocol.errors import PilotageError
from protocol.settings import Settings
from server import audit as auditor
from server import settings, state_directory
from server.audit import Options
from server.auditing import storage_checks
from server.auditing.findings import CHECKS, Report, Tally

DAMAGE, BLIND = 1, 2
"""Exit codes: something is wrong; it could not be looked at. 0: clean."""

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = (
    "The exit code is 0 if all is well, 1 if there are findings, 2 if it could not be looked at.\n\n"
    + examples(
        "pilotage audit",
        "pilotage audit --state /srv/pilotage --checksums all",
        "pilotage audit --database postgresql://pilotage@db/pilotage --no-storage",
        "pilotage audit --task hello --json",
    )
)


def data_root_option(function: F) -> F:
    return click.option(
        "--data-root",
        default="",
        metavar="DIR",
        help="Where addresses such as file:outputs lie on this machine (SCRIPT_PREFIX).",
    )(function)


def checksum_options(function: F) -> F:
    """The options of a command that looks into storages: what `storage_options` takes."""
    for option in reversed(
        (
            click.option(
                "--checksums",
                type=click.Choice(["none", "sample", "all"]),
                help="Files whose bytes are compared with their checksums.  [default: all where that is cheap: up to"
                f" {storage_checks.WHOLE_FILES:,} files of {storage_checks.WHOLE_BYTES >> 30} GiB together; else a sample]",
            ),
            click.option(
                "--sample",
                type=click.IntRange(min=1),
                metavar="N",
                help=f"Compare a sample of N.  [default: {storage_checks.Options.checksums}]",
            ),
            data_root_option,
        )
    ):
        function = option(function)
    return function


@click.command(epilog=EPILOG)
@click.option(
    "--state",
    "--state-directory",
    "server__state_directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="State directory of the server (default: ~/.local/share/pilotage).",
)
@click.option(
    "--database",
    "database__url",
    metavar="URL",
    help="Database of the server, if it is not in the state directory.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings file of the server, after the usual ones.",
)
@click.option("--task", default="", metavar="NAME", help="Look at one task only.")
@click.option("--no-storage", is_flag=True, help="Look at the database only, not at the files.")
@checksum_options
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=0),
    metavar="N",
    help="How long files of attempts that failed may lie about (default: garbage_hours in [archive]).",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=Options.limit,
    show_default=True,
    help="Findings to show of each check; 0: all. All are counted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def audit(
    context: click.Context,
    task: str,
    no_storage: bool,
    limit: int,
    as_json: bool,
    config: Path | None,
    **options: Any,
) -> None:
    """Check that everything is as it must be: jobs, attempts, datasets, and the files on the storages of this machine.

    It needs no server and changes nothing; the server may run.
    """
    try:
        given = {name: options.pop(name) for name in ("server__state_directory", "database__url")}
        chosen = settings.load(given, config)
        if options["grace_hours"] is None:
            options["grace_hours"] = chosen.number("archive", "garbage_hours")
        wish = Options(
            task=task,
            storages=None if no_storage else storage_options(**options),
            reaper_seconds=chosen.number("reaper", "period_seconds"),
            limit=limit,
        )
        report = auditor.audit(_url(chosen), wish, progress.counted)
    except PilotageError as error:
        show_error(error)
        context.exit(BLIND)
    if as_json:
        tables.show(as_facts(report))
    else:
        _print(report)
        tables.write(f"\n{_verdict(report, wish)}")
    context.exit(DAMAGE if report.n_findings else 0)


def storage_options(
    checksums: str | None, sample: int | None, data_root: str, grace_hours: float = 24.0
) -> storage_checks.Options:
    if sample is not None and checksums in ("none", "all"):
        raise click.UsageError(f"--sample and --checksums {checksums} exclude each other")
    n_sampled = sample or storage_checks.Options.checksums
    return storage_checks.Options(
        checksums={"none": 0, "all": None}.get(checksums or "", n_sampled),
        all_if_few=checksums is None and sample is None,
        data_root=data_root,
        grace_seconds=grace_hours * 3600,
    )


def _url(chosen: Settings) -> str:
    """The database as the server would find it."""
    directory = chosen.path("server", "state_directory").expanduser().absolute()
    return state_directory.database_url(directory, chosen.text("database", "url"))


def as_facts(report: Report) -> dict[str, Any]:
    """The report as a program reads it."""
    return {
        "clean": not report.n_findings,
        "nFindings": report.n_findings,
        "checks": [
            {
                "name": name,
                "holds": CHECKS[name].holds,
                "over": CHECKS[name].over,
                "lookedAt": tally.looked_at,
                "nFindings": tally.n_findings,
                "isNote": CHECKS[name].is_note,
            }
            for name, tally in _in_order(report)
        ],
        "findings": [
            {**dataclasses.asdict(found), "advice": CHECKS[found.check].advice, "isNote": found.is_note}
            for found in report.findings
        ],
        "outputs": {"lookedAt": report.n_outputs, "bytesCompared": report.n_compared},
        "notLookedAt": report.not_looked_at,
    }


def _in_order(report: Report) -> list[tuple[str, Tally]]:
    return [(name, report.tallies[name]) for name in CHECKS if name in report.tallies]


def _print(report: Report) -> None:
    columns = (
        tables.Column("CHECK", lambda row: row[0]),
        tables.Column("LOOKED AT", lambda row: f"{row[1].looked_at} {CHECKS[row[0]].over}"),
        tables.Column("FINDINGS", lambda row: row[1].n_findings or "-", right=True),
    )
    tables.print_table(_in_order(report), columns)
    for name, tally in _in_order(report):
        if tally.n_findings:
            _print_findings(name, tally)
    if report.not_looked_at:
        tables.write("\nNot looked at:")
        for reason in report.not_looked_at:
            tables.write(f"  {tables.cell(reason)}")


def _verdict(report: Report, wish: Options) -> str:
    """The last line; it says of how much it is true."""
    if report.n_findings:
        return tables.some(report.n_findings, "finding")
    if wish.storages is None:
        return "All is well in the database; no file was looked at (--no-storage)."
    n, of = report.n_compared, report.n_outputs
    if n == of:
        return "All is well." + (f" The bytes of all outputs ({of}) were compared." if of else "")
    rest = "; --checksums all compares all of them" if wish.storages.checksums is not None else ""
    return f"All is well. The bytes of {n} of {tables.some(of, 'output')} were compared{rest}."


def _print_findings(name: str, tally: Tally) -> None:
    check = CHECKS[name]
    tables.write(f"\n{name}: it should be that {check.holds}")
    for found in tally.shown:
        tables.write(f"  {tables.cell(found.sentence)}")
    if tally.n_findings > len(tally.shown):
        tables.write(f"  and {tally.n_findings - len(tally.shown)} more (--limit 0 shows all)")
    tables.write(f"  what to do: {check.advice}")
