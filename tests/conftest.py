"""The frame of all tests: component tests, a real Postgres, other file systems; fixtures of one part lie in its folder.

Imports nothing of server/ or client/ here: the unit tests of protocol, copytools and pilot also run on Python 3.9.
"""

import os
import signal
from typing import Iterator

import pytest

# A shell starts what it puts into the background with SIGINT ignored, and every child inherits that: a script could then
# not even trap it. A run of the tests in the background is to see what one in the foreground sees.
signal.signal(signal.SIGINT, signal.default_int_handler)

# components last: it imports postgres and filesystems, and pytest wants to be the first that imports a plugin.
pytest_plugins = [
    "pytester",
    "tests.postgres",
    "tests.filesystems",
    "tests.running_server",
    "tests.faulty_server",
    "tests.components",
]


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A command that runs within the tests may set it for its process, which is that of all tests."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
