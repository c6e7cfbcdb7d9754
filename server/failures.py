"""What failures of a task have in common: the signature of a detail, and the cause that their places suggest.

Pure functions over counts; `failure_report.py` reads the counts. The cause is a proposal for people: it compares where
failures lie with where the same task's jobs succeed, and falls back to the catalogue's blame where no place stands out.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.errors import BY_NAME, Blame
from protocol.redaction import one_line

LONGEST_SIGNATURE = 200
INPUT = "input"
"""The one cause beside the catalogue's blames: a file that the jobs read."""
MOST_NAMED = 5
_HARDLY = 0.1
"""A place at which at most this share of the outcomes is a success is one where nothing works."""
_ALMOST_ALL = 0.9

_STEPS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Digits first, in the way in which the database folds them before it counts.
    (re.compile(r"[0-9]+"), "0"),
    (re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>]+"), "<url>"),
    # A quoted word is somebody's name for something; a C++ type is not.
    (re.compile(r"(?<![\w'\"`])(['\"`])(?!\w+(?:::\w+)+\1)[^'\"`\n]{1,200}\1(?!\w)"), "<name>"),
    (re.compile(r"(?<![\w>./~-])[~.]{0,2}(?:/[^\s/:;,'\"`<>()]+)+/(?=[^\s/:;,'\"`<>()])"), "<path>/"),
    (re.compile(r"\b0[xX][0-9a-fA-F]*\b"), "<hex>"),
    (re.compile(r"\b(?=[0-9a-fA-F-]*0)[0-9a-fA-F]{6,}(?:-[0-9a-fA-F]+)*\b"), "<hex>"),
    (re.compile(r"(?:(?<!\w)[-+])?0(?:\.0)*(?:[eE][-+]?0)?"), "N"),
)


def signature(detail: str) -> str:
    """The detail with what differs from job to job replaced: numbers, addresses, directories, quoted names. Once more changes nothing."""
    text = " ".join(one_line(detail).split())
    for pattern, placeholder in _STEPS:
        text = pattern.sub(placeholder, text)
    return text[:LONGEST_SIGNATURE].rstrip()


def folded(column: str) -> str:
    """SQL: the beginning of a text with each run of digits as one 0, so that the database can count what is equal but for numbers."""
    column = f"substr({column}, 1, {LONGEST_SIGNATURE + 100})"
    for digit in "123456789":
        column = f"replace({column}, '{digit}', '0')"
    # Runs of up to 16 digits; longer ones become one in `signature`.
    for _ in range(4):
        column = f"replace({column}, '00', '0')"
    return column


class Place(NamedTuple):
    """Where an attempt ran."""

    node: str
    queue: str
    storage: str
    site: str


@dataclass
class Failures:
    """The failed attempts of a task with one error and one signature."""

    error: str
    signature: str
    first: str = ""
    last: str = ""
    """The texts that come first and last in the order of the alphabet: what these two begin with alike, all do."""
    n_attempts: int = 0
    n_jobs: int = 0
    n_spread: int = 0
    """Jobs that failed so on more than one node."""
    n_recovered: int = 0
    """Jobs that failed so and completed in another attempt."""
    places: Counter[Place] = field(default_factory=Counter)
    job_ids: set[int] = field(default_factory=set)
    """Some of the jobs."""

    def by(self, key: Callable[[Place], str]) -> Counter[str]:
        return _by(self.places, key)

    @property
    def text(self) -> str:
        """What all of them say, word by word as far as they agree; from where they differ on, the signature of the rest."""
        first, last = (" ".join(one_line(text).split()) for text in (self.first, self.last))
        same = first if first == last else os.path.commonprefix((first, last)).rpartition(" ")[0]
        return f"{same} {signature(first[len(same) :])}".strip()[:LONGEST_SIGNATURE].rstrip()


@dataclass(frozen=True)
class Cause:
    """What is probably at fault: a blame of the catalogue or an input, which one, and why that is proposed."""

    kind: str
    where: tuple[str, ...]
    why: str


def propose(found: Failures, completed: Counter[Place], has_inputs: bool) -> Cause:
    """The cause that the places suggest; `completed`: where attempts of the same task succeeded."""
    nodes = found.by(lambda place: place.node)
    nodes.pop("", None)
    if len(nodes) > 1:
        # Where all of a place's nodes fail, the place is at fault and not each of them.
        for kind, key in _wide(found.error):
            bad = _where_nothing_works(found.by(key), _by(completed, key))
            if bad:
                return Cause(
                    kind.value, bad, f"nothing succeeds at {_named(bad)}, and elsewhere jobs complete"
                )
    if (
        found.n_spread * 2 >= found.n_jobs > 0
        and found.n_spread
        and found.n_recovered <= _HARDLY * found.n_jobs
    ):
        fault = INPUT if has_inputs and completed else Blame.PAYLOAD.value
        which = "the same job fails" if found.n_jobs == 1 else f"the same {found.n_jobs} jobs fail"
        others = "; other jobs complete" if completed else "; none of the task completes"
        return Cause(fault, (), f"{which} on each node{others}")
    if found.n_jobs > 1 or found.n_recovered:
        bad = _where_nothing_works(nodes, _by(completed, lambda place: place.node))
        if bad and found.n_attempts > 1:
            return Cause(
                Blame.NODE.value, bad, f"nothing succeeds on {_named(bad)}, and elsewhere jobs complete"
            )
    if not completed and len(nodes) > 1:
        return Cause(Blame.PAYLOAD.value, (), f"no job has completed, on any of {len(nodes)} nodes")
    entry = BY_NAME.get(found.error, BY_NAME["GENERAL_ERROR"])
    return Cause(
        entry.suspect.value, (), f"by the error's entry in the catalogue; {_spread(nodes, completed)}"
    )


def _wide(error: str) -> list[tuple[Blame, Callable[[Place], str]]]:
    """Storage and site, in the order in which to suspect them: a site often has one storage of its own."""
    order: list[tuple[Blame, Callable[[Place], str]]] = [
        (Blame.SITE, lambda place: place.site),
        (Blame.STORAGE, lambda place: place.storage),
    ]
    if error in BY_NAME and BY_NAME[error].suspect is Blame.STORAGE:
        order.reverse()
    return order


def _by(places: Counter[Place], key: Callable[[Place], str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for place, n in places.items():
        counts[key(place)] += n
    return counts


def _where_nothing_works(failed: Counter[str], completed: Counter[str]) -> tuple[str, ...]:
    """The places with almost all of these failures and hardly a success, if there are successes at other places."""
    bad = sorted(
        name for name, n in failed.items() if name and completed[name] <= _HARDLY * (completed[name] + n)
    )
    elsewhere = sum(n for name, n in completed.items() if name not in bad)
    enough = sum(failed[name] for name in bad) >= _ALMOST_ALL * sum(failed.values())
    return tuple(bad) if bad and enough and elsewhere else ()


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _spread(nodes: Counter[str], completed: Counter[Place]) -> str:
    if not nodes:
        return "no node was reached"
    worked = {*nodes, *(place.node for place in completed)}
    if len(worked) == 1:
        return f"where they lie says nothing: {min(worked)} alone has worked for the task"
    where = "one node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"the failures lie on {where}" + (
        ", where other jobs complete too or did not run" if completed else ""
    )
