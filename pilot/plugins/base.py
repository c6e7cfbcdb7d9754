"""What an experiment may do differently: each hook is a moment, with a harmless default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from pilot.jobrun import JobRun
from pilot.node import Node
from protocol.errors import ErrorEntry
from protocol.messages.pilots import InputFile, Step
from protocol.settings import Settings


class ExperimentPlugin:
    """A plugin is a class `Plugin(ExperimentPlugin)` in a module of this folder; it overrides only what differs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def pilot_settings(self) -> Mapping[str, object]:
        """What the experiment wants otherwise than the pilot's settings say, as {"validation.tools": "apptainer"}.

        Settings that may be set per experiment; the queue may still say otherwise.
        """
        return {}

    def check_node(self, node: Node) -> None:
        """Before the first getJob; raise NODE_UNFIT to end the pilot and give the slot back."""

    def check_job(self, job: JobRun) -> None:
        """After getJob, before any transfer; raise to fail the job."""

    def check_input(self, job: JobRun, file: InputFile, path: Path) -> None:
        """After a file was copied and its checksums agree; raise to fail the job."""

    def payload_command(self, job: JobRun, workdir: Path) -> list[str]:
        """The program and arguments to start in `workdir`."""
        return self.in_environment(job.command(), workdir)

    def in_environment(self, command: list[str], workdir: Path) -> list[str]:
        """A command of the payload, or of one of its steps, within the experiment's software."""
        return command

    def steps(self, job: JobRun) -> list[Step]:
        """Pre-, co- and post-processes beside those that the task names, and before them."""
        return []

    def payload_environment(self, job: JobRun, workdir: Path) -> dict[str, str]:
        """What is added to the payload's environment."""
        return job.environment()

    def explain_failure(self, job: JobRun, exit_code: int, stderr_tail: str) -> Optional[ErrorEntry]:
        """A nearer error than PAYLOAD_FAILED, PAYLOAD_KILLED, …; None to leave it at that."""
        return None

    def error_patterns(self) -> str:
        """Further patterns of known errors, as text in the format of pilot/patterns.ini; before those, after the site's."""
        return ""

    def job_metrics(self, job: JobRun) -> dict[str, float]:
        """A few numbers that go with heartbeats and with the end of the job."""
        return {}

    def log_files(self, workdir: Path) -> list[Path]:
        """What the log archive keeps beside stdout, stderr and the pilot's own records."""
        return []
