"""The pilot's command line: options, made from the settings tables; settings; and the exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NoReturn, Optional, TypeVar

import click

from pilot import settings as tables
from protocol import __version__
from protocol.errors import PILOT_EXIT_TEXT, PilotageError, PilotExit
from protocol.logs import set_up_from
from protocol.settings import Setting, Settings, Table, describe
from protocol.values import Type, as_text

if TYPE_CHECKING:
    from pilot.collector import Collector

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T")

LATER = frozenset(
    (
        "get_job__country_group",
        "get_job__working_group",
        "get_job__allow_other_country",
    )
)
"""Options of Pilot 2 that are taken and sent, and do something of their own in a later version."""

FURTHER_NAMES = {
    "node_settings__processor_type": ("--resource-type",),
    "node_settings__outbox_directory": ("--outbox",),
}
"""Names that options have beside those in the table."""

FOREVER = 31_536_000
"""Seconds; what --wait makes of idle_seconds."""

EXAMPLES = """\b
Examples:
  python -m pilot -q CPU -j user --url http://server:8080 --token-file pilot.token
  python -m pilot -q GPU --resource-type gpu -a /scratch/$USER -l 86400
  python -m pilot --config /etc/pilotage/pilot.ini --max-jobs 1 -d
  python -m pilot --print-config
  python -m pilot check -q CPU
  python -m pilot benchmark
  python -m pilot daemon --config daemon.ini -- -q CPU
  python -m pilot -q HPC --bridge /shared/pilotage

"""


def _exit_codes() -> str:
    lines = [f"  {code.value:>3}  {text}" for code, text in PILOT_EXIT_TEXT.items()]
    return "\b\nExit codes:\n" + "\n".join(lines)


def _options(table: Table) -> Callable[[C], C]:
    """An option per row of the table that has one; values stay text, the settings check them."""

    def decorate(function: C) -> C:
        for row in reversed([row for row in table.rows if row.options or row.parameter in FURTHER_NAMES]):
            names = (*row.options, *FURTHER_NAMES.get(row.parameter, ()))
            is_flag = row.type is Type.FLAG
            function = click.option(
                *names, row.parameter, help=_help(row), metavar=None if is_flag else _metavar(row),
                is_flag=is_flag, default=None,
            )(function)  # fmt: skip
        return function

    return decorate


def _help(row: Setting) -> str:
    later = " (accepted; acts in a later version)" if row.parameter in LATER else ""
    default = as_text(row.default)
    shown = f"  [default: {default}]" if default and row.type is not Type.FLAG else ""
    return f"{row.help}{later}{shown}"


def _metavar(row: Setting) -> str:
    if row.choices:
        return "|".join(row.choices)
    if row.name[1].endswith("_seconds"):
        return "S|5m|2h"
    return {Type.INTEGER: "N", Type.NUMBER: "N", Type.PATH: "PATH", Type.URL: "URL"}.get(row.type, "NAME")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXAMPLES + _exit_codes(),
)
@_options(tables.TABLE)
@click.option(
    "-d", "--debug", is_flag=True, help="debug mode: log at level DEBUG, and keep the work directories"
)
@click.option("--wait", is_flag=True, help="keep asking while there is no job, until the lifetime ends")
@click.option("--config", metavar="PATH", help="settings file, stronger than the ones in the usual places")
@click.option(
    "--print-config", is_flag=True, help="show each setting, its value and where that comes from, and end"
)
@click.version_option(__version__, prog_name="pilot", message="%(prog)s %(version)s")
def run(debug: bool, wait: bool, config: Optional[str], print_config: bool, **given: Any) -> None:
    """Pull jobs from a server and run them on this node, one after the other, until the lifetime ends."""
    if debug:
        given.update({"logging__log_level": "DEBUG", "limits__keep_work_directories": True})
    if wait:
        given["limits__idle_seconds"] = FOREVER
    settings = _or_end(lambda: tables.load(given, Path(config) if config else None))
    if print_config:
        _show(settings)
        return
    logs = _or_end(lambda: set_up_from(settings))
    from pilot.run import run as work  # late: --help and --version need none of it

    _leave(work(settings, dict(os.environ), logs.secrets))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_options(tables.DAEMON_TABLE)
@click.option("--config", metavar="PATH", help="settings file of the daemon")
@click.option(
    "--print-config", is_flag=True, help="show each setting, its value and where that comes from, and end"
)
@click.argument("pilot_options", nargs=-1)
def daemon(config: Optional[str], print_config: bool, pilot_options: Sequence[str], **given: Any) -> None:
    """Start pilots on this node again and again, SCRIPT_DELAY seconds apart; PILOT_OPTIONS (after --) go to each of them.

    SIGTERM and SIGINT end the pilots in order, and then the daemon.
    """
    settings = _or_end(lambda: tables.load_daemon(given, Path(config) if config else None))
    if print_config:
        _show(settings)
        return
    _or_end(lambda: set_up_from(settings))
    from pilot.daemon import run as work

    _leave(_or_end(lambda: work(settings, pilot_options)))


BRIDGE_EXAMPLES = """\b
Examples:
  pilotage pilot bridge --directory /shared/pilotage --url https://server:8080 --token-file pilot.token
  on the nodes:  python3 pilot.pyz -q HPC --bridge /shared/pilotage -a /scratch/$USER

"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=BRIDGE_EXAMPLES,
)
@_options(tables.BRIDGE_TABLE)
@click.option("--config", metavar="PATH", help="settings file of the bridge")
@click.option(
    "--print-config", is_flag=True, help="show each setting, its value and where that comes from, and end"
)
def bridge(config: Optional[str], print_config: bool, **given: Any) -> None:
    """Speak to the server for pilots on nodes that do not reach it, through a directory that both sides see.

    It runs where the server can be reached, as the account that the pilots have, until SIGTERM or SIGINT. The token stays
    with it: the nodes need none. A second one stands by until the first ends.
    """
    settings = _or_end(lambda: tables.load_bridge(given, Path(config) if config else None))
    if print_config:
        _show(settings)
        return
    logs = _or_end(lambda: set_up_from(settings))
    from pilot.bridge import run as work

    _leave(_or_end(lambda: work(settings, dict(os.environ), logs.secrets)))


PATTERN_EXAMPLES = """\b
Examples:
  pilotage pilot patterns                                    list them, each tried on its example
  pilotage pilot patterns payload.stderr payload.stdout      what they find there
  pilotage pilot patterns --patterns site.ini payload.stderr
  ./payload 2>&1 | pilotage pilot patterns -

"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=PATTERN_EXAMPLES,
)
@click.argument(
    "texts", nargs=-1, metavar="[FILE]...",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)  # fmt: skip
@click.option("--patterns", "further", multiple=True, metavar="PATH",
              help="a file with patterns to try, before those of the settings; may be given several times")  # fmt: skip
@click.option("--pilotuser", metavar="NAME", help="with the patterns that this experiment plugin brings")
@click.option("--config", metavar="PATH", help="settings file of the pilot")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def patterns(
    texts: Sequence[Path],
    further: Sequence[str],
    pilotuser: Optional[str],
    config: Optional[str],
    as_json: bool,
) -> None:
    """Try the patterns by which pilots find known errors in what a payload wrote: on FILEs (-: standard input), or on their own examples.

    Of what is found in FILEs, the first line is what a job that had failed would end with. Exit code 1: a pattern is wrong.
    """
    settings = _or_end(
        lambda: tables.load({"experiment__plugin": pilotuser}, Path(config) if config else None)
    )
    from pilot import pattern_trial  # late: no pilot needs it

    report = _or_end(
        lambda: (
            pattern_trial.on_texts(settings, texts, further)
            if texts
            else pattern_trial.on_examples(settings, further)
        )
    )
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        for line in report.lines():
            click.echo(line)
        for problem in report.problems:
            click.echo(f"wrong: {problem}", err=True)
    sys.exit(1 if report.problems else 0)


CHECK_EXAMPLES = """\b
Examples:
  pilotage pilot check -q CPU
  python -m pilot check -q GPU --resource-type gpu --url http://server:8080 --token-file pilot.token --json

"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=CHECK_EXAMPLES
)
@_options(tables.TABLE)
@click.option("--config", metavar="PATH", help="settings file, stronger than the ones in the usual places")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(config: Optional[str], as_json: bool, **given: Any) -> None:
    """Look whether this node is fit for work, as a pilot with these options does before it asks for its first job.

    No job is asked for. The server learns of a pilot that ends at once, and says what its queue wants otherwise. Exit code 0: the
    node is fit; 69: it is not.
    """
    settings = _or_end(lambda: tables.load(given, Path(config) if config else None))
    logs = _or_end(lambda: set_up_from(settings))
    from pilot.check import look  # late: no pilot needs it

    report = _or_end(lambda: look(settings, dict(os.environ), logs.secrets))
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    sys.exit((PilotExit.DONE if report.is_fit else PilotExit.NODE_UNFIT).value)


BENCHMARK_EXAMPLES = """\b
Examples:
  pilotage pilot benchmark
  pilotage pilot benchmark --cores 8 --seconds 10 -a /scratch --json
  python -m pilot benchmark --send --config /etc/pilotage/pilot.ini

"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=BENCHMARK_EXAMPLES,
)
@click.option("--cores", type=click.IntRange(1, 1000), metavar="N",
              help="Processes at once.  [default: as many as there are cores]")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1, 3600), metavar="S",
              help="About how long it takes.  [default: as in the settings]")  # fmt: skip
@click.option("-a", "--work-directory", "directory", metavar="PATH",
              type=click.Path(exists=True, file_okay=False), default=".", show_default=True,
              help="Its disk is measured, with a file that is gone afterwards.")  # fmt: skip
@click.option("--send", is_flag=True, help="Post the result to the collector of the settings, too.")
@click.option("--config", metavar="PATH", help="settings file of the pilot")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def benchmark(
    cores: Optional[int],
    seconds: Optional[float],
    directory: str,
    send: bool,
    config: Optional[str],
    as_json: bool,
) -> None:
    """Measure this node for a few seconds: processors and memory with N processes at once, and the disk. No server is asked.

    integer and float count millions of rounds of a loop of Python in a second, of all processes together; `slowest` is that of
    the slowest one. Compare them between nodes with the same version of Python. Exit code 1: it gave no result, or was not sent.
    """
    settings = _or_end(lambda: tables.load({}, Path(config) if config else None))
    collector = _or_end(lambda: _collector(settings)) if send else None
    from pilot.benchmark import measure  # late: no pilot needs it

    seconds = seconds or settings.number("services", "benchmark_seconds")
    try:
        report = measure(directory, cores or 0, seconds, settings.integer("services", "benchmark_disk_mb"))
    except OSError as error:
        click.echo(f"pilot: the benchmark gave no result: {error}", err=True)
        sys.exit(1)
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(_benchmark_lines(report)))
    why_not = collector.send({"kind": "benchmark", **report}) if collector else ""
    if why_not:
        click.echo(f"pilot: the benchmark was not sent: {why_not}", err=True)
        sys.exit(1)


def _benchmark_lines(report: dict[str, Any]) -> list[str]:
    facts = {**report, **report["scores"]}
    del facts["scores"]
    return [_benchmark_line(name, value) for name, value in facts.items()]


def _benchmark_line(name: str, value: object) -> str:
    """With the unit behind the number."""
    kind = name.partition("_")[0]
    unit = {"integer": "million rounds/s", "float": "million rounds/s", "seconds": "s"}.get(kind, "")
    if "_mb_per_second" in name:
        name, unit = name.replace("_mb_per_second", ""), "MiB/s"
    return f"{name.replace('_', ' '):<20} {value} {unit}".rstrip()


def _collector(settings: Settings) -> Collector:
    from pilot import building  # late: it loads all that a pilot consists of
    from protocol.redaction import Secrets

    found = building.collector_for(settings, os.environ, Secrets())
    if found is None:
        raise PilotageError("BAD_SETTINGS", "[services] collector names no address to send it to")
    return found


BESIDE = {"daemon": daemon, "bridge": bridge, "check": check, "patterns": patterns, "benchmark": benchmark}
"""First words that mean something else than a pilot."""


def main() -> None:
    """`python -m pilot`: the pilot, or what its first word names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in BESIDE:
        BESIDE[name].main(sys.argv[2:], prog_name=f"pilot {name}")
    else:
        run.main(sys.argv[1:], prog_name="pilot")


def _or_end(work: Callable[[], T]) -> T:
    """Settings that are wrong end the start with one sentence."""
    try:
        return work()
    except PilotageError as error:
        click.echo(f"pilot: {error}\n  {error.entry.advice}", err=True)
        sys.exit(PilotExit.BAD_SETTINGS.value)


def _show(settings: Settings) -> None:
    for line in describe(settings):
        click.echo(f"[{line.section}] {line.key} = {line.value}   ({line.origin})")


def _leave(code: PilotExit) -> NoReturn:
    """End the process, also if a thread is stuck in something that cannot be interrupted."""
    stuck = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    if not stuck:
        sys.exit(code.value)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code.value)
