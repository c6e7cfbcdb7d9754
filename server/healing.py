"""Self-healing: how a failed job is tried again, by the operator's rules and else by the catalogue.

The rules stand in the ini file that `[healing] rules` names; a section is an error, or a blame for all errors of it that have
no section of their own:

    [PAYLOAD_OUT_OF_MEMORY]
    retry = more memory
    factor = 1.5
    limit_mb = 16000
    times = 2

    [blame node]
    retry = elsewhere
    avoid = queue

`retry` is one of the catalogue's words. A rule is applied `times` times to a job for each error; then that error ends it. The
task's two budgets count beside that, with a rule as without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol import ini
from protocol.errors import BY_NAME, Blame, ErrorEntry, PilotageError, Retry
from protocol.redaction import one_line
from protocol.settings import Settings
from protocol.values import Bounds, Places, Type, nearest, parse

LARGEST_MB = 100_000_000
"""As the task's own memory."""

_KEYS: dict[str, tuple[Type, Bounds]] = {
    "retry": (Type.CHOICE, Bounds(choices=[each.value for each in Retry])),
    "times": (Type.INTEGER, Bounds(1, 100)),
    "avoid": (Type.CHOICE, Bounds(choices=("node", "queue"))),
    "factor": (Type.NUMBER, Bounds(1.1, 16)),
    "limit_mb": (Type.INTEGER, Bounds(1, LARGEST_MB)),
    "pause_seconds": (Type.INTEGER, Bounds(1, 604_800)),
}
_ONLY_FOR = {
    "avoid": Retry.ELSEWHERE,
    "factor": Retry.MORE_MEMORY,
    "limit_mb": Retry.MORE_MEMORY,
    "pause_seconds": Retry.LATER,
}
_BLAME = "blame_"


@dataclass(frozen=True)
class Rule:
    """How jobs with some error are tried again. What is None is as the server does without a rule."""

    retry: Retry
    times: int | None = None
    """Applications to one job for each error; None: as its budgets allow."""
    avoid_queue: bool = False
    factor: float | None = None
    limit_mb: int | None = None
    pause_seconds: int | None = None


_WITHOUT_RULES = {"QUEUE_WITHOUT_CONTAINERS": Rule(Retry.ELSEWHERE, times=2, avoid_queue=True)}
"""Where the catalogue's word alone would have a job tried in vain on every node of a queue."""


@dataclass(frozen=True)
class Healing:
    """The rules, and how memory is raised where they do not say."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    """By the name of an error, or by `blame_` and a blame."""
    memory_factor: float = 2.0
    memory_limit_mb: int = 0
    memory_first_mb: int = 2000

    def rule_for(self, entry: ErrorEntry) -> Rule:
        own = self.rules.get(entry.name) or self.rules.get(_BLAME + entry.blame.value)
        return own or _WITHOUT_RULES.get(entry.name) or Rule(entry.retry)

    def memory(self, rule: Rule, needed_mb: int, peak_mb: float, largest_mb: int) -> int:
        """What a job gets that had too little; not more than `needed_mb` if there is no more to be had.

        `peak_mb`: what its pilot has measured, or 0; `largest_mb`: the most that any pilot has for a job now.
        """
        used = max(needed_mb, min(peak_mb, LARGEST_MB)) or self.memory_first_mb
        wanted = stepped(used * (rule.factor or self.memory_factor))
        return min(wanted, rule.limit_mb or self.memory_limit_mb or largest_mb)


def stepped(size: float) -> int:
    """Rounded up to one of few sizes, so that jobs with peaks of their own still share a class: four to a power of two."""
    step = 1 << max(int(size).bit_length() - 3, 0)
    return -(-int(size) // step) * step


def load(settings: Settings) -> Healing:
    """What the settings say; BAD_SETTINGS for a file of rules that cannot be read or says something else."""
    path = settings.optional_path("healing", "rules")
    return Healing(
        read(path) if path is not None else {},
        settings.number("healing", "memory_factor"),
        settings.integer("healing", "memory_limit_mb"),
        settings.integer("healing", "memory_first_mb"),
    )


def read(path: Path) -> dict[str, Rule]:
    """The rules of a file, by error name or blame."""
    file = ini.read(path)
    given: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    for section, line in file.sections:
        name = _name(path, section, line)
        given[name], lines[name] = {}, line
    for entry in file.entries:
        name = _name(path, entry.section, entry.line)
        given[name][entry.key] = _value(path, entry)
    return {name: _rule(path, lines[name], values) for name, values in given.items()}


def _name(path: Path, section: str, line: int) -> str:
    name = section.upper()
    if name in BY_NAME:
        return name
    if section.startswith(_BLAME) and section[len(_BLAME) :] in {each.value for each in Blame}:
        return section
    near = nearest(name, [*BY_NAME, *(f"blame {each.value}" for each in Blame)])
    raise _wrong(
        path,
        line,
        f"[{section[:60]}] is neither an error of the catalogue nor a blame, as [blame node]"
        + (f"; did you mean {near}?" if near else ""),
    )


def _value(path: Path, entry: ini.IniEntry) -> Any:
    if entry.key not in _KEYS:
        raise _wrong(
            path, entry.line, f"no key {one_line(entry.key[:40])} in a rule; there are {', '.join(_KEYS)}"
        )
    kind, bounds = _KEYS[entry.key]
    try:
        return parse(kind, entry.text, bounds, Places(None, None))
    except ValueError as error:
        raise _wrong(path, entry.line, f"{entry.key} {error}") from None


def _rule(path: Path, line: int, values: dict[str, Any]) -> Rule:
    if "retry" not in values:
        raise _wrong(path, line, f"a rule needs retry = {' | '.join(each.value for each in Retry)}")
    retry = Retry(values["retry"])
    for key, other in _ONLY_FOR.items():
        if key in values and retry is not other:
            raise _wrong(path, line, f"{key} goes with retry = {other.value} only")
    return Rule(
        retry,
        values.get("times", 3),
        values.get("avoid") == "queue",
        values.get("factor"),
        values.get("limit_mb"),
        values.get("pause_seconds"),
    )


def _wrong(path: Path, line: int, what: str) -> PilotageError:
    return PilotageError("BAD_SETTINGS", f"{one_line(str(path))} line {line}: {what}")
