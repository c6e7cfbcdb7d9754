"""The software that a task names: there, verified and unpacked before PRE-PROCESSING ends; or looked for where the node has it."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import BinaryIO, Callable, Optional

from copytools import checksum
from copytools.base import FileTool
from pilot import archives, download
from pilot.archives import BadArchive
from pilot.bundles import Mismatch
from pilot.context import Context
from pilot.download import shown
from pilot.jobrun import SOFTWARE, JobOver, JobRun
from pilot.patience import Patience, Stopped, patiently
from pilot.sourcing import PROGRAMS, SETUP, Software
from protocol.errors import PilotageError
from protocol.redaction import one_line

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
MOST_MEMBERS = 200_000
ALGORITHMS = ("sha256", "blake3")
LOOK_SECONDS = 20.0
"""CVMFS may have to fetch its catalogue first; a network file system whose server is gone never answers."""
BLOCK = 1 << 20

_LOOK = f"""\
import os, stat, sys
place = sys.argv[1]
try:
    kind = os.stat(place).st_mode
    if not os.access(place, os.R_OK):
        sys.exit("it may not be read")
except OSError as error:
    sys.exit(error.strerror)
if stat.S_ISREG(kind):
    print(place)
elif os.path.isfile(place + "/{SETUP}"):
    print(place + "/{SETUP}")
"""


def provide(context: Context, job: JobRun) -> None:
    """Have the software of the job, or raise why not."""
    address = job.spec.software
    if address.startswith("/"):
        job.software = _on_node(address, context.settings.items("payload", "software_paths"))
    else:
        job.software = _fetched(context, job)
    logger.info(
        "software is there", extra={"software": shown(address), "setup": str(job.software.setup or "")}
    )


# -- on the node --------------------------------------------------------------------------------------------------------------


def _on_node(address: str, allowed: tuple[str, ...]) -> Software:
    """A directory, or a script to source, where the node has it."""
    path = Path(os.path.normpath(address))
    roots = [Path(root) for root in allowed]
    if not any(root in path.parents for root in roots):
        where = ", ".join(allowed) or "nowhere"
        raise PilotageError(
            "NO_SOFTWARE_DIRECTORY",
            f"{shown(address)}: the queue has software below {where} (software_paths)",
        )
    script = _look(path)
    setup = Path(script) if script else None
    return Software(path.parent if setup == path else path, setup)


def _look(path: Path) -> str:
    """The script to source there, or "". Another process looks: who asks a dead network file system may never return."""
    command = [sys.executable, "-I", "-S", "-c", _LOOK, str(path)]
    looking = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        found, wrong = looking.communicate(timeout=LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        looking.kill()
        raise PilotageError("SETUP_TIMEOUT", f"{path} does not answer within {LOOK_SECONDS:g} s") from None
    if looking.returncode:
        raise PilotageError("NO_SOFTWARE_DIRECTORY", f"{shown(str(path))}: {one_line(wrong.strip()[-300:])}")
    return found.rstrip("\n")


# -- behind a URL -------------------------------------------------------------------------------------------------------------


def _fetched(context: Context, job: JobRun) -> Software:
    """Unpacked anew into the job's own directory; the archive comes from the node's cache if it is there."""
    algorithm, _, digest = job.spec.software_checksum.partition(":")
    if not re.fullmatch("[0-9a-f]{64}", digest) or algorithm not in ALGORITHMS:
        wrong = shown(job.spec.software_checksum[:80])
        raise PilotageError("SOFTWARE_UNUSABLE", f"{wrong} is no checksum by which it could be known")
    if algorithm != "sha256":
        checksum.supported((algorithm,))
    to = job.directory / SOFTWARE
    largest = context.settings.integer("limits", "software_mb") * MIB
    try:
        fetched = partial(_archive, context, job)
        with patiently(
            Patience.of(context.settings), fetched, job.over, "the software was not fetched"
        ) as archive:
            archives.extract(archive, to, archives.Bounds(largest, MOST_MEMBERS), job.check)
    except Stopped:
        raise JobOver from None
    except BadArchive as error:
        raise PilotageError("SOFTWARE_UNUSABLE", f"{shown(job.spec.software)}: it {error}") from None
    except OSError as error:
        raise _of_disk(error, "the software cannot be unpacked") from None
    return _unpacked(to)


def _unpacked(to: Path) -> Software:
    """What an archive holds may lie in one directory, as most archives of sources have it; but programs alone are in bin."""
    entries = list(to.iterdir())
    is_one = len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink()
    root = entries[0] if is_one and entries[0].name != PROGRAMS else to
    setup = root / SETUP
    return Software(root, setup if setup.is_file() else None)


def _archive(context: Context, job: JobRun) -> BinaryIO:
    """One try."""
    address = shown(job.spec.software)
    seconds = float(context.settings.integer("copytools", "timeout_seconds"))
    fetch = _fetcher(context, job, seconds)
    try:
        return context.bundles.open(job.spec.software_checksum, fetch, seconds, job.check, "software")
    except Mismatch as error:
        wanted = job.spec.software_checksum
        raise PilotageError("SOFTWARE_MISMATCH", f"{address}: {error}; the task names {wanted}") from None
    except download.TooLarge as error:
        raise PilotageError("SOFTWARE_UNUSABLE", f"{address}: it {error} (software_mb)") from None
    except TimeoutError:  # that of the lock too
        raise PilotageError(
            "SOFTWARE_NOT_FETCHED",
            f"{address}: another pilot of this node has been fetching it for {seconds:g} s",
        ) from None
    except OSError as error:
        raise _of_disk(error, address) from None


def _fetcher(context: Context, job: JobRun, seconds: float) -> Callable[[Path], None]:
    """What writes the archive into a new file."""
    settings, url = context.settings, job.spec.software
    largest = settings.integer("limits", "software_mb") * MIB
    if url.partition(":")[0].lower() == "file":
        return partial(_copy, _path_of(context, url), largest, job.check)
    bounds = download.Bounds(
        largest,
        seconds,
        settings.number("connection", "connect_timeout_seconds"),
        settings.number("connection", "read_timeout_seconds"),
    )
    return lambda to: download.fetch(url, to, bounds, job.over.is_set)


def _path_of(context: Context, url: str) -> Path:
    """As the queue's copytool for files understands it, and as far as that may read."""
    tool: Optional[FileTool] = next((each for each in context.tools if isinstance(each, FileTool)), None)
    if tool is None:
        raise PilotageError("UNKNOWN_COPYTOOL", f"none of the usable copytools takes {shown(url)}")
    return tool.path_of(url)


def _copy(source: Path, largest: int, check: Callable[[], None], to: Path) -> None:
    try:
        number = checksum.open_plain(source)
    except OSError as error:
        raise PilotageError("SOFTWARE_NOT_FETCHED", f"{shown(str(source))}: {error.strerror}") from None
    with open(number, "rb") as file, open(to, "xb") as copy:
        for piece in iter(lambda: file.read(BLOCK), b""):
            check()
            copy.write(piece)
            if copy.tell() > largest:
                raise download.TooLarge(f"has more than {largest} bytes")


def _of_disk(error: OSError, what: str) -> PilotageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    name = "NO_LOCAL_SPACE" if full else "SOFTWARE_NOT_FETCHED"
    return PilotageError(name, f"{what}: {one_line(str(error))}")
