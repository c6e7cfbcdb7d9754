"""SPD: .spd files are looked into after stage-in, and payloads run in the experiment's software environment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Optional

from pilot import sourcing
from pilot.jobrun import JobRun
from pilot.plugins.base import ExperimentPlugin
from protocol import spd
from protocol.errors import BY_NAME, ErrorEntry, PilotageError
from protocol.messages.pilots import InputFile

SUFFIX = ".spd"
RUNTIMES = ("apptainer", "singularity")
"""Programs that run a container, the preferred one first."""


ERROR_PATTERNS = r"""
[fairroot fatal]
regex = ^\[FATAL\] \S.*
error = PAYLOAD_ABORTED
example = [FATAL] FairRun::Init: no geometry
"""
"""What SpdRoot's framework says before it aborts."""


class Plugin(ExperimentPlugin):
    def check_job(self, job: JobRun) -> None:
        """A set-up that is not on this node is no fault of the payload: the job goes elsewhere."""
        self._kind(job)
        setup = self._setup()
        if setup is not None and not os.access(setup, os.R_OK):
            raise PilotageError(
                "SETUP_FAILED", f"software_setup {setup} is not on this node, or not readable"
            )
        if self._image():
            _runtime()

    def check_input(self, job: JobRun, file: InputFile, path: Path) -> None:
        """Headers, trailers, size and kind of an .spd file; other inputs pass."""
        if file.lfn.endswith(SUFFIX):
            spd.check(path, self._kind(job))

    def in_environment(self, command: list[str], workdir: Path) -> list[str]:
        """After the set-up script, in the container; each only if it is set."""
        setup = self._setup()
        if setup is not None:
            command = sourcing.after(setup, command)
        if self._image():
            command = [*self._container(workdir), *command]
        return command

    def explain_failure(self, job: JobRun, exit_code: int, stderr_tail: str) -> Optional[ErrorEntry]:
        """What the shell around a payload says in its exit code."""
        name = sourcing.explain(exit_code, stderr_tail) if self._setup() is not None else None
        return BY_NAME[name] if name is not None else None

    def error_patterns(self) -> str:
        return ERROR_PATTERNS

    def _container(self, workdir: Path) -> list[str]:
        binds = ["--bind", f"{workdir}"]
        setup = self._setup()
        if setup is not None:
            binds += ["--bind", f"{setup.parent}:{setup.parent}:ro"]
        return [_runtime(), "exec", "--pwd", str(workdir), *binds, self._image()]

    def _kind(self, job: JobRun) -> Optional[spd.Kind]:
        """What the task's data type asks for; a task without one takes every kind."""
        if not job.spec.data_type:
            return None
        try:
            return spd.Kind(job.spec.data_type)
        except ValueError:
            known = ", ".join(kind.value for kind in spd.Kind)
            raise PilotageError(
                "SPD_WRONG_KIND", f"SPD knows no data type {job.spec.data_type[:40]!a}; there are {known}"
            ) from None

    def _setup(self) -> Optional[Path]:
        return self.settings.optional_path("spd", "software_setup")

    def _image(self) -> str:
        return self.settings.text("spd", "container_image")


def _runtime() -> str:
    for name in RUNTIMES:
        found = shutil.which(name)
        if found:
            return found
    raise PilotageError(
        "SETUP_FAILED", f"container_image is set, and none of {', '.join(RUNTIMES)} is on PATH"
    )
