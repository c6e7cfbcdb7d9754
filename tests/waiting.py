"""Wait for something by asking again, with a deadline; never by a bare sleep."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], timeout: float = 10.0, what: str = "", interval: float = 0.02
) -> T:
    """Ask until the answer is true and return it; after `timeout` seconds fail with the last thing seen.

    An OSError or AssertionError of the predicate counts as "not yet" (a server not up, a file not there); any other
    exception is a mistake in the test and passes through.
    """
    name = what or getattr(predicate, "__name__", "the predicate")
    started = time.monotonic()
    while True:
        try:
            seen: object = predicate()
            if seen:
                return seen  # type: ignore[return-value]
        except (OSError, AssertionError) as error:
            seen = f"{type(error).__name__}: {error}"
        waited = time.monotonic() - started
        if waited >= timeout:
            raise AssertionError(f"waited {waited:.1f} s for {name}; last seen: {seen!r}")
        time.sleep(min(interval, max(0.0, timeout - waited)))
