"""Locks between the pilots of a node, waited for with an eye on whether the work is wanted still."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

from filelock import FileLock, Timeout

LOOK_SECONDS = 0.5


@contextmanager
def alone(lock_file: Path, seconds: float, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock. Who waits for it calls `check` now and then, and raises Timeout after `seconds`; OSError if it cannot be had."""
    lock = FileLock(lock_file, mode=0o600, thread_local=False)
    give_up_at = time.monotonic() + seconds
    while True:
        check()
        try:
            lock.acquire(timeout=LOOK_SECONDS)
            break
        except Timeout:
            if time.monotonic() >= give_up_at:
                raise
    try:
        yield
    finally:
        lock.release()
