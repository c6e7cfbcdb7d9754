"""The frame of all tests: component tests, a real Postgres, other file systems; fixtures of one part lie in its folder.

Imports nothing of server/ or client/ here: the unit tests of protocol, copytools and pilot also run on Python 3.9.
"""

# components last: it imports postgres and filesystems, and pytest wants to be the first that imports a plugin.
pytest_plugins = [
    "pytester",
    "tests.postgres",
    "tests.filesystems",
    "tests.running_server",
    "tests.faulty_server",
    "tests.components",
]
