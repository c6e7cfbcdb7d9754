"""Plugins are found by name: modules of a folder (also within a zip file), and what installed packages bring as entry points."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from protocol.errors import PilotageError
from protocol.redaction import one_line
from protocol.values import nearest

T = TypeVar("T")


def installed(group: str) -> dict[str, Any]:
    """The entry points of this group that installed packages bring, by their names."""
    from importlib import metadata  # late: it reads the metadata of all that is installed

    found: Any = metadata.entry_points()
    # Python 3.9 gives a dictionary of lists.
    points = found.select(group=group) if hasattr(found, "select") else found.get(group, ())
    return {point.name: point for point in points}


def check_known(name: str, known: Collection[str], what: str) -> None:
    """BAD_REQUEST for a plugin that is not known on this machine, though a node may have it."""
    if name not in known:
        near = nearest(name[:80], sorted(known))
        there_are = f"there are {', '.join(sorted(known))}, and those of packages installed beside the server"
        raise PilotageError(
            "BAD_REQUEST",
            f"{what} {one_line(name[:80])!r} is not known; {f'did you mean {near}?' if near else there_are}",
        )


class Family:
    """Plugins of one kind: classes of the same name and base, a module each."""

    def __init__(
        self,
        package: str,
        group: str,
        attribute: str,
        what: str,
        unknown: str = "BAD_SETTINGS",
        parts: Collection[str] = ("base",),
    ) -> None:
        """`group` names the entry points of packages from outside; `parts` are the modules of the folder that are no plugins.

        `what` one of them is called in messages; `unknown` names the error for a name that nobody has, and for a plugin that
        cannot be loaded.
        """
        self._package = package
        self._group = group
        self._attribute = attribute
        self._what = what
        self._unknown = unknown
        self._parts = frozenset(parts)

    def names(self) -> tuple[str, ...]:
        """All there are, ours and those of installed packages."""
        return tuple(sorted({*self._ours(), *installed(self._group)}))

    def find(self, name: str, base: type[T]) -> type[T]:
        """The class of that name, ours before others."""
        if name in self._ours():
            place = f"{self._package}.{name}"
        else:
            others = installed(self._group)
            if name not in others:
                known = ", ".join(self.names())
                raise PilotageError(
                    self._unknown, f"no {self._what} {one_line(name[:80])}; there are {known}"
                )
            place = others[name].value
        module, _, attribute = place.partition(":")
        try:
            found = getattr(import_module(module), attribute or self._attribute, None)
        except ImportError as error:
            raise PilotageError(self._unknown, f"{name} cannot be loaded from {module}: {error}") from error
        if not (isinstance(found, type) and issubclass(found, base)):
            wanted = f"{attribute or self._attribute}({base.__name__})"
            raise PilotageError(self._unknown, f"{name}: {module} has no class {wanted}")
        return found

    def _ours(self) -> tuple[str, ...]:
        """Found by listing the folder: a pilot that came as one zip file has no installed metadata."""
        folder: ModuleType = import_module(self._package)
        return tuple(
            each.name
            for each in pkgutil.iter_modules(folder.__path__)
            if not each.ispkg and each.name not in self._parts
        )
