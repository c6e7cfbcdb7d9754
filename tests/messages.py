"""The classes of protocol.messages by their names."""

from __future__ import annotations

from typing import Any

from protocol.messages import pilots, requests, views


def message(name: str) -> Any:
    return next(vars(module)[name] for module in (pilots, requests, views) if name in vars(module))
