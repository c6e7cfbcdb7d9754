"""`pilotage data`: the Data API from a shell, to stage files without a pilot and without a server."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import click

from copytools.base import CopyTool
from pilot import settings as tables
from pilot import staging
from pilot.api.data import Data, File, Transfers
from pilot.staging import Outcome
from protocol.errors import PilotageError
from protocol.logs import set_up_from
from protocol.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

_OPTIONS = (
    click.option("--parallel", type=click.IntRange(1, 256), default=4, show_default=True, help="Files at the same time."),
    click.option("--retries", type=click.IntRange(0, 100), default=3, show_default=True, help="Further tries for one file."),
    click.option("--timeout", type=click.FloatRange(0.1), default=3600, show_default=True, metavar="S", help="For one try of one file."),
    click.option("--copytool", "names", multiple=True, metavar="NAME", help="Copytool to use; may be repeated, best first.  [default: all that fit the address]"),
    click.option("--config", metavar="PATH", help="Settings file of the pilot, with sections [copytool:NAME]."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)  # fmt: skip


def _with_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group(context_settings=CONTEXT)
def data() -> None:
    """Copy files between this machine and storages with the pilot's copytools; no server is asked."""


@data.command(
    "stage-in",
    epilog="""\b
Examples:
  pilotage data stage-in root://eos.example//store/run-1/a.spd --to here
  pilotage dataset files run-1 --limit 0 --json | pilotage data stage-in --from - --to here
  pilotage data stage-in --from list.txt --parallel 8        (a line per file: URL adler32:0a1b2c3d)

""",
)
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--from", "list_file", type=click.File(), metavar="FILE",
              help="List of files, or JSON with url, lfn, size, checksums; -: standard input.")  # fmt: skip
@click.option("--to", "directory", type=click.Path(file_okay=False, path_type=Path), default=".", show_default=True,
              metavar="DIR", help="Where they go; it is made if it is not there.")  # fmt: skip
@_with_options
def stage_in(urls: Sequence[str], list_file: Any, directory: Path, **options: Any) -> None:
    """Copy files from storages into a directory, and verify size and checksum where they are known.

    A file that is there already is not replaced. Exit code 1: not all came.
    """
    files = staging.from_arguments(urls, directory)
    if list_file is not None:
        files += staging.from_list(list_file.read(), directory)
    if not files:
        raise click.UsageError("name addresses, or a list of them with --from FILE")
    staging.check_names(files)
    directory.mkdir(parents=True, exist_ok=True)
    _stage(Data.stage_in, files, **options)


@data.command(
    "stage-out",
    epilog="""\b
Examples:
  pilotage data stage-out out/*.root --to root://eos.example//store/me
  pilotage data stage-out a.spd --to s3://bucket/run-1 --config pilot.ini --json

""",
)
@click.argument("paths", nargs=-1, required=True, metavar="FILE...",
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option(
    "--to", "root", required=True, metavar="URL", help="Address of a directory on a storage, or of a prefix."
)
@_with_options
def stage_out(paths: Sequence[Path], root: str, **options: Any) -> None:
    """Copy files to a storage, each below URL by its own name, and print their checksums.

    Another file of that name is not replaced; the same one counts as copied. Exit code 1: not all are stored.
    """
    if ":" not in root:
        raise click.UsageError(
            f"{root} is no address of a storage; a directory of this machine is file:///its/path"
        )
    files = staging.outgoing(paths, root)
    by_url = [File(each.url, Path(each.url)) for each in files]
    staging.check_names(by_url)
    _stage(Data.stage_out, files, **options)


def _stage(
    verb: Callable[..., Transfers],
    files: Sequence[File],
    parallel: int,
    retries: int,
    timeout: float,
    names: Sequence[str],
    config: Optional[str],
    as_json: bool,
) -> None:
    settings = tables.load({}, Path(config) if config else None)
    set_up_from(settings)
    data = Data(_tools(settings, names), parallel=parallel, retries=retries, timeout_seconds=timeout)
    began = time.monotonic()
    with _bar(files) as (progress, moved), verb(data, files, progress, moved) as transfers:
        results = transfers.wait()
    outcome = Outcome(results, time.monotonic() - began)
    if as_json:
        click.echo(json.dumps(outcome.as_json(), indent=2))
    else:
        for result in results:
            if result.copied:
                learned = " ".join(f"{name}:{value}" for name, value in result.copied.checksums.items())
                click.echo(f"{result.file.shown}  {result.copied.size}  {learned}")
    for problem in outcome.problems():
        click.echo(f"Error: {problem}", err=True)
    click.echo(outcome.summary(), err=True)
    sys.exit(0 if outcome.is_good else 1)


def _tools(settings: Settings, names: Sequence[str]) -> Sequence[CopyTool]:
    from pilot.building import configured_tools  # late: --help needs none of it

    found = configured_tools(settings, names or settings.items("copytools", "names"))
    for name in names:
        if name in found.unusable:
            raise PilotageError("UNKNOWN_COPYTOOL", f"{name}: {found.unusable[name]}")
    return found.usable


@contextlib.contextmanager
def _bar(files: Sequence[File]) -> Iterator[tuple[Callable[[Any], None], Callable[[int], None]]]:
    """A bar in bytes where all sizes are known, else in files; none where nobody looks."""
    sizes = [file.size for file in files]
    total = sum(size or 0 for size in sizes) if None not in sizes else 0
    if not sys.stderr.isatty():
        yield (lambda progress: None), (lambda n_bytes: None)
        return
    began, bytes_moved = time.monotonic(), 0

    def shown(item: Optional[object]) -> str:
        return staging.speed(bytes_moved, time.monotonic() - began)

    with click.progressbar(length=total or len(files), file=sys.stderr, item_show_func=shown) as bar:

        def moved(n_bytes: int) -> None:
            nonlocal bytes_moved
            bytes_moved += n_bytes
            bar.update(n_bytes if total else 0)

        yield (lambda progress: None if total else bar.update(1)), moved
