"""The types of a setting: how a text becomes a value, and in which words a wrong one is refused."""

from __future__ import annotations

import difflib
import enum
import ipaddress
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union
from urllib.parse import parse_qs, urlsplit, urlunsplit

from protocol.redaction import HIDDEN, one_line, redact

Value = Union[str, int, float, bool, Path, None, tuple[str, ...]]
"""What a setting can be; None is a path that was not set."""


class Type(enum.Enum):
    """The word is the one that documentation and messages use."""

    TEXT = "text"
    NAME = "name"
    INTEGER = "whole number"
    NUMBER = "number"
    FLAG = "yes or no"
    PATH = "path"
    URL = "web address"
    DATABASE_URL = "database address"
    LIST = "list"
    CHOICE = "choice"


class Places(NamedTuple):
    """What paths are completed with: `~` means home, and a relative path counts from the start directory.

    Where a value comes from afar (a queue's override) neither is there, and a path must be absolute.
    """

    home: Optional[Path]
    start: Optional[Path]


class Bounds(NamedTuple):
    """What a row of the settings table asks of a value beyond its type."""

    minimum: Optional[float] = None
    maximum: Optional[float] = None
    choices: Sequence[str] = ()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_FLAGS = {
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}
_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def parse(kind: Type, text: str, bounds: Bounds, places: Places) -> Value:
    """The value that `text` stands for; a ValueError says, to follow the setting's name, what would be right."""
    if text != one_line(text):
        raise ValueError(f"holds a control character (a tab, perhaps): {quoted(text)}")
    if text[:1] in ("'", '"') and kind not in (Type.TEXT, Type.LIST):
        raise ValueError(f"is written without quotes, not {quoted(text)}")
    if kind in (Type.INTEGER, Type.NUMBER):
        return _number(kind, text, bounds)
    if kind is Type.PATH:
        return _path(text, places)
    if kind is Type.CHOICE:
        return _choice(text, bounds.choices)
    if kind is Type.FLAG:
        if text.lower() not in _FLAGS:
            raise ValueError(f"must be yes or no, not {quoted(text)}")
        return _FLAGS[text.lower()]
    if kind is Type.LIST:
        return tuple(item for item in (part.strip() for part in text.split(",")) if item)
    if kind is Type.URL:
        return _web_address(text)
    if kind is Type.DATABASE_URL:
        return _database_address(text)
    if kind is Type.NAME and text and not _NAME.fullmatch(text):
        raise ValueError(f"must be letters, digits and . _ : @ - (at most 128 of them), not {quoted(text)}")
    return text


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def in_seconds(text: str) -> str:
    """A time as 90s, 45m, 12h, 30d or 4w, in seconds; another text as it is."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    return str(int(found[1]) * _UNITS[found[2]]) if found else text


def quoted(text: str) -> str:
    """A value as a message shows it: short, one line, without secrets."""
    text = one_line(redact(text))
    return f"'{text}'" if len(text) <= 80 else f"'{text[:76]}...'"


def as_text(value: object) -> str:
    """A value given as a Python or JSON object, as it would stand in an ini file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if isinstance(value, enum.Enum):
        return str(value.value)
    return str(value)


def nearest(word: str, known: Sequence[str]) -> Optional[str]:
    """The known word most like `word`, or None where nothing comes near."""
    found = difflib.get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    return next((name for name in known if name.lower() == found[0]), None) if found else None


def _number(kind: Type, text: str, bounds: Bounds) -> Union[int, float]:
    pattern = _INTEGER if kind is Type.INTEGER else _NUMBER
    if not pattern.fullmatch(text):
        raise ValueError(f"must be a {kind.value} ({_range(bounds)}), not {quoted(text)}")
    number: Union[int, float] = int(text) if kind is Type.INTEGER else float(text)
    low = -math.inf if bounds.minimum is None else bounds.minimum
    high = math.inf if bounds.maximum is None else bounds.maximum
    if not low <= number <= high or math.isinf(number):
        raise ValueError(f"must be {_range(bounds)}, not {quoted(text)}")
    return number


def _range(bounds: Bounds) -> str:
    if bounds.minimum is None and bounds.maximum is None:
        return "digits only"
    if bounds.maximum is None:
        return f"at least {bounds.minimum:g}"
    if bounds.minimum is None:
        return f"at most {bounds.maximum:.15g}"
    return f"from {bounds.minimum:g} to {bounds.maximum:.15g}"


def _choice(text: str, choices: Sequence[str]) -> str:
    for choice in choices:
        if choice.lower() == text.lower():
            return choice
    near = nearest(text, choices)
    hint = f"; did you mean {near}?" if near else ""
    raise ValueError(f"must be one of {', '.join(choices)}, not {quoted(text)}{hint}")


def _path(text: str, places: Places) -> Optional[Path]:
    if not text:
        return None
    if text == "~" or text.startswith("~/"):
        if places.home is None:
            raise ValueError(f"begins with ~, but this account has no home directory: {quoted(text)}")
        return places.home / text[2:]
    if text.startswith("~"):
        raise ValueError(f"names somebody's home directory: give the whole path, not {quoted(text)}")
    if places.start is None and not text.startswith("/"):
        raise ValueError(f"must be an absolute path here, not {quoted(text)}")
    return (places.start or Path("/")) / text


def _web_address(text: str) -> str:
    """An http or https address without a slash at its end; whoever needs a path appends it."""
    if not text or " " in text:
        raise ValueError(f"must be an address such as http://HOST:8080, not {quoted(text)}")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"is no address: {quoted(text)} ({error})") from None
    if parts.scheme not in ("http", "https") or "//" not in text:
        port = "" if re.search(":[0-9]+", text) or "/" in text else ":8080"
        hint = "" if "://" in text else f"; did you mean http://{quoted(text)[1:-1]}{port} ?"
        raise ValueError(f"must begin with http:// or https://, not {quoted(text)}{hint}")
    if "@" in parts.netloc:
        raise ValueError(f"must hold no user or password (a token file is for that): {quoted(text)}")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ValueError(f"must end with its host, port or path, not with ? or #: {quoted(text)}")
    _check_port(text)
    _check_host(parts.hostname or "", text)
    return urlunsplit(parts).rstrip("/")


def _check_port(text: str) -> None:
    parts = urlsplit(text)
    try:
        bad = parts.port == 0
    except ValueError:
        bad = True
    if bad or parts.netloc.endswith(":"):
        raise ValueError(f"has no valid port; one is a number from 1 to 65535: {quoted(text)}")


def _check_host(host: str, text: str) -> None:
    if not host:
        raise ValueError(f"names no host: {quoted(text)}; give one such as http://HOST:8080")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            raise ValueError(
                f"is no valid address: '{host}' is not an IPv6 address: {quoted(text)}"
            ) from None
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(
                f"is not valid: {quoted(text)}: {host} is not an IPv4 address; "
                f"a port follows a colon, did you mean {_with_colon(host, text)} ?"
            ) from None
    elif len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in host.rstrip(".").split(".")):
        raise ValueError(f"is no valid address: {quoted(host)} is not a host name: {quoted(text)}")


def _with_colon(host: str, text: str) -> str:
    """What the writer of `http://10.1.2.3.8080` meant is plain; of `http://11.111.111.8080` it is not."""
    scheme = urlsplit(text).scheme
    front, _, last = host.rpartition(".")
    try:
        ipaddress.IPv4Address(front)
    except ValueError:
        front = "HOST"
    return (
        f"{scheme}://{front}:{last}"
        if last.isdigit() and 255 < int(last) < 65536
        else f"{scheme}://HOST:8080"
    )


def _database_address(text: str) -> str:
    """`sqlite:///PATH` (three slashes and a relative path, or four) or `postgresql://[USER[:PASSWORD]@][HOST][:PORT]/NAME`."""
    if not text:
        return text
    shown = quoted(
        re.sub(r"://.*@", f"://{HIDDEN}@", text)
    )  # a password may hold any character here: the address is wrong
    try:
        parts = urlsplit(text)
        bad_port = parts.port == 0
    except ValueError:
        raise ValueError(f"is no address or has no valid port (1 to 65535): {shown}") from None
    if parts.scheme == "sqlite":
        if parts.netloc or len(parts.path) < 2:
            raise ValueError(f"must be sqlite:///FILE (three slashes), not {shown}")
    elif parts.scheme not in ("postgres", "postgresql"):
        raise ValueError(f"must be sqlite:///FILE or postgresql://USER@HOST/NAME, not {shown}")
    elif bad_port:
        raise ValueError(f"has no valid port (1 to 65535): {shown}")
    elif len(parts.path) < 2 or "/" in parts.path[1:]:
        raise ValueError(f"names no database: {shown}; write postgresql://USER@HOST/NAME")
    return text


def holds_password(address: str) -> bool:
    """Whether a database address carries a password, before the @ or as a parameter."""
    parts = urlsplit(address)
    return bool(parts.password) or "password" in parse_qs(parts.query)


def without_password(address: str) -> str:
    parts = urlsplit(address)
    if "password" in parse_qs(parts.query):
        return HIDDEN
    return redact(address)
