"""Commands after a set-up script: a shell sources it and then becomes the command, so that both have one environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

FAILED_SETUP = "pilotage: the software set-up failed"
FAILED_SETUP_CODE = 97
SHELL_NAME = "pilotage-setup"
"""What the shell calls itself in its messages."""

WITH_SETUP = f"""\
_pilotage_setup=$1; shift; _pilotage_command=("$@"); set --
. "$_pilotage_setup" || {{ echo "{FAILED_SETUP}" >&2; exit {FAILED_SETUP_CODE}; }}
exec "${{_pilotage_command[@]}}"
"""
"""Sources the script $1 without arguments of its own, then becomes the command that the other words are."""
PROGRAMS = "bin"
"""Is put before PATH, in the directory of the software."""
WITH_PROGRAMS = f'if [ -d "$1/{PROGRAMS}" ]; then export PATH="$1/{PROGRAMS}:$PATH"; fi; shift\n'
"""Before that, where $1 is the directory of the software."""
NO_SETUP = "/dev/null"

SETUP = "setup.sh"
"""What is sourced, in the directory of the software."""
VARIABLE = "PILOTAGE_SOFTWARE"
"""Tells set-up and payload where the software lies."""


class Software(NamedTuple):
    """The software of a task on this node."""

    directory: Path
    setup: Optional[Path]
    """The script to source; None: there is none."""

    def before(self, command: Sequence[str]) -> list[str]:
        """The same command after the set-up. It travels as arguments, never as text that a shell would read."""
        words = (str(self.directory), str(self.setup or NO_SETUP))
        return ["bash", "-c", WITH_PROGRAMS + WITH_SETUP, SHELL_NAME, *words, *command]


def after(setup: Path, command: Sequence[str]) -> list[str]:
    """The same command after a script alone."""
    return ["bash", "-c", WITH_SETUP, SHELL_NAME, str(setup), *command]


def explain(exit_code: int, stderr_tail: str) -> Optional[str]:
    """The error that the shell around a command says in its exit code; None: the exit code is the command's own."""
    if exit_code == FAILED_SETUP_CODE and FAILED_SETUP in stderr_tail:
        return "SETUP_FAILED"
    if exit_code in (126, 127) and f"{SHELL_NAME}: line " in stderr_tail:
        return "TRANSFORM_NOT_FOUND" if exit_code == 127 else "BAD_COMMAND"
    return None
