"""Requests in, replies out: parse and validate a body, shape a reply, turn an error of the catalogue into an HTTP status."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any

from flask import Request, Response
from pydantic import TypeAdapter, ValidationError

from protocol.errors import PilotageError
from protocol.messages import ErrorReply, to_wire, wire_name
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
    "SERVER_ERROR": 500,
    "SERVER_UNAVAILABLE": 503,
}
"""The HTTP status of each error that a route may answer with; any other is a 500."""

RETRY_AFTER_SECONDS = 2


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
    try:
        parsed = _adapter(cls).validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)[:10]
        raise PilotageError(
            "BAD_REQUEST", "; ".join(_sentence(cls, problem) for problem in problems)
        ) from None
    if rb"\u0000" in body and _has_nul(to_wire(parsed)):
        # Postgres keeps none, no process can be given one, and it cuts names short in C.
        raise PilotageError("BAD_REQUEST", "a text contains a NUL character")
    return parsed


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
    return f"{place[:100]}: {problem['msg']}" if place else str(problem["msg"])


def reply(content: Any, status: int = 200) -> Response:
    body = json.dumps(to_wire(content), ensure_ascii=False, separators=(",", ":"))
    return Response(body + "\n", status, mimetype="application/json")


def error_reply(error: PilotageError) -> Response:
    """The one shape of a failure."""
    entry = error.entry
    # A name that somebody made up must not write a line of its own into a log, or colour a terminal.
    detail = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in error.detail)
    shape = ErrorReply(entry.name, entry.code, entry.text, detail, entry.advice, error.fields or None)
    response = reply(shape, STATUS.get(entry.name, 500))
    if entry.name == "SERVER_UNAVAILABLE":
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if entry.name == "UNAUTHENTICATED":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


class Query:
    """The query string of a request: each value is asked for once, and `finish` refuses what nobody asked for."""

    def __init__(self, request: Request) -> None:
        self._given = request.args
        self._asked: set[str] = set()

    def text(self, name: str, choices: tuple[str, ...] = ()) -> str:
        self._asked.add(name)
        values = self._given.getlist(name)
        if len(values) > 1:
            raise PilotageError("BAD_REQUEST", f"{name}: is there {len(values)} times")
        value = values[0] if values else ""
        if len(value) > 1000 or "\0" in value:
            raise PilotageError("BAD_REQUEST", f"{name}: is too long or contains a NUL character")
        if choices and value and value not in choices:
            raise PilotageError("BAD_REQUEST", f"{name}: {value[:60]!a}; it is one of {', '.join(choices)}")
        return value

    def number(self, name: str, lowest: int = 1, highest: int = 2**63 - 1) -> int | None:
        value = self.text(name)
        if not value:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 20 and lowest <= int(value) <= highest):
            raise PilotageError(
                "BAD_REQUEST", f"{name}: {value[:60]!a} is no whole number from {lowest} to {highest}"
            )
        return int(value)

    def cursor(self) -> Cursor:
        """`after`, `limit` (100, at most 1000) and `order` (`newest` or `oldest` first)."""
        newest = self.text("order", ("oldest", "newest")) == "newest"
        return Cursor(self.number("after", 0), self.number("limit", 1, 1000) or 100, newest)

    def finish(self) -> None:
        unknown = sorted(set(self._given) - self._asked)
        if unknown:
            known = ", ".join(sorted(self._asked)) or "none"
            raise PilotageError("BAD_REQUEST", f"{unknown[0][:60]!a}: no such parameter; there are {known}")


def path_id(text: str, what: str) -> int:
    """A number in a path, or NOT_FOUND: no such thing can be there."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) < 2**63):
        raise PilotageError("NOT_FOUND", f"no {what} {text[:60]!a}; a {what} has a number")
    return int(text)
