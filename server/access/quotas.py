"""How many jobs of an account and of a working group may be formed and not ended at a time; the rest wait in their task.

The task-executor counts once per pass what is open, and only of those who have a limit: by the limit that is a bounded number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peewee import fn

from server.models import Account, Job, Task, WorkingGroup


def chain_of(parents: Mapping[str, str | None], name: str) -> list[str]:
    """The groups from the root of the tree down to this one; nothing above one that is not there, and a circle once."""
    chain: list[str] = []
    above: str | None = name
    while above and above in parents and above not in chain:
        chain.append(above)
        above = parents[above]
    return chain[::-1]


Payer = tuple[str, str]
"""Owner and working group of a task."""


@dataclass
class Quotas:
    """Limits and what is open now; kept for one pass of the task-executor, which adds what it forms."""

    accounts: Mapping[str, int]
    groups: Mapping[str, int]
    parents: Mapping[str, str | None]
    open_jobs: dict[Payer, int] = field(default_factory=dict)

    def room(self, task: Task) -> int | None:
        """How many more jobs of this task may be formed; None: as many as there are."""
        rooms = [limit - self._used(key) for key, limit in self._limits(task)]
        return max(0, min(rooms)) if rooms else None

    def took(self, task: Task, n: int) -> None:
        payer = (task.owner, task.working_group)
        self.open_jobs[payer] = self.open_jobs.get(payer, 0) + n

    def full(self, task: Task) -> list[str]:
        """The quotas that leave no room for a further job of this task, in words."""
        return [
            f"quota of {kind}{name}: {used} of {limit} open jobs"
            for (kind, name), limit in self._limits(task)
            if (used := self._used((kind, name))) >= limit
        ]

    def _limits(self, task: Task) -> list[tuple[tuple[str, str], int]]:
        found = [(("", task.owner), self.accounts[task.owner])] if task.owner in self.accounts else []
        found += [
            (("group ", name), self.groups[name])
            for name in reversed(chain_of(self.parents, task.working_group))
            if name in self.groups
        ]
        return found

    def _used(self, key: tuple[str, str]) -> int:
        kind, name = key
        return sum(
            n
            for (owner, group), n in self.open_jobs.items()
            if (name in chain_of(self.parents, group) if kind else owner == name)
        )


def now() -> Quotas:
    """The limits as they are set, and what counts against them; inside `reading` or `write`."""
    accounts = dict(
        Account.select(Account.name, Account.max_open_jobs)
        .where(Account.max_open_jobs.is_null(False))
        .tuples()
    )
    rows = list(
        WorkingGroup.select(WorkingGroup.name, WorkingGroup.parent, WorkingGroup.max_open_jobs).tuples()
    )
    parents = {name: parent for name, parent, _ in rows}
    groups = {name: limit for name, _, limit in rows if limit is not None}
    quotas = Quotas(accounts, groups, parents)
    if accounts or groups:
        below = [name for name in parents if any(above in groups for above in chain_of(parents, name))]
        quotas.open_jobs = _open(Task.owner.in_(list(accounts)) | Task.working_group.in_(below))
    return quotas


def open_by_owner() -> dict[str, int]:
    found: dict[str, int] = {}
    for (owner, _), n in _open().items():
        found[owner] = found.get(owner, 0) + n
    return found


def open_by_group(parents: Mapping[str, str | None]) -> dict[str, int]:
    """Of each group, with those of the groups below it."""
    found: dict[str, int] = {}
    for (_, group), n in _open().items():
        for name in chain_of(parents, group):
            found[name] = found.get(name, 0) + n
    return found


def _open(whose: Any = None) -> dict[Payer, int]:
    """Jobs formed and not ended, by who pays for them: one pass over the index of open jobs."""
    query = (
        Task.select(Task.owner, Task.working_group, fn.COUNT(Job.id))
        .join(Job, on=(Job.task == Task.id))
        .where(Job.ended_at.is_null())
        .group_by(Task.owner, Task.working_group)
    )
    if whose is not None:
        query = query.where(whose)
    return {(owner, group): n for owner, group, n in query.tuples()}
