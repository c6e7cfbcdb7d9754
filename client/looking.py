"""Looking at a job that runs: what its pilot sends of it with its heartbeats, as soon as it comes, and no line twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from client.session import Session
from client.watch import AWAY
from protocol.errors import PilotageError
from protocol.messages.requests import DebugWish
from protocol.messages.views import DebugView, InspectionView
from protocol.redaction import lines, one_line

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""How long beyond two heartbeats an answer may take: a debugger takes its time."""
LATEST = ""
"""Instead of a file's name: the one that was changed last."""


def new_part(before: str, now: str, n_bytes: int) -> str | None:
    """What came between two looks at the end of a text, which has grown by `n_bytes`; None if something in between is missing.

    Each look is a window on the same text. Where they overlap is not told, so it is found: of several ways in which they
    may, the one that fits the bytes best (characters that were spelt out, or hidden, are no measure).
    """
    old, new = before.encode(), now.encode()
    likely = len(new) - n_bytes
    if likely <= 0 or not old:
        return now if likely == 0 or not old else None
    overlaps = (n for n in range(min(len(old), len(new)), 0, -1) if old.endswith(new[:n]))
    best = min(overlaps, key=lambda n: abs(n - likely), default=0)
    return new[best:].decode() if best else None


class Follower:
    """What is to be printed of one file, look after look."""

    def __init__(self, file: str | None) -> None:
        """None: standard output."""
        self._file = file
        self._before: tuple[str, int, str] | None = None

    def of(self, view: DebugView) -> str:
        """What is new; "" if nothing is, or if the pilot does not speak of this file yet."""
        if view.at is None or (self._file and view.file != one_line(self._file)):
            return ""
        if self._file is None:
            name, size, text = "", view.stdout_size, view.stdout
        else:
            name, size, text = view.file, view.size, view.text
        text = lines(text)
        before, self._before = self._before, (name, size, text)
        if before is None or before[0] != name or size < before[1]:
            title = f"==> {name} <==\n" if self._file == LATEST and name else ""
            return title + text
        part = new_part(before[2], text, size - before[1])
        return part if part is not None else f"\n[... what came in between was too much ...]\n{text}"


def views(session: Session, job_id: int, file: str | None, say: Callable[[str], None]) -> Iterator[DebugView]:
    """What the pilot sends from now on, look after look, until the attempt has ended. `say` gets remarks."""
    view = session.debug_job(job_id, DebugWish(watch=True, file=file))
    old, deadline, is_fresh = view.at, _deadline(view), False
    say(f"the pilot on node {view.node} hears of it within {view.heartbeat_seconds} s")
    while True:
        is_fresh = is_fresh or (view.at != old and (not file or view.file == one_line(file)))
        if is_fresh or view.ended:
            yield view
        if view.ended:
            say(f"attempt {view.attempt_nr} of job {job_id} has ended: {view.state}")
            return
        if not is_fresh and time.monotonic() > deadline:
            raise _no_answer(view)
        time.sleep(POLL_SECONDS)
        view = _again(session, job_id, DebugWish(watch=True), view)


def inspect(session: Session, job_id: int, kind: str) -> InspectionView:
    """Ask the pilot once: ps, ls, du or stack; SERVER_UNAVAILABLE if it does not answer in time."""
    view = session.debug_job(job_id, DebugWish(inspect=kind))
    number = view.inspections[-1].number if view.inspections else 0
    deadline = _deadline(view)
    while True:
        found = next((each for each in view.inspections if each.number == number), None)
        if found is not None and found.text is not None:
            return found
        if view.ended or time.monotonic() > deadline:
            raise _no_answer(view)
        time.sleep(POLL_SECONDS)
        view = _again(session, job_id, DebugWish(watch=True), view)


def _deadline(view: DebugView) -> float:
    return time.monotonic() + 2 * view.heartbeat_seconds + PATIENCE_SECONDS


def _again(session: Session, job_id: int, wish: DebugWish, last: DebugView) -> DebugView:
    """The next look; the last one where the server does not answer now."""
    try:
        return session.debug_job(job_id, wish)
    except PilotageError as error:
        if error.name not in AWAY:
            raise
        return last


def _no_answer(view: DebugView) -> PilotageError:
    if view.ended:
        detail = f"attempt {view.attempt_nr} of job {view.job_id} has ended as {view.state}"
        return PilotageError("WRONG_STATE", detail, advice=f"see its log: pilotage job log {view.job_id}")
    return PilotageError(
        "SERVER_UNAVAILABLE",
        f"pilot {view.pilot_id} on node {view.node} has sent nothing",
        advice=f"see whether it lives: pilotage pilot show {view.pilot_id}; an old pilot cannot do this",
    )
