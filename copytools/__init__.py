"""Copytools: one file per way to move a file in and out, found by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterable, List, Mapping

from protocol.errors import PilotageError
from protocol.plugins import Family

if TYPE_CHECKING:
    from copytools.base import CopyTool

_TOOLS = Family(
    __name__,
    "pilotage.copytools",
    "Tool",
    what="copytool",
    unknown="UNKNOWN_COPYTOOL",
    parts=("base", "buckets", "checksum", "commands", "copying", "failures", "linking", "remote", "web"),
)


def names() -> tuple[str, ...]:
    """All tools there are, ours and those of installed packages."""
    return _TOOLS.names()


def usual() -> tuple[str, ...]:
    """Those that are taken where nobody has named any: without the ones that stand aside."""
    from copytools.base import CopyTool  # late: it imports this folder's parts

    return tuple(name for name in names() if not _TOOLS.find(name, CopyTool).if_named)


def load(name: str, options: Mapping[str, object]) -> CopyTool:
    """The tool of that name, ours before others; UNKNOWN_COPYTOOL lists the names, BAD_SETTINGS tells a wrong option."""
    from copytools.base import CopyTool  # late: it imports this folder's parts

    return _TOOLS.find(name, CopyTool)(options)


def for_url(url: str, allowed_names: Iterable[str], options: Mapping[str, object]) -> CopyTool:
    """The first allowed tool that knows the scheme of `url` and works on this node; nothing allowed means `usual()`.

    UNKNOWN_COPYTOOL tells for each tool why it was passed over.
    """
    from copytools.base import shown

    scheme, colon, _ = url.partition(":")
    passed_over: List[str] = []
    for name in tuple(allowed_names) or usual():
        tool = load(name, options)
        if not colon or scheme.lower() not in tool.schemes:
            passed_over.append(f"{name} knows {', '.join(tool.schemes)}")
            continue
        reason = tool.unusable()
        if reason is None:
            return tool
        passed_over.append(f"{name}: {reason}")
    raise PilotageError("UNKNOWN_COPYTOOL", f"{shown(url[:300])}: {'; '.join(passed_over)}")
