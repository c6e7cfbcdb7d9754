"""The agent on a worker node: pull a job, run it, report it."""
