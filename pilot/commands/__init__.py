"""Commands that work on a node: without rich, on Python 3.9."""
