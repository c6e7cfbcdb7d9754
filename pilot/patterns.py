"""Asks what the text of a failed payload says: starts pilot/pattern_search.py, one for a failed job, and kills it when it is late."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from pilot.pattern_search import Found
from protocol.errors import BY_NAME, shorten
from protocol.redaction import one_line
from protocol.settings import Settings

if TYPE_CHECKING:
    from pilot.context import Context
    from pilot.jobrun import JobRun

logger = logging.getLogger(__name__)

GENERAL = frozenset(("PAYLOAD_FAILED", "PAYLOAD_KILLED", "PAYLOAD_ABORTED"))
"""Errors that say little: the text of the payload may know a nearer one."""
MOST_LOGS = 20
"""Log files that are looked at, the newest first."""
MOST_NAMES = 1000
"""Entries of a job's directory among which they are looked for."""
LINE_CHARACTERS = 250
ADVICE_CHARACTERS = 150
LOOK_SECONDS = 0.2
"""How often to see whether the answer is still wanted."""
GIVE_UP_SECONDS = 1.0
"""A killed search that hangs in a dead file system is left behind after this."""

ROOT = os.path.abspath(Path(__file__).parent.parent)
"""The tree, the installation or the zip file that this pilot runs from."""
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from pilot.pattern_search import main; main()"


class Sources(NamedTuple):
    """Where patterns come from, beside those that the pilot brings."""

    files: Sequence[str] = ()
    own: Sequence[tuple[str, str]] = ()
    """Texts in the format of such a file, each with what it is called."""


class Answer(NamedTuple):
    found: list[Found]
    problems: list[str]
    """What is wrong with the patterns."""
    complete: bool
    """False: the search was cut off, died or could not begin."""


def explain(context: Context, job: JobRun) -> Optional[Found]:
    """The first known error in what the payload wrote, or None; a search that fails is no failure of the job."""
    settings, plugin = context.settings, context.plugin
    seconds = settings.number("patterns", "search_seconds")
    if not seconds:
        return None
    logs = _logs(job.directory, settings.items("patterns", "log_names"))
    answer = look(
        [job.stderr, job.stdout, *plugin.log_files(job.directory), *logs],
        sources(settings, plugin.error_patterns()),
        seconds=seconds,
        limit_bytes=settings.integer("patterns", "text_kib") * 1024,
        stop=job.over.is_set,
    )
    for problem in answer.problems:
        logger.warning("an error pattern cannot be used", extra={"reason": problem})
    if not answer.complete and not answer.found:
        logger.warning(
            "the search for known errors did not come to its end", extra={"limit_seconds": seconds}
        )
    return answer.found[0] if answer.found else None


def sources(settings: Settings, own: str) -> Sources:
    """As the settings say, and then `own`, the text that an experiment plugin brings."""
    files = [os.path.abspath(os.path.expanduser(path)) for path in settings.items("patterns", "files")]
    name = settings.text("experiment", "plugin")
    return Sources(files, [(f"patterns of the plugin {name}", own)] if own else [])


def said(found: Found, hide: Callable[[str], str]) -> str:
    """What was found as the detail of an error has it: one line, without secrets."""
    line = shorten(one_line(hide(found.line)), LINE_CHARACTERS)
    advice = f" (advice: {shorten(one_line(found.advice), ADVICE_CHARACTERS)})" if found.advice else ""
    return f"{shorten(one_line(os.path.basename(found.text)), 60)} says: {line}{advice}"


def look(
    texts: Iterable[Path],
    where: Sources,
    *,
    seconds: float,
    limit_bytes: int,
    every: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Answer:
    """Search texts for the patterns, in the order of those; only the first that is found unless `every` is wanted.

    `limit_bytes` are looked at of each text. It takes no longer than `seconds`, and ends soon after `stop` says yes.
    """
    work = {
        "files": list(where.files), "own": list(where.own), "seconds": seconds, "bytes": limit_bytes, "every": every,
        "texts": list(dict.fromkeys(os.path.abspath(path) for path in texts)),
    }  # fmt: skip
    # Without site-packages (-S, -s) it starts sooner, and only what the standard library and we hold is needed.
    command = [sys.executable, "-S", "-s", "-B", "-c", PROGRAM, ROOT]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
        )
    except OSError as error:
        logger.warning("the search for known errors cannot start", extra={"reason": str(error)})
        return Answer([], [], False)
    return _parsed(_output(child, json.dumps(work).encode(), time.monotonic() + seconds, stop))


def _output(child: subprocess.Popen[bytes], work: bytes, deadline: float, stop: Callable[[], bool]) -> bytes:
    """What it has written when it ends, or is ended."""
    given: Optional[bytes] = work
    while time.monotonic() < deadline and not stop():
        try:
            return child.communicate(given, timeout=LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            given = None  # it is on its way
    child.kill()
    try:
        return child.communicate(given, timeout=GIVE_UP_SECONDS)[0]
    except subprocess.TimeoutExpired as stuck:
        return stuck.output or b""


def _parsed(output: bytes) -> Answer:
    found, problems, complete = [], [], False
    for line in output.splitlines():
        try:
            what = json.loads(line)
        except ValueError:  # it was killed within a line
            continue
        if "found" in what:
            found.append(Found(*what["found"]))
        if "problem" in what:
            problems.append(str(what["problem"]))
        complete = complete or "done" in what
    return Answer([each for each in found if each.error in BY_NAME], problems, complete)


def _logs(directory: Path, names: Sequence[str]) -> list[Path]:
    """The newest files of a job's directory whose names look like those of logs."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry, _ in zip(entries, range(MOST_NAMES)):
                if any(fnmatch.fnmatch(entry.name, name) for name in names):
                    found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
    except OSError:
        return []  # gone, or closed to us
    return [Path(path) for _, path in sorted(found, reverse=True)[:MOST_LOGS]]
