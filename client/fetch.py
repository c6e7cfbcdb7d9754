"""Fetching a dataset: every file copied here by its copytool and verified; what is here and right is not copied again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from client import progress, tables, transfer
from client.session import Session
from protocol.errors import PilotageError
from protocol.files import check_lfn
from protocol.messages.views import FileView
from protocol.redaction import one_line
from protocol.states import DatasetState

THREADS = 4
TOLD = 20
"""Most problems that are told one by one."""


class Fetched(NamedTuple):
    copied: int
    there: int
    """Files that were here before, and right."""
    size: int


def fetch(
    session: Session, name: str, directory: Path, threads: int = THREADS, quiet: bool = False
) -> Fetched:
    """Bring every file of the dataset into the directory.

    Raises ALREADY_EXISTS before anything is copied if a file is there with another content; else one error at the end
    about all files that could not be had.
    """
    if session.dataset(name).state == DatasetState.DELETED.value:
        raise PilotageError("WRONG_STATE", f"dataset {name} was deleted")
    files = list(session.dataset_files(name))
    _make(directory)
    for file in files:
        check_lfn(file.lfn)  # a name that the server sent becomes a path here
    with progress.in_bytes(
        f"Fetching {tables.some(len(files), 'file')}", sum(file.size for file in files), quiet
    ) as advance:
        there = _right(files, directory, threads, advance)
        missing = [file for file in files if file.lfn not in there]
        problems = _copy(session, missing, directory, threads, advance)
    if problems:
        raise PilotageError(
            problems[0].name,
            f"{len(problems)} of {tables.some(len(files), 'file')} could not be fetched",
            problems=[str(problem) for problem in problems[:TOLD]],
            advice="; then ".join(
                filter(None, (problems[0].next_step, "run the same command again: it goes on where it ended"))
            ),
        )
    return Fetched(len(missing), len(there), sum(file.size for file in files))


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PilotageError("BAD_PATH", f"{one_line(str(directory))}: {error.strerror}") from None


def _right(files: Sequence[FileView], directory: Path, threads: int, advance: progress.Advance) -> set[str]:
    """The names of files that are here and right."""

    def look(file: FileView) -> str:
        path = directory / file.lfn
        if not path.is_symlink() and not path.exists():
            return ""
        problem = (
            "it is no regular file" if not path.is_file() else transfer.wrong(path, file.size, file.checksums)
        )
        if problem:
            raise PilotageError(
                "ALREADY_EXISTS",
                f"{one_line(str(path))} has another content: {problem}",
                advice="move it away, or fetch into another directory with --to",
            )
        advance(file.size)
        return file.lfn

    with ThreadPoolExecutor(threads) as pool:
        return {lfn for lfn in pool.map(look, files) if lfn}


def _addresses(file: FileView) -> list[str]:
    """Where it lies, the best place first."""
    return list(dict.fromkeys([file.url, *(replica.url for replica in file.replicas or ())]))


def _copy(
    session: Session, files: Sequence[FileView], directory: Path, threads: int, advance: progress.Advance
) -> list[PilotageError]:
    """What went wrong, per file."""

    stop = threading.Event()

    def copy(file: FileView) -> PilotageError | None:
        failed: PilotageError | None = None
        for url in _addresses(file):
            try:
                transfer.copy_in(
                    url, directory / file.lfn, file.size, file.checksums, session.data_root, stop.is_set
                )
            except PilotageError as error:
                failed = failed or PilotageError(error.name, f"{one_line(file.lfn)}: {error.detail}")
            else:
                advance(file.size)
                return None
        return failed

    pool = ThreadPoolExecutor(threads)
    try:
        return [problem for problem in pool.map(copy, files) if problem]
    finally:
        # After Ctrl-C the copies that run now stop soon, and no other begins.
        stop.set()
        pool.shutdown(cancel_futures=True)
