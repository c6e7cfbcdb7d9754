"""Where wrappers/ and etc/ lie: in the tree, or in an installation, where they are data beside this file."""

from __future__ import annotations

from pathlib import Path

SHARED = ("wrappers", "etc")
"""The folders that travel with the package (setup.cfg maps them to protocol.shared.*)."""

_TREE = Path(__file__).resolve().parent.parent
_INSTALLED = Path(__file__).resolve().parent / "shared"


def shared_path(name: str) -> Path:
    """The path of e.g. "wrappers/run_pilot.sh" or "etc/examples"; FileNotFoundError tells where it was looked for.

    The installation comes first: beside an installed protocol/ a folder etc/ may be anybody's. Inside a zip archive
    (the pilot as one file) neither exists: a pilot needs no wrapper and no server's configuration.
    """
    folder = name.partition("/")[0]
    if folder not in SHARED or ".." in Path(name).parts:
        raise ValueError(f"{name!r}: it must start with one of {', '.join(SHARED)}/")
    places = (_INSTALLED / name, _TREE / name)
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"no {name} in this installation; looked for {' and '.join(map(str, places))}")
