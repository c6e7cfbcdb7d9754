"""Working groups: a tree of shares that the brokerage divides by, and who may use and change which of them."""

from __future__ import annotations

from collections.abc import Mapping

from protocol.errors import PilotageError
from protocol.messages.requests import GroupChange, GroupSpec
from protocol.messages.views import GroupView, Page
from server.access import quotas, trail
from server.access.quotas import chain_of
from server.access.tokens import Caller, Role
from server.core import Core
from server.models import Account, Task, WorkingGroup

Tree = Mapping[str, WorkingGroup]


# -- rules ------------------------------------------------------------------------------------------------------------------


def check_use(caller: Caller, name: str) -> None:
    """FORBIDDEN unless the caller may let this group pay for a task: the own one and those below it."""
    if not name:
        return
    tree = _tree()
    if name not in tree:
        raise _not_found(name)
    own = group_of(caller.name)
    if caller.role is not Role.ADMIN and (not own or own not in chain_of(_parents(tree), name)):
        raise PilotageError(
            "FORBIDDEN",
            f"workingGroup: {caller.name} is in {f'the group {own}' if own else 'no group'}, and may not use {name}",
        )


def group_of(account: str) -> str:
    """The working group of an account; "" if it has none."""
    row = Account.get_or_none(Account.name == account)
    return str(row.working_group) if row else ""


def manages(caller: Caller, owner: str, group: str = "") -> bool:
    """Whether the caller manages the group of this owner, or the one that pays, or one above them."""
    own = group_of(caller.name) if caller.role is Role.GROUP else ""
    if not own:
        return False
    parents = _parents(_tree())
    return any(own in chain_of(parents, name) for name in {group_of(owner), group} - {""})


def check_exists(name: str) -> None:
    if name and not WorkingGroup.get_or_none(WorkingGroup.name == name):
        raise _not_found(name)


def _not_found(name: str) -> PilotageError:
    return PilotageError("NOT_FOUND", f"no working group {name[:200]}; see 'pilotage group list'")


def _tree() -> Tree:
    return {row.name: row for row in WorkingGroup.select()}


def _parents(tree: Tree) -> dict[str, str | None]:
    return {name: row.parent for name, row in tree.items()}


# -- what the operator does -------------------------------------------------------------------------------------------------


def create(core: Core, spec: GroupSpec, who: str) -> GroupView:
    def work() -> None:
        if WorkingGroup.get_or_none(WorkingGroup.name == spec.name):
            raise PilotageError("ALREADY_EXISTS", f"there is a working group {spec.name} already")
        check_exists(spec.parent)
        WorkingGroup.create(
            name=spec.name,
            parent=spec.parent or None,
            share=spec.share,
            max_open_jobs=spec.max_open_jobs or None,
        )
        trail.note(who, "group create", spec.name, trail.facts(spec, "parent", "share", "max_open_jobs"))

    core.database.write(work)
    return show(spec.name)


def change(core: Core, name: str, wish: GroupChange, who: str) -> GroupView:
    """Set what the wish names; a group cannot come to lie below itself."""

    def work() -> None:
        # All of them, in one order: two changes at once could make a circle that neither makes alone.
        rows = core.database.locked(WorkingGroup.select().order_by(WorkingGroup.name))
        tree = {row.name: row for row in rows}
        if name not in tree:
            raise _not_found(name)
        changes: dict[str, object] = {}
        if wish.parent is not None:
            if wish.parent and wish.parent not in tree:
                raise _not_found(wish.parent)
            if name in chain_of(_parents(tree), wish.parent):
                raise PilotageError("BAD_REQUEST", f"parent: {wish.parent} is {name} or lies below it")
            changes["parent"] = wish.parent or None
        if wish.share is not None:
            changes["share"] = wish.share
        if wish.max_open_jobs is not None:
            changes["max_open_jobs"] = wish.max_open_jobs or None
        if changes:
            WorkingGroup.update(**changes).where(WorkingGroup.name == name).execute()
            trail.note(who, "group set", name, trail.facts(wish, "parent", "share", "max_open_jobs"))

    core.database.write(work)
    return show(name)


def remove(core: Core, name: str, who: str) -> None:
    """WRONG_STATE while a group, an account or a task that has not ended names it."""

    def work() -> None:
        check_exists(name)
        for what, used in (
            ("working groups below it", WorkingGroup.select().where(WorkingGroup.parent == name)),
            ("accounts in it", Account.select().where(Account.working_group == name)),
            (
                "tasks of it that have not ended",
                Task.select().where(Task.working_group == name, Task.ended.is_null()),
            ),
        ):
            if used.exists():
                raise PilotageError("WRONG_STATE", f"there are {what}")
        WorkingGroup.delete().where(WorkingGroup.name == name).execute()
        trail.note(who, "group remove", name)

    core.database.write(work)


# -- what everybody sees ----------------------------------------------------------------------------------------------------


def views() -> Page:
    """All groups, each before those below it."""
    tree = _tree()
    parents = _parents(tree)
    open_jobs = quotas.open_by_group(parents)
    order = sorted(tree, key=lambda name: chain_of(parents, name))
    usage = dict.fromkeys(tree, 0.0)
    for name, row in tree.items():
        for above in chain_of(parents, name):
            usage[above] = usage.get(above, 0.0) + row.usage
    items = [
        GroupView(
            name=name,
            parent=tree[name].parent or "",
            share=tree[name].share,
            fraction=round(_fraction(tree, name), 6),
            usage=round(usage[name], 3),
            max_open_jobs=tree[name].max_open_jobs or 0,
            n_open=open_jobs.get(name, 0),
        )
        for name in order
    ]
    return Page(items=items, total=len(items))


def show(name: str) -> GroupView:
    for view in views().items:
        if view.name == name:
            found: GroupView = view
            return found
    raise _not_found(name)


def _fraction(tree: Tree, name: str) -> float:
    """Its part of everything while all groups have jobs that wait: its share among its siblings, of what the parent gets."""
    fraction = 1.0
    for each in chain_of(_parents(tree), name):
        siblings = sum(row.share for row in tree.values() if row.parent == tree[each].parent)
        fraction *= tree[each].share / siblings
    return fraction
