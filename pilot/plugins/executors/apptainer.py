"""apptainer, or singularity where that is what a node has: the command in an image, which is a file, a directory or an address.

It sees its own directory, what it may read, and the image: no home, no /tmp of others, no processes of others, and of the node's
environment nothing. The network is the node's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Optional

from pilot.plugins.executors import base
from pilot.plugins.executors.base import Run
from protocol.errors import PilotageError
from protocol.redaction import one_line

RUNTIMES = ("apptainer", "singularity")
CVMFS = Path("/cvmfs")

_FAILURES = (
    ("CONTAINER_PULL_FAILED", r"(while|failed to) (pulling|pull|making image from oci|get checksum)"),
    ("IMAGE_NOT_FOUND", r"could not open image|no such file or directory.*image|image .* (not found|doesn't exist)"),
    ("CONTAINER_IMAGE_MOUNT_FAILED", r"while mounting image|squashfuse|failed to mount"),
    ("CONTAINER_USER_NAMESPACE_FAILED", r"user namespace|newuidmap|/proc/self/uid_map"),
    ("CONTAINER_BIND_FAILED", r"(mount|bind) .*(destination|source|hook)"),
)  # fmt: skip
"""What the runtime says, first that fits."""


class Executor(base.Executor):
    isolates = True
    takes_images = True

    def unusable(self) -> Optional[str]:
        return None if self.find(*RUNTIMES) else f"none of {', '.join(RUNTIMES)} is on PATH"

    def check(self, run: Run) -> None:
        if not run.image:
            raise PilotageError("IMAGE_NOT_FOUND", "neither the task nor the queue names an image")
        if run.image.startswith("-"):
            raise PilotageError("IMAGE_NOT_FOUND", f"{one_line(run.image[:200])} is no image")
        if "://" not in run.image and not Path(run.image).exists():
            raise PilotageError("IMAGE_NOT_FOUND", f"{one_line(run.image[:200])} is not on this node")

    def wrap(self, run: Run) -> Run:
        program = self.program(*RUNTIMES)
        scratch = self.scratch(run)
        binds = [f"{run.directory}:{run.directory}:rw"]
        binds += [f"{path}:{path}:ro" for path in (*run.readable, *filter(Path.is_dir, (CVMFS,)))]
        for path in (run.directory, *run.readable):
            if {":", ","} & set(str(path)):
                raise PilotageError(
                    "CONTAINER_BIND_FAILED", f"{one_line(str(path))}: a colon or comma in a path"
                )
        words = [
            program,
            "exec",
            "--containall",
            "--no-home",
            "--workdir",
            str(scratch),
            "--pwd",
            str(run.directory),
        ]
        words += [word for bind in binds for word in ("--bind", bind)]
        words += ["--nv"] if run.gpus else []
        # On the command line all accounts of the node could read the values.
        name = Path(program).name.upper()
        passed = {f"{name}ENV_{key}": value for key, value in run.environment.items()}
        return replace(run, command=(*words, run.image, *run.command), environment=passed)

    def explain_failure(self, exit_code: int, stderr_tail: str) -> Optional[str]:
        """It ends with 255 and the word FATAL when it could not start the command at all."""
        if exit_code != 255 or "FATAL:" not in stderr_tail:
            return None
        said = stderr_tail[stderr_tail.rindex("FATAL:") :]
        return next(
            (name for name, words in _FAILURES if re.search(words, said, re.IGNORECASE)), "CONTAINER_FAILED"
        )
