"""What `pilotage data` stages: files from arguments and lists, their results, and how these are told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union
from urllib.parse import quote, unquote, urlsplit

from pilot.api.data import File, Result
from protocol.errors import PilotageError
from protocol.files import check_checksums, check_lfn, parse_checksum
from protocol.redaction import one_line, redact

KEYS = {"url": str, "lfn": str, "size": int, "checksums": dict}
"""Of an object in a list that are looked at, as `pilotage dataset files --json` prints them."""
MIB = 1024 * 1024


def from_arguments(urls: Iterable[str], directory: Path) -> list[File]:
    return [_incoming({"url": url}, directory, f"address {number}") for number, url in enumerate(urls, 1)]


def from_list(text: str, directory: Path) -> list[File]:
    """A line per file, `URL [ALGORITHM:HEX]...`, or JSON: an array, or an object per line; BAD_REQUEST names the place of what is wrong."""
    return [_incoming(given, directory, place) for place, given in _entries(text)]


def outgoing(paths: Iterable[Path], root: str) -> list[File]:
    """Files of this node, to addresses below `root` by their names."""
    return [
        File(f"{root.rstrip('/')}/{quote(check_lfn(path.name))}", path, path.stat().st_size) for path in paths
    ]


def check_names(files: Sequence[File]) -> None:
    """BAD_REQUEST if two files would have one name."""
    seen: dict[str, str] = {}
    for file in files:
        key = str(file.path)
        if key in seen:
            both = f"{_shown(seen[key])} and {_shown(file.url)}"
            raise PilotageError("BAD_REQUEST", f"{both} would both be {one_line(file.path.name)}")
        seen[key] = file.url


def _entries(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if text.lstrip().startswith("["):
        for number, given in enumerate(_json(text, "the list"), 1):
            yield f"file {number}", given
        return
    for number, line in enumerate(text.splitlines(), 1):
        place, words = f"line {number}", line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].startswith("{"):
            yield place, _json(line, place)
        else:
            yield place, {"url": words[0], "checksums": dict(_checksum(word, place) for word in words[1:])}


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PilotageError("BAD_REQUEST", f"{place} is no JSON: {error}") from None


def _checksum(word: str, place: str) -> tuple[str, str]:
    try:
        return parse_checksum(word)
    except PilotageError as error:
        raise PilotageError(error.name, f"{place}: {error.detail}") from None


def _incoming(given: Any, directory: Path, place: str) -> File:
    if not isinstance(given, dict) or not isinstance(given.get("url"), str):
        raise PilotageError(
            "BAD_REQUEST", f'{place}: a file is an object with a "url", as {{"url": "root://…"}}'
        )
    for key, kind in KEYS.items():
        value = given.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise PilotageError("BAD_REQUEST", f"{place}: {key} is {value!a}, not a {kind.__name__}"[:300])
    try:
        name = check_lfn(given.get("lfn") or _last_name(given["url"]))
        checksums = check_checksums({str(key): str(value) for key, value in (given.get("checksums") or {}).items()})  # fmt: skip
    except PilotageError as error:
        raise PilotageError(error.name, f"{place}: {error.detail}") from None
    return File(given["url"], directory / name, given.get("size"), checksums, name)


def _last_name(url: str) -> str:
    try:
        return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{_shown(url)} is no URL: {error}") from None


# -- what became of them --------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """All results, and how long it took."""

    results: Sequence[Result]
    seconds: float

    @property
    def is_good(self) -> bool:
        return all(each.copied is not None for each in self.results)

    def as_json(self) -> list[dict[str, Any]]:
        return [_as_json(each) for each in self.results]

    def summary(self) -> str:
        good = [each.copied for each in self.results if each.copied]
        size = sum(copied.size for copied in good)
        return (
            f"{len(good)} of {len(self.results)} files, {size / MIB:.1f} MiB in {self.seconds:.1f} s "
            f"({speed(size, self.seconds)})"
        )

    def problems(self) -> list[str]:
        return [f"{_shown(each.file.url)}: {_why(each)}" for each in self.results if each.copied is None]


def speed(n_bytes: int, seconds: float) -> str:
    return f"{max(0, n_bytes) / MIB / max(seconds, 1e-3):.1f} MiB/s"


def _why(result: Result) -> str:
    return str(result.error) if result.error else "cancelled"


def _as_json(result: Result) -> dict[str, Any]:
    told: dict[str, Union[str, int, float, dict[str, str], None]] = {
        "url": result.file.url,
        "path": os.path.abspath(result.file.path),
        "state": "copied" if result.copied else "failed" if result.error else "cancelled",
        "seconds": round(result.seconds, 3),
    }
    if result.copied:
        told.update(size=result.copied.size, checksums=dict(result.copied.checksums))
    if result.error:
        told.update(error=result.error.name, detail=result.error.detail)
    return told


def _shown(url: str) -> str:
    return one_line(redact(url[:300]))
