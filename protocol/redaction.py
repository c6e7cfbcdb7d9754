"""What text loses before a person reads it: secrets, and characters that could forge a line or drive a terminal."""

from __future__ import annotations

import re
import threading
from functools import lru_cache

HIDDEN = "(hidden)"

SHORTEST_SECRET = 6
"""Registered values below this many characters are not hunted for: a secret "1" would blot out every 1 of a log."""

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, among them CR, LF, ESC and the one-byte CSI
    "\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"  # separators of lines, and marks that turn the order of reading
    "\ud800-\udfff]"  # lone surrogates: what was no UTF-8
)
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# Each pattern keeps its group "keep" and loses the rest. They run in linear time on hostile text: no pattern begins
# with a repetition, and no two repetitions that follow each other share a character.
_PATTERNS = (
    re.compile(
        r"(?P<keep>authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|digest|negotiate)\s+)?)[^\s\"',;]+",
        re.I,
    ),
    re.compile(r"(?P<keep>\bbearer\s+)[A-Za-z0-9._~+/=:-]{8,}", re.I),
    re.compile(r"(?P<keep>://[^\s/:@?#]*:)[^\s/?#]*(?=@)"),
    re.compile(
        r"(?P<keep>(?:token|password|passwd|secret|api_?key)(?:\"\s*:\s*\"|'\s*:\s*'|=[\"']?))[^\s\"',;&}]+",
        re.I,
    ),
    re.compile(r"(?P<keep>(?:-token|_token|password|passwd)\s*:\s*)[^\s\"',;&}]+", re.I),
)
_HINTS = re.compile(r"authorization|bearer|://|token|passw|secret|api_?key", re.I)
_SECRET_NAME = re.compile(r"(?:token|password|passwd|secret|secret_?key|api_?key|nonce)$", re.I)


def one_line(text: str) -> str:
    """The same text with CR, LF, ANSI escapes, direction marks and the like spelt out, so that it stays one line."""
    return _UNSAFE.sub(_spell, text)


def lines(text: str) -> str:
    """As `one_line`, but the ends of lines stay, and tabs become blanks."""
    return "\n".join(one_line(line) for line in text.expandtabs().split("\n"))


def _spell(match: re.Match[str]) -> str:
    character = match.group()
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def redact(text: str) -> str:
    """Hide what looks like a secret: Authorization headers, bearer tokens, the password in a URL, `token=…`."""
    if _HINTS.search(text) is None:
        return text
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<keep>{HIDDEN}", text)
    return text


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Whether a field or setting of this name holds a secret itself; `token_file` does not, it only says where."""
    return _SECRET_NAME.search(name) is not None


class Secrets:
    """The secret values this process knows; they are hidden wherever they turn up. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: tuple[str, ...] = ()

    def add(self, value: str) -> None:
        """From now on `value` is hidden. A caller with a passing secret (an attempt token) discards it at its end."""
        if len(value) >= SHORTEST_SECRET:
            with self._lock:
                # The longest first: a secret that contains another one is to vanish whole.
                self._values = tuple(sorted({*self._values, value}, key=len, reverse=True))

    def discard(self, value: str) -> None:
        with self._lock:
            self._values = tuple(known for known in self._values if known != value)

    def hide(self, text: str) -> str:
        """`text` without registered secrets and without what `redact` recognises."""
        for value in self._values:
            if value in text:
                text = text.replace(value, HIDDEN)
        return redact(text)
