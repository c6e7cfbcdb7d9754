"""Copytools: one file per way to move a file in and out, found by its name."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Dict, Iterable, List, Mapping, Tuple

from protocol.errors import PilotageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from copytools.base import CopyTool

GROUP = "pilotage.copytools"
"""The group of entry points by which a package from outside adds a tool: NAME = its.module."""

_PARTS = frozenset(("base", "checksum", "copying", "failures"))
"""The modules of this folder that are no tools."""


def names() -> Tuple[str, ...]:
    """All tools there are, ours and those of installed packages."""
    return tuple(sorted({*_ours(), *_others()}))


def load(name: str, options: Mapping[str, object]) -> CopyTool:
    """The tool of that name, ours before others; UNKNOWN_COPYTOOL lists the names, BAD_SETTINGS tells a wrong option."""
    from copytools.base import CopyTool, shown

    if name in _ours():
        module = f"{__name__}.{name}"
    else:
        others = _others()
        if name not in others:
            known = ", ".join(sorted({*_ours(), *others}))
            raise PilotageError("UNKNOWN_COPYTOOL", f"{shown(name[:80])}; there are {known}")
        module = others[name].value.partition(":")[0]
    try:
        tool = getattr(import_module(module), "Tool", None)
    except ImportError as error:
        raise PilotageError("UNKNOWN_COPYTOOL", f"{name} cannot be loaded from {module}: {error}") from error
    if not (isinstance(tool, type) and issubclass(tool, CopyTool)):
        raise PilotageError("UNKNOWN_COPYTOOL", f"{name}: {module} has no class Tool(CopyTool)")
    return tool(options)


def for_url(url: str, allowed_names: Iterable[str], options: Mapping[str, object]) -> CopyTool:
    """The first allowed tool that knows the scheme of `url` and works on this node; nothing allowed means all there are.

    UNKNOWN_COPYTOOL tells for each tool why it was passed over.
    """
    from copytools.base import shown

    scheme, colon, _ = url.partition(":")
    passed_over: List[str] = []
    for name in tuple(allowed_names) or names():
        tool = load(name, options)
        if not colon or scheme.lower() not in tool.schemes:
            passed_over.append(f"{name} knows {', '.join(tool.schemes)}")
            continue
        reason = tool.unusable()
        if reason is None:
            return tool
        passed_over.append(f"{name}: {reason}")
    raise PilotageError("UNKNOWN_COPYTOOL", f"{shown(url[:300])}: {'; '.join(passed_over)}")


def _ours() -> Tuple[str, ...]:
    """Found by listing the folder: a pilot that came as one zip file has no installed metadata."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS)


def _others() -> Dict[str, EntryPoint]:
    from importlib import metadata  # late: it reads the metadata of all that is installed

    if sys.version_info >= (3, 10):
        found: Iterable[EntryPoint] = metadata.entry_points(group=GROUP)
    else:
        found = metadata.entry_points().get(GROUP, ())
    return {each.name: each for each in found}
