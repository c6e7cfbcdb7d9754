"""The commands of the DAQ emulator: `daq emulate` writes .spd files, `daq read` shows one, `daq verify` checks many."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from daq import config as configuration
from daq.config import DaqConfig, format_size
from daq.layout import Layout
from protocol import spd
from protocol.errors import PilotageError
from protocol.messages import to_wire
from protocol.redaction import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from daq.emulator import FilePlan, Written

_PIPE_WIDTH = 120
"""Columns of a table that goes into a file or pipe."""
_USAGE, _FAILURE = 2, 1


class Command(click.Command):
    """A command that says in one line what went wrong: exit code 2 for wrong options or settings, 1 for anything else."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PilotageError as error:
            failed = click.ClickException(str(error))
            failed.exit_code = _USAGE if error.name == "BAD_SETTINGS" else _FAILURE
            raise failed from None
        except BrokenPipeError:
            raise
        except OSError as error:
            what = one_line(f"{error.filename}: {error.strerror}") if error.filename else str(error)
            raise click.ClickException(what) from None


@click.group()
def daq() -> None:
    """Write, list and verify .spd files as the data acquisition (DAQ) of a detector makes them.

    The files are an emulation: the layout is ours, see docs/spd-format.md.
    """


daq.command_class = Command

_KEY_OPTIONS = {
    "name_format": ("--format", "DataFileNameFormat"),
    "seed": ("--seed", "RandomSeed"),
    "size": ("--size", "DataFileSizeLimit"),
    "debug_mode": ("--debug-mode", "DebugMode"),
    "frame_clock_id": ("--frame-clock-id", "FrameClockID"),
    "bunch_crossing_id": ("--bunch-crossing-id", "BunchCrossingID"),
    "slice_length": ("--slice-length", "SliceLength"),
    "frame_length": ("--frame-length", "FrameLength"),
}


def _key_options(command: Callable[..., None]) -> Callable[..., None]:
    """One option per key of the configuration file; its text is read as it would be there."""
    metavars = {"name_format": "FORMAT", "size": "SIZE", "debug_mode": "0|1", "slice_length": "NS"}
    metavars |= {
        "frame_length": "SLICES",
        "frame_clock_id": "ID,…",
        "bunch_crossing_id": "ID,…",
        "seed": "NUMBER",
    }
    hints = {"size": ", e.g. 1MiB", "name_format": "; takes run, chunk and builder id"}
    for parameter, (option, key) in reversed(_KEY_OPTIONS.items()):
        help_text = f"Overrides {key}{hints.get(parameter, '')}."
        command = click.option(option, parameter, metavar=metavars[parameter], help=help_text)(command)
    return command


@daq.command(short_help="Write .spd files.")
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The DAQ's configuration, such as etc/daq.cfg.  [default: the values of that file]",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("."),
    metavar="DIR",
    show_default=True,
    help="Where the files go; made if it is not there.",
)
@click.option(
    "-n", "--files", type=int, default=1, show_default=True, help="Number of files, of all builders together."
)
@click.option("--run", "run", type=int, default=1, show_default=True, help="Run number.")
@click.option("--first-chunk", type=int, default=0, show_default=True, help="Number of the first chunk.")
@click.option(
    "--builders", type=int, default=1, show_default=True, help="Number of builders; each writes own chunks."
)
@click.option(
    "--builder-directories", is_flag=True, help="Give each builder a directory of its own: DIR/builder-00, …."
)
@_key_options
@click.option(
    "--simulated", is_flag=True, help="Mark the data as simulated: hits name the particle that made them."
)
@click.option("--force", is_flag=True, help="Write over existing files.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Files written at the same time.  [default: one per processor]",
)
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors and warnings.")
def emulate(
    config_file: Path | None,
    out: Path,
    files: int,
    run: int,
    first_chunk: int,
    builders: int,
    builder_directories: bool,
    simulated: bool,
    force: bool,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    **keys: str | None,
) -> None:
    """Write .spd files as the DAQ would: frames of slices with the hits of eight TDC modules per builder.

    The same configuration and seed give the same bytes, whatever -j is. A file is written under a hidden name (.*.part)
    and renamed when it is complete; its size never exceeds --size.

    \b
    Examples:
      pilotage daq emulate --out data --files 50 --size 1MiB
      pilotage daq emulate -c etc/daq.cfg -o data -n 4 -j 2
      pilotage daq emulate -o data -n 6 --run 7 --builders 3 --builder-directories --size 64MiB
      pilotage daq emulate -o mc -n 2 --size 1MiB --simulated --seed 99
    """
    from daq.emulator import check_space, plan  # late: numpy, which reading and verifying do without

    config = _config(config_file, keys)
    for warning in configuration.warnings(config):
        click.echo(f"Warning: {warning}", err=True)
    kind = spd.Kind.SIMULATED if simulated else spd.Kind.RAW
    plans = plan(config, out, files, run, first_chunk, builders, builder_directories, kind, force)
    check_space(plans)
    started = time.monotonic()
    written = _emulate(plans, jobs or len(os.sched_getaffinity(0)), quiet)
    seconds = time.monotonic() - started
    written.sort(key=lambda each: (each.chunk, each.builder))
    if as_json:
        _print_json(
            {"files": written, "bytes": sum(each.size for each in written), "seconds": round(seconds, 3)}
        )
    elif not quiet:
        _print_written(written, seconds)


def _config(config_file: Path | None, keys: dict[str, str | None]) -> DaqConfig:
    config = configuration.load(config_file) if config_file else DaqConfig()
    given = ((key, keys[parameter], option) for parameter, (option, key) in _KEY_OPTIONS.items())
    return configuration.override(
        config, [(key, text, option) for key, text, option in given if text is not None]
    )


def _emulate(plans: Sequence[FilePlan], jobs: int, quiet: bool) -> list[Written]:
    """Write with a progress bar; after Ctrl-C or SIGTERM no process and no unfinished file is left."""
    from daq.emulator import Written, emulating

    written: list[Written] = []
    expected = Layout.of(plans[0].config, plans[0].kind, 0).expected_bytes * len(plans)
    try:
        # The processes first: the progress bar is a thread, and forking beside threads is unsafe.
        with _sigterm_raises(), emulating(plans, jobs) as events, _progress(quiet) as bar:
            row = bar.add_task(f"0/{len(plans)} files", total=expected) if bar else None
            for event in events:
                if isinstance(event, Written):
                    written.append(event)
                if bar and row is not None:
                    advance = event if isinstance(event, int) else 0
                    bar.update(row, advance=advance, description=f"{len(written)}/{len(plans)} files")
            if bar and row is not None:
                bar.update(row, completed=expected)
    except KeyboardInterrupt:
        click.echo(f"Interrupted: {len(written)} of {len(plans)} files are complete.", err=True)
        sys.exit(130)
    return written


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the block in order, with exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_written(written: Sequence[Written], seconds: float) -> None:
    size = sum(each.size for each in written)
    files = "1 file" if len(written) == 1 else f"{len(written)} files"
    rate = f"{size / seconds / 1e6:.0f} MB/s"
    click.echo(f"Wrote {files}, {format_size(size)}, in {seconds:.1f} s ({rate}).")
    cut = sum(each.cut_hits for each in written)
    if cut:
        click.echo(f"{cut} hits were left out because files were full (DataFileSizeLimit).")
    click.echo(f"Look into the first:  pilotage daq read {written[0].path}")


# -- read -------------------------------------------------------------------------------------------------------------------


@daq.command(short_help="Show the header and the frames of an .spd file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--frames",
    "most_frames",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="N",
    help="Show at most N frames.",
)
@click.option("--all", "all_frames", is_flag=True, help="Show all frames.")
@click.option(
    "--hits", "most_hits", type=click.IntRange(0), default=0, metavar="N", help="Show the first N hits too."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print header, all frames and the hits asked for as JSON."
)
def read(file: Path, most_frames: int, all_frames: bool, most_hits: int, as_json: bool) -> None:
    """Show what an .spd file holds: its header and its frames, quickly, without reading the hits.

    A damaged file is shown as far as it can be read; the exit code is 1 then. `daq verify` checks every byte.

    \b
    Examples:
      pilotage daq read data/run-000001-00000-00.spd
      pilotage daq read --all --hits 10 data/run-000001-00000-00.spd
      pilotage daq read --json data/run-000001-00000-00.spd | jq .header.words
    """
    found, hits, problem = _scan(file, most_hits)
    if found is None:
        assert problem is not None
        raise problem
    header, frames = found
    if as_json:
        _print_json({"path": str(file), "header": header, "frames": frames, "hits": hits})
    else:
        _print_file(file, header, frames if all_frames else frames[:most_frames], len(frames), hits)
    if problem:
        raise problem


@dataclass(frozen=True)
class HitRow:
    """A hit with its place, as `--hits` shows it."""

    frame: int
    slice: int
    source_id: int
    channel: int
    time_ticks: int
    width_ns: int
    truth: int


def _scan(
    file: Path, most_hits: int
) -> tuple[tuple[spd.FileHeader, list[spd.FrameHeader]] | None, list[HitRow], PilotageError | None]:
    """Header, frames and hits as far as they can be read, and what stopped that."""
    found: tuple[spd.FileHeader, list[spd.FrameHeader]] | None = None
    hits: list[HitRow] = []
    try:
        with spd.opened(file) as stream:
            header = spd.read_header(stream)
            found = (header, [])
            for frame in spd.frames(stream, header):
                found[1].append(frame.header)
                if len(hits) < most_hits:
                    hits += itertools.islice(_hit_rows(frame), most_hits - len(hits))
    except PilotageError as error:
        return found, hits, error
    return found, hits, None


def _hit_rows(frame: spd.Frame) -> Iterator[HitRow]:
    for block in frame.blocks():
        for hit in spd.hits(block.words):
            yield HitRow(frame.header.number, block.slice_number, block.source_id, **hit._asdict())


def _print_file(
    file: Path, header: spd.FileHeader, frames: Sequence[spd.FrameHeader], total: int, hits: Sequence[HitRow]
) -> None:
    console = _console()
    console.print(one_line(str(file)), style="bold", markup=False, soft_wrap=True)
    console.print(_header_table(header))
    if frames:
        console.print(_frame_table(header, frames))
    if len(frames) < total:
        console.print(f"… and {total - len(frames)} more frames (--all shows them)")
    if hits:
        console.print(_hit_table(hits))


def _header_table(header: spd.FileHeader) -> Any:
    from rich.table import Table

    table = Table(show_header=False)
    frame_seconds = header.slice_ns * header.frame_slices / 1e9
    rows = {
        "kind of data": header.kind.value,
        "run, chunk, builder": f"{header.run}, {header.chunk}, {header.builder}",
        "random seed": str(header.seed),
        "slice": f"{header.slice_ns} ns",
        "frame": f"{header.frame_slices} slices ({frame_seconds:g} s)",
        "blocks without hits": "kept" if header.keeps_empty else "dropped",
        "size": f"{header.size} bytes" + (f" ({format_size(header.size)})" if header.size >= 1000 else ""),
        "frames, blocks, hits": f"{header.frames}, {header.blocks}, {header.words}",
    }
    for role in spd.Role:
        rows[f"{role.value} ids"] = ", ".join(
            str(each.source_id) for each in header.sources if each.role is role
        )
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _frame_table(header: spd.FileHeader, frames: Sequence[spd.FrameHeader]) -> Any:
    from rich.table import Table

    table = Table("frame", "slices", "part", "start", "blocks", "hits", "bytes")
    for column in table.columns:
        column.justify = "right"
        column.no_wrap = True
    for frame in frames:
        last = frame.first_slice + frame.slices - 1
        whole = frame.slices == header.frame_slices
        start = f"{frame.clocks[0].start_ticks * spd.TICK_PS / 1e12:.10f} s" if frame.clocks else "-"
        share = "whole" if whole else f"{100 * frame.slices / header.frame_slices:.3g} %"
        numbers = (frame.blocks, frame.words, frame.payload_bytes)
        table.add_row(str(frame.number), f"{frame.first_slice} to {last}", share, start, *map(str, numbers))
    return table


def _hit_table(hits: Sequence[HitRow]) -> Any:
    from rich.table import Table

    table = Table("frame", "slice", "source", "channel", "time", "width", "particle")
    for column in table.columns:
        column.justify = "right"
    for hit in hits:
        time, width = f"{hit.time_ticks * spd.TICK_PS / 1000:.1f} ns", f"{hit.width_ns} ns"
        cells = (hit.frame, hit.slice, hit.source_id, hit.channel, time, width, hit.truth)
        table.add_row(*map(str, cells))
    return table


# -- verify -----------------------------------------------------------------------------------------------------------------


@daq.command(short_help="Check .spd files, every byte.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--quick", is_flag=True, help="Check headers, trailers and the size only, as a pilot does at stage-in."
)
@click.option(
    "--kind", type=click.Choice([kind.value for kind in spd.Kind]), help="Refuse the other kind of data."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result of each file as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def verify(files: tuple[Path, ...], quick: bool, kind: str | None, as_json: bool, quiet: bool) -> None:
    """Check that .spd files are whole: all lengths, counts and checksums. Exit code 1 if any is not.

    Four things are told apart: no .spd file at all, one that ends too early, one that is damaged inside, and (with --kind)
    one with the other kind of data.

    \b
    Examples:
      pilotage daq verify data/*.spd
      pilotage daq verify --quick --kind raw data/run-000001-00000-00.spd
      pilotage daq verify --json data/*.spd | jq '.files[] | select(.error)'
    """
    results: list[dict[str, Any]] = []
    bad: list[PilotageError | OSError] = []
    wanted = spd.Kind(kind) if kind else None
    with _progress(quiet or quick or as_json) as bar:
        row = bar.add_task("verifying", total=sum(map(_size, files))) if bar else None
        told = (lambda size: bar.update(row, advance=size)) if bar and row is not None else None
        for file in files:
            try:
                summary = spd.check(file, wanted) if quick else spd.verify(file, wanted, told)
            except (PilotageError, OSError) as error:
                bad.append(error)
                results.append({"path": str(file), "error": _error_name(error), "detail": _sentence(error)})
                if not as_json and len(files) > 1:
                    click.echo(f"BAD  {_sentence(error)}", err=True)
                continue
            results.append(to_wire(summary))
            if not quiet and not as_json:
                click.echo(_good_line(summary))
    if as_json:
        _print_json({"files": results, "good": len(files) - len(bad), "bad": len(bad)})
    if bad:
        _give_up(bad, len(files))


def _good_line(summary: spd.Summary) -> str:
    frames = "1 frame" if summary.frames == 1 else f"{summary.frames} frames"
    found = "headers ok" if not summary.payload_verified else "ok"
    return (
        f"{found}  {one_line(summary.path)}: {summary.kind.value}, run {summary.run}, chunk {summary.chunk}, "
        f"builder {summary.builder}, {frames}, {summary.words} hits, {format_size(summary.size)}"
    )


def _give_up(bad: Sequence[PilotageError | OSError], of: int) -> NoReturn:
    if of == 1:
        raise click.ClickException(_sentence(bad[0]))
    raise click.ClickException(f"{len(bad)} of {of} files are bad")


def _sentence(error: PilotageError | OSError) -> str:
    if isinstance(error, PilotageError):
        return str(error)
    return one_line(f"{error.filename}: {error.strerror}")


def _error_name(error: PilotageError | OSError) -> str:
    return error.name if isinstance(error, PilotageError) else "BAD_PATH"


def _size(file: Path) -> int:
    """Bytes of a file for the progress bar; none of one that cannot be looked at, which is told later."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


# -- how it looks -----------------------------------------------------------------------------------------------------------


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(to_wire(content), indent=2))


def _console(stderr: bool = False) -> Console:
    """Rich comes with the extra `client`; --json works without it."""
    try:
        from rich.console import Console
    except ImportError:
        raise PilotageError("MISSING_EXTRA", "pip install 'pilotage[client]', or use --json") from None
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else _PIPE_WIDTH)


@contextmanager
def _progress(hidden: bool) -> Iterator[Progress | None]:
    """A progress bar on the terminal; None where there is no terminal or nobody wants one."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    console = _console(stderr=True)
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        yield bar
