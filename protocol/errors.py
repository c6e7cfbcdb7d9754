"""The error catalogue: every failure has one name, one number, one to blame and one rule for a retry.

Its rows stand in protocol/catalogue.py. Code raises `PilotageError(NAME, detail)`; text and advice stand only there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Optional

from protocol.catalogue import FOUND, SAID_BY_PAYLOADS, Row

DETAIL_LIMIT = 1000
"""Characters kept of a detail; a longer one keeps its head and its tail."""


class Blame(enum.Enum):
    """Whose fault an error is, for statistics and for the person who reads it."""

    USER = "user"
    PAYLOAD = "payload"
    PILOT = "pilot"
    NODE = "node"
    STORAGE = "storage"
    SITE = "site"
    SERVER = "server"


class Budget(enum.Enum):
    """Which of a job's two retry budgets an error is charged to."""

    PAYLOAD = "payload"
    INFRASTRUCTURE = "infrastructure"
    NONE = "none"


class Retry(enum.Enum):
    """How a further attempt makes sense."""

    NEVER = "never"
    NOW = "now"
    LATER = "later"
    ELSEWHERE = "elsewhere"
    FRESH_INPUT = "fresh input"
    MORE_MEMORY = "more memory"


@dataclass(frozen=True)
class ErrorEntry:
    """One row of the catalogue; `advice` tells an operator or user what to do next."""

    name: str
    code: int
    blame: Blame
    budget: Budget
    retry: Retry
    text: str
    advice: str
    hearsay: bool = False
    """Nobody but the payload says so. Budget and retry are as the row says, but no node, storage or queue is suspected."""

    @property
    def suspect(self) -> Blame:
        """Against whom the server may act: a user must not be able to close a queue by what his payload prints."""
        return Blame.PAYLOAD if self.hearsay else self.blame

    def advice_for(self, job_id: int) -> str:
        """The advice to somebody who looks at this job."""
        return self.advice.replace(" ID", f" {job_id}")


def _entry(row: Row, hearsay: bool = False) -> ErrorEntry:
    name, code, blame, budget, retry, text, advice = row
    return ErrorEntry(name, code, Blame(blame), Budget(budget), Retry(retry), text, advice, hearsay)


CATALOGUE: tuple[ErrorEntry, ...] = (
    *(_entry(row) for row in FOUND),
    *(_entry(row, hearsay=True) for row in SAID_BY_PAYLOADS),
)
BY_NAME: dict[str, ErrorEntry] = {entry.name: entry for entry in CATALOGUE}
BY_CODE: dict[int, ErrorEntry] = {entry.code: entry for entry in CATALOGUE}
assert len(BY_NAME) == len(BY_CODE) == len(CATALOGUE), "names and codes of the catalogue must be unique"


FOR_PROGRAMS = frozenset(
    {
        "ALREADY_EXISTS",
        "BAD_PATH",
        "BAD_REQUEST",
        "BAD_SETTINGS",
        "FORBIDDEN",
        "MISSING_EXTRA",
        "NOT_FOUND",
        "PROGRAM_FAILED",
        "SERVER_NOT_STARTED",
        "SERVER_UNAVAILABLE",
        "TOO_MANY_REQUESTS",
        "UNAUTHENTICATED",
        "WRONG_STATE",
    }
)
"""Errors whose advice is for who speaks HTTP, or says no more than the detail: of no use to a person at a command line."""


def shorten(text: str, limit: int = DETAIL_LIMIT) -> str:
    """Cut the middle out of a text that is longer than `limit` characters: its head and its tail tell most."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


class PilotageError(Exception):
    """An error of the catalogue with one sentence of detail: what was tried, on what, what came back; no secrets."""

    def __init__(self, name: str, detail: str = "", **fields: Any) -> None:
        """`fields` are facts that a program may read (they travel in the error body of the native door)."""
        self.entry = BY_NAME[name]
        self.detail = shorten(detail)
        self.fields = fields
        super().__init__(f"{self.entry.text}: {self.detail}" if detail else self.entry.text)

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def next_step(self) -> str:
        """What a person at a command line does next: said where it was raised, or by the catalogue where that fits; or ""."""
        general = "" if self.name in FOR_PROGRAMS else self.entry.advice
        return str(self.fields.get("advice") or general)

    @property
    def code(self) -> int:
        return self.entry.code

    def facts(self, job_id: Optional[int] = None) -> dict[str, str]:
        """The fields of a line of the log; the advice is to the operator who reads it."""
        advice = self.next_step if job_id is None else self.next_step.replace(" ID", f" {job_id}")
        facts = {"error": self.name, "detail": self.detail, "advice": advice}
        return {name: value for name, value in facts.items() if value or name != "advice"}


class PilotExit(enum.IntEnum):
    """The exit code of a pilot process, and so of its wrapper; PanDA's number where it has one (64–83)."""

    DONE = 0
    FAILED = 1
    BAD_SETTINGS = 2
    NO_CREDENTIALS = 68
    NODE_UNFIT = 69
    BROKEN = 70
    SERVER_UNREACHABLE = 79
    NO_JOBS = 82
    UPDATE = 84
    INTERRUPTED = 130
    TERMINATED = 143


PILOT_EXIT_TEXT: dict[PilotExit, str] = {
    PilotExit.DONE: "the pilot ran at least one job and ended in order",
    PilotExit.FAILED: "an error that no other code stands for",
    PilotExit.BAD_SETTINGS: "an option or a setting is wrong; nothing was asked from the server",
    PilotExit.NO_CREDENTIALS: "the server refused the pilot's token",
    PilotExit.NODE_UNFIT: "the node failed its validation; no job was asked for",
    PilotExit.BROKEN: "a control thread died; its job was reported",
    PilotExit.SERVER_UNREACHABLE: "the server could not be reached; results that wait lie in the outbox",
    PilotExit.NO_JOBS: "the server had no job for this pilot (the wrapper turns this into 0)",
    PilotExit.UPDATE: "an operator wants the server's present pilot in its place (the wrapper starts that at once)",
    PilotExit.INTERRUPTED: "SIGINT; running jobs were given back",
    PilotExit.TERMINATED: "SIGTERM; running jobs were given back",
}
