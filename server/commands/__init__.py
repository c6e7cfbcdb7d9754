"""The operator's commands that look at an installation itself, and not through its server."""
