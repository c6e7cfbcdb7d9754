"""The user's side: a Python API over HTTP and the command `pilotage`."""
