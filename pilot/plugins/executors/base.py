"""What an executor is: it puts something around a command, so that the command runs elsewhere, or sees less of the node."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from pilot.accounts import Account
from protocol.errors import PilotageError


@dataclass(frozen=True)
class Run:
    """A command and what it is to be given. An executor answers with another Run: its own command, with this one inside."""

    command: tuple[str, ...]
    directory: Path
    """Its current directory, which it may write."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is said for this command in particular; it reaches the command in whatever it runs."""
    inherited: Mapping[str, str] = field(default_factory=dict)
    """The environment of the node, which a container of another system rather does not see."""
    readable: tuple[Path, ...] = ()
    """Shown to it where they lie on the node, not to be changed: inputs, shipped code, what the queue names."""
    image: str = ""
    network: bool = False
    cores: int = 1
    gpus: int = 0
    ranks: int = 0
    """Copies of it that work together over all nodes; 0: one per node. For the starters of parallel programs alone."""
    scratch: Optional[Path] = None
    """For its /tmp; not in its own directory, where what ran before could have put a link of this name."""
    account: Optional[Account] = None
    """Whose rights it has; None: ours."""

    @property
    def whole_environment(self) -> dict[str, str]:
        return {**self.inherited, **self.environment}


class Executor:
    """An executor is a class `Executor` in a module of this folder that derives from this one; it overrides what differs."""

    isolates = False
    """The command sees neither processes nor files of others, the pilot's included."""
    takes_images = False
    starts_ranks = False
    """It starts a parallel program: pre-, co- and post-processes do without it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` is that of the node: where programs are looked for."""
        self.environ = environ

    def unusable(self) -> Optional[str]:
        """None, or in words why not on this node."""
        return None

    def check(self, run: Run) -> None:
        """Before inputs are copied for nothing: raise what could be known to go wrong."""

    def wrap(self, run: Run) -> Run:
        """The same command, run by this executor."""
        return run

    def explain_failure(self, exit_code: int, stderr_tail: str) -> Optional[str]:
        """The name of the error if it is the executor that failed, not the command; else None."""
        return None

    # -- for executors ------------------------------------------------------------------------------------------------------

    def find(self, *names: str) -> Optional[str]:
        """The path of the first of these programs that is on this node."""
        found = (shutil.which(name, path=self.environ.get("PATH")) for name in names)
        return next((path for path in found if path), None)

    def program(self, *names: str) -> str:
        """The same; NODE_UNFIT if there is none, though `unusable` did not say so before."""
        found = self.find(*names)
        if found is None:
            raise PilotageError("NODE_UNFIT", f"none of {', '.join(names)} is on PATH any more")
        return found

    def scratch(self, run: Run) -> Path:
        """The directory that the command sees as its /tmp; without a place of its own, a new one in the command's directory."""
        if run.scratch is None:
            return Path(tempfile.mkdtemp(prefix=".scratch-", dir=run.directory))
        run.scratch.mkdir(mode=0o700, exist_ok=True)
        return run.scratch
