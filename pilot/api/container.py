"""The Container API: run a command with a timer, a time-out and a container around it; for programs that are no pilot.

    from pilot.api import container
    done = container.run(["./reco", "in.spd"], Path("work"), executors=["bubblewrap"], readable=[Path("in")], timeout_seconds=600)
    done.exit_code, done.wall_seconds, done.cpu_seconds, done.timed_out

What the command started is ended with it, as a pilot does. It needs the standard library alone; in a shell, also from the
pilot's one file:

    PYTHONPATH=pilot.pyz python3 -m pilot.api.container --executor bubblewrap --timeout 600 --read in -- ./reco in.spd
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from pilot import process
from pilot.plugins.executors import Chain, Run, load
from pilot.text import tail_of
from protocol.errors import PilotageError

__all__ = ["Result", "run"]

TIMED_OUT, NOT_RUN = 124, 125
"""Exit codes of the command line, as timeout(1) and docker(1) have them."""


class Result(NamedTuple):
    """How a command ended, and what it took."""

    exit_code: int
    """Minus the signal that ended it."""
    timed_out: bool
    wall_seconds: float
    cpu_seconds: float
    memory_mb: float
    """The largest process; 0: not known."""
    stdout: Path
    stderr: Path
    error: str = ""
    """The name in the catalogue if the container failed, and not the command."""


def run(
    command: Sequence[str],
    directory: Path,
    *,
    executors: Sequence[str] = ("plain",),
    image: str = "",
    environment: Optional[Mapping[str, str]] = None,
    environ: Optional[Mapping[str, str]] = None,
    readable: Sequence[Path] = (),
    network: bool = False,
    gpus: int = 0,
    cores: int = 1,
    ranks: int = 0,
    timeout_seconds: Optional[float] = None,
    grace_seconds: float = 5.0,
    text_bytes: int = 0,
    name: str = "command",
) -> Result:
    """Run it to its end in `directory`, where its text goes into the new files NAME.stdout and NAME.stderr.

    `environment` reaches the command wherever it runs; `environ` is the node's, default: ours. What is printed beyond `text_bytes` is
    lost (0: no limit). After the time-out it has the grace to end by itself. PilotageError: it could not be started here.
    """
    environ = os.environ if environ is None else environ
    directory = directory.absolute()
    wanted = Run(
        command=tuple(command),
        directory=directory,
        environment=environment or {},
        inherited=dict(environ),
        readable=tuple(readable),
        image=image,
        network=network,
        cores=cores,
        gpus=gpus,
        ranks=ranks,
    )
    chain = _chain(executors, environ)
    chain.check(wanted)
    wrapped = chain.wrap(wanted)
    stdout, stderr = (directory / f"{name}.{stream}" for stream in ("stdout", "stderr"))
    started = process.start(
        wrapped.command, directory, wrapped.whole_environment, stdout, stderr, text_bytes, discards_text=True
    )
    try:
        code = started.wait(timeout_seconds, grace_seconds)
    except BaseException:  # Ctrl-C, say
        started.kill()
        started.wait()
        raise
    wall, used = time.monotonic() - started.started, started.used
    error = chain.explain_failure(code, tail_of(stderr)) or ""
    return Result(code, started.timed_out, wall, used.cpu_seconds, used.memory_mb, stdout, stderr, error)


def _chain(names: Sequence[str], environ: Mapping[str, str]) -> Chain:
    chain = load(names, environ)
    reason = chain.unusable()
    if reason is not None:
        raise PilotageError("NODE_UNFIT", reason)
    return chain


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line: the command's exit code; and on standard error, or in a file, what it took."""
    given = _options().parse_args(arguments)
    try:
        with process.adopting_orphans():
            done = run(
                given.command,
                Path.cwd(),
                executors=given.executor or ("plain",),
                image=given.image,
                environment=dict(pair.partition("=")[::2] for pair in given.env),
                readable=given.read,
                network=given.network,
                gpus=given.gpus,
                timeout_seconds=given.timeout,
                grace_seconds=given.grace,
                name=given.name,
            )
    except PilotageError as error:
        sys.stderr.write(f"{error.name}: {error}\n")
        return NOT_RUN
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in done._asdict().items()}
    report = f"{json.dumps(plain)}\n"
    if given.report:
        given.report.write_text(report)
    else:
        sys.stderr.write(report)
    if done.timed_out:
        return TIMED_OUT
    return done.exit_code if done.exit_code >= 0 else 128 - done.exit_code


def _options() -> argparse.ArgumentParser:
    """Not click: this module needs the standard library alone."""
    parser = argparse.ArgumentParser(
        prog="python -m pilot.api.container",
        description="Run a command in a container, with a timer and a time-out.",
        epilog="example: python -m pilot.api.container --executor bubblewrap --timeout 60 -- ./reco in.spd",
    )
    add = parser.add_argument
    add(
        "--executor",
        action="append",
        help="plain, bubblewrap, apptainer, srun, mpiexec; the first is the outermost",
    )
    add("--image", default="", help="container image")
    add("--timeout", type=float, metavar="SECONDS", help="end the command then; exit code 124")
    add("--grace", type=float, default=5.0, metavar="SECONDS", help="between SIGTERM and SIGKILL [5]")
    add(
        "--read",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="shown read-only in the container",
    )
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of the command")
    add("--network", action="store_true", help="bubblewrap: with the node's network")
    add("--gpus", type=int, default=0, help="with the node's GPUs")
    add("--name", default="command", help="NAME.stdout and NAME.stderr take what it prints [command]")
    add("--report", type=Path, metavar="FILE.json", help="write here what it took [standard error]")
    add("command", nargs="+", metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
