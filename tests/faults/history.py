"""What clients said and were answered, and the proof from it: each job one outcome, no acknowledged word lost, nothing twice.

In the manner of Jepsen: a word is written down before it is sent, with the outcome *unknown*; an answer makes it *ok* or *refused*.
When all is over, `check` holds the words against the rows of the database.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict

from protocol.states import FINAL, JobState

Row = Dict[str, Any]
UNKNOWN, OK, REFUSED = "unknown", "ok", "refused"


@dataclass
class Word:
    """One request, however often it was sent until its answer came."""

    pilot: str
    request_id: str = ""
    """Of a getJob; then `attempts` are what it brought."""
    attempts: list[int] = field(default_factory=list)
    attempt: int = 0
    """Of an update."""
    seq: int = 0
    state: str = ""
    outcome: str = UNKNOWN
    tries: int = 0


class History:
    """The words of all clients, in the order in which they were begun; appended to by many threads."""

    def __init__(self) -> None:
        self.words: list[Word] = []
        self._lock = threading.Lock()
        self._completed = 0

    def begin(self, word: Word) -> Word:
        with self._lock:
            self.words.append(word)
        return word

    def end(self, word: Word, outcome: str) -> None:
        with self._lock:
            word.outcome = outcome
            self._completed += outcome == OK and word.state == JobState.COMPLETED.value

    @property
    def completed(self) -> int:
        """Completions that were acknowledged so far."""
        return self._completed

    def save(self, path: Path) -> None:
        path.write_text("".join(json.dumps(asdict(word)) + "\n" for word in self.words))


@dataclass
class Verdict:
    """What the check found; both are 0 where all is well."""

    jobs: int
    attempts: int
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.twice)


def check(words: Iterable[Word], jobs: list[Row], attempts: list[Row]) -> Verdict:
    """Hold what was said against what the database knows when all jobs have ended."""
    words = list(words)
    verdict = Verdict(len(jobs), len(attempts))
    by_id = {row["id"]: row for row in attempts}
    _check_grants(verdict, words, by_id)
    _check_updates(verdict, words, by_id)
    _check_outcomes(verdict, words, jobs, attempts)
    return verdict


def _check_grants(verdict: Verdict, words: list[Word], attempts: dict[int, Row]) -> None:
    """What a getJob brought belongs to that pilot, and to no second request."""
    requests: defaultdict[int, set[str]] = defaultdict(set)
    for word in words:
        for attempt in word.attempts:
            requests[attempt].add(word.request_id)
            row = attempts.get(attempt)
            if row is None:
                verdict.lost.append(
                    f"attempt {attempt} was handed to {word.pilot} and is not in the database"
                )
            elif row["pilot_id"] != word.pilot:
                verdict.twice.append(f"attempt {attempt} of {row['pilot_id']} was handed to {word.pilot} too")
    verdict.twice += [f"attempt {each} answered {ids}" for each, ids in requests.items() if len(ids) > 1]


def _check_updates(verdict: Verdict, words: list[Word], attempts: dict[int, Row]) -> None:
    """What was acknowledged is there, and what is there was said. Real pilots keep no history: then there are no words."""
    said = set()
    heard = any(word.attempt for word in words)
    for word in words:
        if not word.attempt:
            continue
        said.add((word.attempt, word.state))
        row = attempts.get(word.attempt)
        if word.outcome != OK:
            continue
        what = f"attempt {word.attempt}: seq {word.seq}, {word.state} was acknowledged"
        if row is None or row["seq"] < word.seq:
            verdict.lost.append(f"{what}, the database has {row and row['seq']}")
        elif word.state in (JobState.COMPLETED, JobState.FAILED) and row["state"] != word.state:
            verdict.lost.append(f"{what}, the database has {row['state']}")
    for row in attempts.values():
        if heard and row["state"] == JobState.COMPLETED.value and (row["id"], row["state"]) not in said:
            verdict.twice.append(f"attempt {row['id']} is COMPLETED, which its pilot never said")


def _check_outcomes(verdict: Verdict, words: list[Word], jobs: list[Row], attempts: list[Row]) -> None:
    """Each job has one outcome, and ran no more often than attempts were lost or failed."""
    of_job: defaultdict[int, list[Row]] = defaultdict(list)
    for row in attempts:
        of_job[row["job_id"]].append(row)
    ran = Counter({word.attempt: 1 for word in words if word.state == JobState.RUNNING.value})
    for job in jobs:
        mine = of_job[job["id"]]
        completed = [row["id"] for row in mine if row["state"] == JobState.COMPLETED.value]
        if job["state"] not in {state.value for state in FINAL}:
            verdict.lost.append(f"job {job['id']} is {job['state']}")
        if len(completed) != (job["state"] == JobState.COMPLETED.value):
            verdict.twice.append(f"job {job['id']} is {job['state']} and completed as attempts {completed}")
        runs = sum(ran[row["id"]] for row in mine)
        allowed = 1 + sum(row["error"] not in (None, "NOT_ACKNOWLEDGED", "CANCELLED_BY_USER") for row in mine)
        if runs > allowed:
            verdict.twice.append(f"job {job['id']} ran {runs} times and may {allowed} times")
