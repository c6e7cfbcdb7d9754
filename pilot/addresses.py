"""Addresses of files as this node has to use them: the rules of a queue whose nodes reach a storage by another way than others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol.errors import PilotageError
from protocol.redaction import one_line

ARROW = "->"


class Rule(NamedTuple):
    """An address that begins with `prefix`, up to a slash, begins with `replacement` on this node."""

    prefix: str
    replacement: str


def rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Of "root://eos.example//store -> file:///eos/store"; BAD_SETTINGS for a text that is none."""
    return tuple(map(_rule, texts))


def _rule(text: str) -> Rule:
    prefix, arrow, replacement = (word.strip() for word in text.partition(ARROW))
    if not arrow or ":" not in prefix or ":" not in replacement:
        shown = ascii(one_line(text[:200]))
        raise PilotageError(
            "BAD_SETTINGS",
            f"[copytools] addresses: {shown} is no rule; write root://eos.example//store {ARROW} file:///eos/store",
        )
    return Rule(prefix.rstrip("/"), replacement.rstrip("/"))


def directory(url: str, known: Iterable[Rule]) -> str:
    """The same of a storage, which a rule may name itself; "" for none."""
    return rewritten(f"{url.rstrip('/')}/", known).rstrip("/") if url else ""


def rewritten(url: str, known: Iterable[Rule]) -> str:
    """By the first rule that fits; else as it is."""
    for rule in known:
        if url.startswith(f"{rule.prefix}/"):
            return rule.replacement + url[len(rule.prefix) :]
    return url
