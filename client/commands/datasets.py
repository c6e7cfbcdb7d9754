"""`pilotage dataset`: register files as a dataset, look into datasets, and fetch them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click

from client import fetch, interruption, journal, registrator, tables, watcher
from client.commands import Group
from client.commands.common import (
    Seconds,
    examples,
    json_option,
    limit_option,
    print_list,
    say_next,
    with_session,
)
from client.commands.containers import container
from client.commands.files import COLUMNS as FILE_COLUMNS
from client.session import Session
from client.tables import Column
from protocol.files import ALGORITHMS, check_name
from protocol.messages.requests import TaskSpec
from protocol.messages.views import DatasetView
from protocol.redaction import one_line
from protocol.states import DatasetState

_COLUMNS = (
    Column("dataset", lambda dataset: dataset.name),
    Column("state", lambda dataset: dataset.state),
    Column("files", lambda dataset: dataset.n_files, right=True),
    Column("size", lambda dataset: tables.size(dataset.size), right=True),
    Column("task", lambda dataset: dataset.task_id, right=True),
    Column("created (UTC)", lambda dataset: tables.when(dataset.created)),
)


_LINEAGE = (
    Column("level", lambda step: f"{step.level:+d}" if step.level else "0", right=True),
    Column("dataset", lambda step: step.dataset),
    Column("state", lambda step: step.state),
    Column("made by", lambda step: f"task {step.task_id} ({step.task})" if step.task_id else "registration"),
    Column("from", lambda step: ", ".join(step.inputs) or None),
    Column("with", lambda step: " ".join(filter(None, (step.command, step.software))) or None),
)
STANDARD_INPUT = "-"


@click.group(cls=Group)
def dataset() -> None:
    """Datasets: named collections of files; tasks read them and make them."""


dataset.add_command(container)


@dataset.command(
    epilog=examples(
        "pilotage dataset register run-1 data/",
        "pilotage dataset register run-1 'data/builder-*/run-000001-*.spd' --checksum adler32",
        "pilotage dataset register run-1 /mnt/daq/run-1 --url-prefix root://eos.jinr.ru//daq/run-1",
        "pilotage dataset register run-1 late/*.spd --add",
        "find /mnt/daq -name 'run-000001-*' -print0 | pilotage dataset register run-1 --files-from -",
        "pilotage dataset register run-1 /mnt/daq/run-1 --min-age 30s --skip-unfinished",
    )
)
@click.argument("name", metavar="NAME")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("--files-from", "list_file", type=click.File("rb"), metavar="FILE|-",
              help="Read PATHs from a list, or from standard input: one per line, or as find -print0 writes them. They are taken as they are.")  # fmt: skip
@click.option("--checksum", "algorithms", multiple=True, type=click.Choice((*ALGORITHMS, registrator.NO_CHECKSUM)),
              help="Checksum to learn; may be repeated; none: the files are not read.  [default: all that this machine can]")  # fmt: skip
@click.option(
    "--close/--no-close", default=True, show_default=True, help="Close the dataset when its files are in."
)
@click.option("--add", is_flag=True, help="Add to an open dataset; what is in it already is passed over.")
@click.option("--scope", default="", help="Namespace of the files' names.  [default: NAME]")
@click.option("--url-prefix", "--storage-url", default="", metavar="URL",
              help="Address at which nodes see the common parent of the PATHs.  [default: file:// and the path]")  # fmt: skip
@click.option("--min-age", type=Seconds(), default="0", metavar="S|2m",
              help="A file that was changed later than so long ago is unfinished.  [default: 0]")  # fmt: skip
@click.option(
    "--skip-unfinished", is_flag=True, help="Leave unfinished files out, and the dataset open for them."
)
@click.option("--threads", type=click.IntRange(1, 256), default=registrator.THREADS, show_default=True,
              help="Files read at the same time.")  # fmt: skip
@json_option
@with_session
def register(
    session: Session,
    *,
    name: str,
    paths: tuple[str, ...],
    list_file: BinaryIO | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Register files as a dataset, with size and checksums.

    A PATH is a file, a glob, or a directory, of which every file below it is taken (builder directories, say) but
    hidden ones; - is a list on standard input. A file's logical name is its name without the path. The files are in the
    order of the numbers in their names. If anything is wrong with one of them, or one is still being written, nothing is
    registered. After an interruption the same command goes on, and reads no file again that it has read.
    """
    if STANDARD_INPUT in paths:
        if list_file is not None:
            raise click.UsageError("- and --files-from: there is one list at a time")
        list_file = sys.stdin.buffer
        paths = tuple(path for path in paths if path != STANDARD_INPUT)
    if not paths and list_file is None:
        raise click.UsageError("no PATH, and no list of them (--files-from)")
    options["journal"] = journal.place(session.url, name)
    view = registrator.register(
        session,
        name,
        paths,
        registrator.Options(quiet=as_json, **options),
        listed=registrator.lines_of(list_file) if list_file is not None else (),
        say=tables.say,
    )
    if as_json:
        return tables.show(view)
    known = f" {view.n_known} of the files given were in it already." if view.n_known else ""
    tables.write(
        f"Dataset {view.name}: {tables.some(view.n_files, 'file')}, {tables.size(view.size)}, {view.state}.{known}"
    )
    say_next(f"pilotage task submit --input {view.name} -- COMMAND '{{input}}'")
    return None


@dataset.command(
    epilog=examples(
        "pilotage dataset watch run-7 /mnt/daq/builder-* --run 7",
        "pilotage dataset watch today /mnt/daq --match '*.spd' --close-after 10m",
    )
)
@click.argument("name", metavar="NAME")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--match", default="*", metavar="GLOB", help="Names that are registered.  [default: all]")
@click.option("--run", type=click.IntRange(min=0), metavar="N",
              help="Files of this run alone; closes the dataset when those of a later run have begun.")  # fmt: skip
@click.option("--close-after", type=Seconds(), default="0", metavar="S|10m",
              help="Close the dataset and end when no file has come for so long.  [default: never]")  # fmt: skip
@click.option("--max-waiting", type=click.IntRange(min=0), default=10_000, show_default=True,
              help="Register no more while so many files wait to be processed; 0: any number.")  # fmt: skip
@click.option("--settle", type=Seconds(), default="10", metavar="S",
              help="A file is whole when it has not changed for so long.  [default: 10]")  # fmt: skip
@click.option("--hold", type=Seconds(), default="120", metavar="S",
              help="How long files wait for an unfinished one that comes before them.  [default: 120]")  # fmt: skip
@click.option("--interval", type=click.FloatRange(min=0.1), default=5.0, show_default=True, metavar="S",
              help="Seconds between two looks.")  # fmt: skip
@click.option("--checksum", "algorithms", multiple=True, type=click.Choice((*ALGORITHMS, registrator.NO_CHECKSUM)),
              help="Checksum to learn; may be repeated; none: the files are not read.  [default: all that this machine can]")  # fmt: skip
@click.option("--scope", default="", help="Namespace of the files' names.  [default: NAME]")
@click.option("--url-prefix", default="", metavar="URL",
              help="Address at which nodes see the common parent of the DIRs.  [default: file:// and the path]")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 256), default=registrator.THREADS, show_default=True,
              help="Files read at the same time.")  # fmt: skip
@json_option
@with_session
def watch(
    session: Session, *, name: str, directories: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Register files as the DAQ closes them, into an open dataset.

    It goes on until SIGTERM or Ctrl-C, or until the end that --run or --close-after tells of; started again it goes on
    where it was. Files are registered in the order of run, chunk and builder, and never changed.
    """
    wish, stop = watcher.Wish(**options), threading.Event()
    buffer = watcher.Buffer(directories, wish, tables.say)
    watching = watcher.Watcher(session, name, buffer, wish, tables.say, stop)
    with interruption.noted(stop):
        closed = watching.run()
    if as_json:
        return tables.show({"name": name, "registered": watching.n_registered, "closed": closed})
    state = "closed" if closed else "open; the same command goes on"
    tables.write(f"Dataset {name}: {tables.some(watching.n_registered, 'file')} registered; it is {state}.")
    return None


@dataset.command(
    "list",
    epilog=examples(
        "pilotage dataset list",
        "pilotage dataset list --state open --name run",
        "pilotage dataset list --where beam=pp --where 'run>=7'",
    ),
)
@click.option("--state", type=click.Choice([each.value for each in DatasetState]))
@click.option("--name", metavar="TEXT", help="A part of the name.")
@click.option("--where", multiple=True, metavar="KEY=VALUE",
              help="Metadata that they have; numbers may be compared by < <= > >=. May be repeated.")  # fmt: skip
@limit_option
@json_option
@with_session
def list_datasets(
    session: Session, *, state: str | None, name: str | None, where: Sequence[str], limit: int, as_json: bool
) -> None:
    """List datasets, the newest first."""
    nothing = (
        "No such dataset."
        if state or name or where
        else "No dataset yet; make one: pilotage dataset register --help"
    )
    print_list(session.datasets(state=state, name=name, where=where), _COLUMNS, limit, as_json, nothing)


@dataset.command(epilog=examples("pilotage dataset show run-1"))
@click.argument("name", metavar="NAME")
@json_option
@with_session
def show(session: Session, *, name: str, as_json: bool) -> None:
    """Show one dataset."""
    _print(session.dataset(name), as_json)


@dataset.command(
    epilog=examples("pilotage dataset files run-1", "pilotage dataset files run-1 --limit 0 --json")
)
@click.argument("name", metavar="NAME")
@limit_option
@json_option
@with_session
def files(session: Session, *, name: str, limit: int, as_json: bool) -> None:
    """List the files of a dataset, with checksums and addresses."""
    print_list(session.dataset_files(name), FILE_COLUMNS, limit, as_json, f"Dataset {name} has no file.")


@dataset.command(epilog=examples("pilotage dataset get md5.out --to results/"))
@click.argument("name", metavar="NAME")
@click.option("--to", "directory", type=click.Path(path_type=Path), metavar="DIR",
              help="Where the files go; made if it is not there.  [default: ./NAME]")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), default=fetch.THREADS, show_default=True,
              help="Files copied at the same time.")  # fmt: skip
@json_option
@with_session
def get(session: Session, *, name: str, directory: Path | None, threads: int, as_json: bool) -> None:
    """Copy every file of a dataset here, and verify sizes and checksums.

    What is there and right is not copied again, so the same command goes on after an interruption. A file that is
    there with the same name and another content is never written over.
    """
    directory = directory or Path(check_name(name, "dataset"))
    result = fetch.fetch(session, name, directory, threads, quiet=as_json)
    if as_json:
        return tables.show(result._asdict())
    there = f", {result.there} were there and right" if result.there else ""
    what = f"{tables.some(result.copied, 'file')} copied and verified{there}"
    tables.write(f"Dataset {name}: {what}, {tables.size(result.size)} in {one_line(str(directory))}")
    return None


@dataset.command(
    epilog=examples(
        "pilotage dataset replicate run-1 --to NFS", "pilotage dataset replicate run-1 --to FAR --queue FARM"
    )
)
@click.argument("name", metavar="NAME")
@click.option("--to", "storage", required=True, metavar="STORAGE", help="Where the copies go.")
@click.option("--queue", default="", metavar="QUEUE", help="Only pilots of this queue.")
@click.option("--site", default="", metavar="SITE", help="Only pilots of this site.")
@click.option(
    "--files-per-job", type=int, default=1, show_default=True, metavar="N", help="Files of one job."
)
@click.option("--priority", type=int, default=0, show_default=True, metavar="N", help="Higher goes first.")
@click.option("--task", "task_name", metavar="NAME", help="Name of the task.  [default: made from all that and the time]")  # fmt: skip
@json_option
@with_session
def replicate(
    session: Session, *, name: str, storage: str, task_name: str | None, as_json: bool, **options: Any
) -> None:
    """Copy a dataset to another storage, by jobs that pilots run: each file has one more replica there then.

    Files that have a good replica there are left out, so the same command goes on after failures, and mends what a
    check found bad. Pilots have to see both storages.
    """
    made = f"{name[:100]}.to.{storage[:40]}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    spec = TaskSpec(task_name or made, COPY, input_dataset=name, replicate_to=storage, **options)
    view = session.submit_task(spec)
    if as_json:
        return tables.show(view)
    tables.write(f"Task {view.task_id} ({view.name}) copies {name} to {storage}.")
    say_next(f"pilotage task watch {view.name}")
    return None


COPY = ["sh", "-c", 'for file; do cp -L -- "$file" . || exit; done', "sh", "{inputs}"]
"""The payload: what was staged in becomes the job's outputs, of the same names in its directory."""


@dataset.command(epilog=examples("pilotage dataset close run-1"))
@click.argument("name", metavar="NAME")
@json_option
@with_session
def close(session: Session, *, name: str, as_json: bool) -> None:
    """Close a dataset for good: it takes no more files."""
    _print(session.close_dataset(name), as_json)


@dataset.command(epilog=examples("pilotage dataset lineage md5.out"))
@click.argument("name", metavar="NAME")
@json_option
@with_session
def lineage(session: Session, *, name: str, as_json: bool) -> None:
    """Show of what a dataset was made, by which tasks, and what was made of it."""
    found = session.lineage(name)
    if as_json:
        return tables.show(found)
    tables.print_table(found.steps, _LINEAGE)
    if found.more:
        tables.say("There are more datasets than these.")
    return None


@dataset.command(
    "set",
    epilog=examples(
        "pilotage dataset set run-7 run=7 beam=pp energy=13.5", "pilotage dataset set run-7 --unset beam"
    ),
)
@click.argument("name", metavar="NAME")
@click.argument("pairs", nargs=-1, metavar="KEY=VALUE...")
@click.option("--unset", multiple=True, metavar="KEY", help="Take a key away; may be repeated.")
@json_option
@with_session
def set_metadata(
    session: Session, *, name: str, pairs: Sequence[str], unset: Sequence[str], as_json: bool
) -> None:
    """Say something of a dataset: metadata, by which it is found (dataset list --where)."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise click.UsageError(f"{one_line(wrong[0])}: write KEY=VALUE")
    if not pairs and not unset:
        raise click.UsageError("no KEY=VALUE, and no --unset")
    values = dict(pair.split("=", 1) for pair in pairs)
    _print(session.set_metadata(name, values, unset), as_json)


@dataset.command(epilog=examples("pilotage dataset delete run-1"))
@click.argument("name", metavar="NAME")
@json_option
@with_session
def delete(session: Session, *, name: str, as_json: bool) -> None:
    """Delete a dataset for good; refused while a task that has not ended uses it.

    What was made of its files stays known, and its name is not given again.
    """
    view = session.delete_dataset(name)
    if as_json:
        return tables.show(view)
    what = f"{tables.some(view.n_files, 'file')}, {tables.size(view.size)}"
    tables.write(
        f"Dataset {view.name} is deleted. Its files ({what}) lie where they are until the storages are cleaned."
    )
    return None


def _print(view: DatasetView, as_json: bool) -> None:
    if as_json:
        return tables.show(view)
    tables.print_facts(
        {
            "dataset": view.name,
            "scope": view.scope,
            "state": view.state,
            "files": f"{view.n_files}, {tables.size(view.size)}",
            "to be processed": view.n_waiting,
            "metadata": ", ".join(f"{key}={value}" for key, value in (view.metadata or {}).items()),
            "made by": f"task {view.task_id}" if view.task_id is not None else "registration",
            "created": tables.when(view.created),
            "closed": tables.when(view.closed),
            "deleted": tables.when(view.deleted),
        }
    )
    return None
