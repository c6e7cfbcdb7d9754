"""Fair share: which group's turn it is, from a tree of shares and what each has used; rules over plain data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

NOBODY = ""
"""The group of tasks that name none: it stands beside the groups without a parent."""


@dataclass(frozen=True)
class Share:
    """A group's place in the tree, its share among its siblings, and the core-seconds it has used itself (decayed)."""

    parent: str | None = None
    share: int = 100
    usage: float = 0.0


def turns(tree: Mapping[str, Share], waiting: Collection[str]) -> list[str]:
    """The groups of which jobs wait, whose turn it is first.

    At each level the branch that has used least for its share goes first, so in the long run branches with enough jobs use
    in proportion to their shares, and what a branch does not use is shared by the others. A group's own jobs compete with
    those of its children as one more child with the group's own share.
    """
    chains = {group: _chain(tree, group) for group in waiting}
    usage = _subtree_usage(tree)

    def key(group: str) -> list[float]:
        return [usage.get(name, 0.0) / max(_share(tree, name), 1) for name in chains[group]]

    return sorted(waiting, key=lambda group: (key(group), group))


def _share(tree: Mapping[str, Share], name: str) -> int:
    return tree[name].share if name in tree else 100


def _chain(tree: Mapping[str, Share], group: str) -> list[str]:
    """The branches from the root down to the group."""
    chain: list[str] = []
    name: str | None = group
    while name is not None and name not in chain:
        chain.append(name)
        name = tree[name].parent if name in tree else None
    return chain[::-1]


def _subtree_usage(tree: Mapping[str, Share]) -> dict[str, float]:
    """What each group has used with all that are below it."""
    total: dict[str, float] = {}
    for name, group in tree.items():
        for above in _chain(tree, name):
            total[above] = total.get(above, 0.0) + group.usage
    return total
