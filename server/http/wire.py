"""Requests in, replies out: parse and validate a body, shape a reply, turn an error of the catalogue into an HTTP status."""

from __future__ import annotations

import datetime
import difflib
import functools
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import IO, Any

from flask import Request, Response
from pydantic import TypeAdapter, ValidationError

from protocol.errors import PilotageError
from protocol.messages import NAME_FIELD, OPTIONAL_NAME, to_wire, wire_name
from protocol.messages.pilots import (
    DIGEST,
    IMAGE,
    SOFTWARE_CHECKSUM,
    GetJobReply,
    HeartbeatReply,
    UpdateReplies,
    UpdateReply,
)
from protocol.messages.views import ErrorReply
from server.paging import Cursor

STATUS: dict[str, int] = {
    "BAD_REQUEST": 400,
    "BAD_LFN": 400,
    "BAD_PATH": 400,
    "CHECKSUM_NOT_SUPPORTED": 400,
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "ALREADY_EXISTS": 409,
    "WRONG_STATE": 409,
    "STALE_ATTEMPT": 409,
    "TOO_LARGE": 413,
    "BODY_COMPRESSED": 415,
    "TOO_MANY_REQUESTS": 429,
    "SERVER_ERROR": 500,
    "SERVER_UNAVAILABLE": 503,
}
"""The HTTP status of each error that a route may answer with; any other is a 500."""

RETRY_AFTER_SECONDS = 2
JSON_LINES = "application/x-ndjson"
LONGEST_VALUE = 1000
"""Characters of a value in a query string."""
MANY = 20
"""How often a value that may be repeated is there at most."""
LONGEST_LINE = 65_536
"""Bytes of one line of a body in JSON lines."""
FOR_PILOTS = (GetJobReply, UpdateReply, UpdateReplies, HeartbeatReply)
"""Replies that are given for every job: the validation library writes them in a fifth of the time, to the same text."""


@functools.cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cls)  # type: ignore[arg-type]


def parse(cls: Any, request: Request) -> Any:
    """The body of a request as an object of `cls`, or BAD_REQUEST that names each field that is wrong and what would be right."""
    body = request.get_data(cache=False)
    if request.max_content_length is not None and len(body) >= request.max_content_length:
        raise PilotageError("TOO_LARGE", f"the body has more than {request.max_content_length - 1} bytes")
    if not body:
        needed = ", ".join(_adapter(cls).json_schema(by_alias=True).get("required", []))
        raise PilotageError(
            "BAD_REQUEST",
            f"the body is empty; a JSON object is expected, with {needed or 'any of its fields'}",
        )
    return _parsed(cls, body)


def lines(cls: Any, request: Request) -> Iterator[Any]:
    """The objects of a body in JSON lines, one after the other as they arrive; the whole is never held."""
    for nr, line in enumerate(_split(request.stream), start=1):
        if len(line) > LONGEST_LINE:
            raise PilotageError("TOO_LARGE", f"line {nr} has more than {LONGEST_LINE} bytes")
        if line.strip():
            try:
                yield _parsed(cls, line)
            except PilotageError as error:
                raise PilotageError(error.name, f"line {nr}: {error.detail}") from None


def _split(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines, and a part of one that is too long; the stream's own `readline` may read byte by byte."""
    rest = b""
    try:
        while block := stream.read(LONGEST_LINE):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
            if len(rest) > LONGEST_LINE:
                break
    except OSError as error:
        raise PilotageError("BAD_REQUEST", f"the body ends early: {error}") from None
    yield rest


def _parsed(cls: Any, body: bytes) -> Any:
    try:
        parsed = _adapter(cls).validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)[:10]
        raise PilotageError(
            "BAD_REQUEST", "; ".join(_sentence(cls, problem) for problem in problems)
        ) from None
    _refuse_twice_said(cls, body)
    if rb"\u0000" in body and _has_nul(to_wire(parsed)):
        # Postgres keeps none, no process can be given one, and it cuts names short in C.
        raise PilotageError("BAD_REQUEST", "a text contains a NUL character")
    return parsed


def _refuse_twice_said(cls: Any, body: bytes) -> None:
    """BAD_REQUEST for a field that is there twice, and for a number that is none where nobody looked for it.

    In what people send it is looked for everywhere. What programs say comes thousands of times a second: there only the
    fields that must be there are counted (who speaks, about what, with which token), which takes two microseconds, and the
    whole is looked at if one seems to come twice. Of the others the last word counts.
    """
    if cls.__pydantic_config__["extra"] != "forbid" and not _may_be_twice_said(body, _needed(cls)):
        return
    try:
        _STRICT.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise PilotageError("BAD_REQUEST", str(error)[:200]) from None


def _may_be_twice_said(body: bytes, names: tuple[bytes, ...]) -> bool:
    for name in names:
        if body.count(name) > 1:
            return True
    return b"\\u" in body


@functools.cache
def _needed(cls: Any) -> tuple[bytes, ...]:
    """The names of fields without a default, as a body writes them."""
    needed = (
        each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING
    )
    return tuple(f'"{wire_name(name)}"'.encode() for name in needed)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:60]!a}: is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(_has_nul(part) for part in value)
    return isinstance(value, str) and "\0" in value


def _sentence(cls: Any, problem: Any) -> str:
    """One problem in words: where, what is wrong, and what would be right."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden") and is_dataclass(cls):
        known = [wire_name(field.name) for field in fields(cls)]
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return f"{place[:100]}: no such field; {meant}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{place}: is missing"
    words = _in_words(problem)
    return f"{place[:100]}: {words}" if place else words


def _in_words(problem: Any) -> str:
    """What the validation library found, as we say it."""
    bounds = problem.get("ctx", {})
    if problem["type"] == "string_pattern_mismatch" and bounds["pattern"] in _NAMES:
        return _NAMES[bounds["pattern"]]
    words = _BOUNDS.get(problem["type"])
    return words.format(**bounds) if words else str(problem["msg"])


_LETTERS = "it is made of letters, digits and . _ : + - and begins with a letter or digit"
_NAMES = {
    NAME_FIELD["pattern"]: _LETTERS,
    OPTIONAL_NAME["pattern"]: _LETTERS,
    SOFTWARE_CHECKSUM: "it is sha256: or blake3: and 64 hexadecimal digits in lower case",
    DIGEST: "it is made of 64 hexadecimal digits in lower case",
    IMAGE: "it is a path, a name or a URL of a registry, of letters, digits and . _ : @ / + % = ~ -",
}
_BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "is empty",
    "string_too_long": "has more than {max_length} characters",
    "too_long": "has more than {max_length} entries",
    "too_short": "is empty",
    "json_invalid": "the body is no JSON: {error}",
}


def reply(content: Any, status: int = 200) -> Response:
    if isinstance(content, FOR_PILOTS):
        body = _adapter(type(content)).dump_json(  # type: ignore[arg-type]
            content, by_alias=True, exclude_none=True
        )
    else:
        body = json.dumps(to_wire(content), ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body + b"\n", status, mimetype="application/json")


def error_reply(error: PilotageError) -> Response:
    """The one shape of a failure."""
    entry = error.entry
    # A name that somebody made up must not write a line of its own into a log, or colour a terminal.
    detail = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in error.detail)
    shape = ErrorReply(entry.name, entry.code, entry.text, detail, entry.advice, error.fields or None)
    response = reply(shape, STATUS.get(entry.name, 500))
    if entry.name in ("SERVER_UNAVAILABLE", "TOO_MANY_REQUESTS"):
        response.headers["Retry-After"] = str(error.fields.get("retry_after", RETRY_AFTER_SECONDS))
    if entry.name == "UNAUTHENTICATED":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@dataclass(frozen=True)
class Parameter:
    """One value of a query string, as routes declare it and the API's document shows it; an empty one is none."""

    name: str
    about: str
    choices: tuple[str, ...] = ()
    numbers: tuple[int, int] | None = None
    """Lowest and highest of a whole number."""
    is_day: bool = False
    many: bool = False
    """It may be there several times, `MANY` at most."""

    def read(self, values: Sequence[str]) -> str:
        """The value that was given; BAD_REQUEST for one that is none of its kind."""
        if len(values) > 1:
            raise PilotageError("BAD_REQUEST", f"{self.name}: is there {len(values)} times")
        return self._read(values[0] if values else "")

    def read_all(self, values: Sequence[str]) -> list[str]:
        """The values of one that may be there several times; empty ones are none."""
        if len(values) > MANY:
            raise PilotageError("BAD_REQUEST", f"{self.name}: is there {len(values)} times; at most {MANY}")
        return [self._read(value) for value in values if value]

    def _read(self, value: str) -> str:
        if len(value) > LONGEST_VALUE or "\0" in value:
            raise PilotageError("BAD_REQUEST", f"{self.name}: is too long or contains a NUL character")
        if value:
            self._check(value)
        return value

    def _check(self, value: str) -> None:
        shown = f"{self.name}: {value[:60]!a}"
        if self.choices and value not in self.choices:
            raise PilotageError("BAD_REQUEST", f"{shown}; it is one of {', '.join(self.choices)}")
        if self.numbers is not None:
            lowest, highest = self.numbers
            is_number = value.isascii() and value.isdigit() and len(value) < 20
            if not (is_number and lowest <= int(value) <= highest):
                raise PilotageError("BAD_REQUEST", f"{shown} is no whole number from {lowest} to {highest}")
        if self.is_day and _day(value) is None:
            raise PilotageError("BAD_REQUEST", f"{shown} is no day, as 2026-11-01")


def _day(value: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(value, "%Y-%m-%d").date()
    except ValueError:
        return None


CURSOR = (
    Parameter("after", "the nextCursor of the page before", numbers=(0, 2**63 - 1)),
    Parameter("limit", "rows of a page; 100 unless told otherwise", numbers=(1, 1000)),
    Parameter("order", "which rows come first; the oldest unless told otherwise", ("oldest", "newest")),
)
"""What every list in pages takes."""


class Query:
    """The query string of a request, read as its route declares it; BAD_REQUEST for what it does not declare."""

    def __init__(self, request: Request, parameters: Sequence[Parameter], others_too: bool = False) -> None:
        given = request.args
        one, many = [each for each in parameters if not each.many], [each for each in parameters if each.many]
        self._values = {each.name: each.read(given.getlist(each.name)) for each in one}
        self._lists = {each.name: each.read_all(given.getlist(each.name)) for each in many}
        unknown = sorted(set(given) - set(self._values) - set(self._lists))
        if unknown and not others_too:
            known = ", ".join(sorted([*self._values, *self._lists])) or "none"
            raise PilotageError("BAD_REQUEST", f"{unknown[0][:60]!a}: no such parameter; there are {known}")

    def text(self, name: str) -> str:
        return self._values[name]

    def texts(self, name: str) -> list[str]:
        """Of one that may be there several times."""
        return self._lists[name]

    def number(self, name: str) -> int | None:
        return int(self._values[name]) if self._values[name] else None

    def day(self, name: str, default: datetime.date) -> datetime.date:
        return _day(self._values[name]) or default

    def is_yes(self, name: str) -> bool:
        return self._values[name] == "yes"

    def cursor(self) -> Cursor:
        """Of a route with CURSOR."""
        return Cursor(self.number("after"), self.number("limit") or 100, self._values["order"] == "newest")


def path_id(text: str, what: str) -> int:
    """A number in a path, or NOT_FOUND: no such thing can be there."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) < 2**63):
        raise PilotageError("NOT_FOUND", f"no {what} {text[:60]!a}; a {what} has a number")
    return int(text)
