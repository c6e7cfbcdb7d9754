"""bubblewrap: the command in namespaces of its own, on the programs of the node or on an unpacked image.

It sees its own directory, what it may read, and the system: of /etc a list of harmless entries, of /home, /root, /tmp and /var
nothing. Processes are its own alone, and all of them end when the first one does, or when the pilot does. There is no network
unless the queue allows it. It needs no rights and no daemon; as root the command keeps no capability.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Optional

from pilot.plugins.executors import base
from pilot.plugins.executors.base import Run
from protocol.errors import PilotageError
from protocol.redaction import one_line

PROGRAM = "bwrap"

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/cvmfs")
ETC = (
    *("alternatives", "bash.bashrc", "ca-certificates", "crypto-policies", "environment-modules", "fonts", "group", "hosts"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "lmod", "localtime", "machine-id", "mime.types", "nsswitch.conf", "passwd"),
    *("pki", "profile", "profile.d", "protocols", "resolv.conf", "services", "ssl", "timezone", "OpenCL", "vulkan"),
)  # fmt: skip
"""What programs look for in there. No list of what is secret: nobody knows what a site keeps in /etc."""
DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
"""Of GPUs."""


class Executor(base.Executor):
    isolates = True
    takes_images = True

    def unusable(self) -> Optional[str]:
        found = self.find(PROGRAM)
        if found is None:
            return f"{PROGRAM} (bubblewrap) is not on PATH"
        return _tried(found)

    def check(self, run: Run) -> None:
        if run.image and not (run.image.startswith("/") and Path(run.image).is_dir()):
            shown = one_line(run.image[:200])
            raise PilotageError(
                "IMAGE_NOT_FOUND", f"{shown} is no directory on this node: bubblewrap takes unpacked images"
            )

    def wrap(self, run: Run) -> Run:
        scratch = self.scratch(run)
        words = [self.program(PROGRAM), *_NAMESPACES]
        words += [] if run.network else ["--unshare-net"]
        words += _unpacked(Path(run.image)) if run.image else [*_system(), *_python()]
        words += ["--proc", "/proc", "--dev", "/dev"]
        words += (
            _bound("--dev-bind", (path for pattern in DEVICES for path in sorted(glob(pattern))))
            if run.gpus
            else []
        )
        # In this order: what is bound later lies on top, and the directory itself is often below /tmp.
        words += ["--bind", str(scratch), "/tmp", "--bind", str(scratch), "/var/tmp"]
        words += ["--bind", str(run.directory), str(run.directory)]
        # Whether it is there or not: a command without one of these could put a link in its place, for the next one.
        words += [word for path in run.readable for word in ("--ro-bind", str(path), str(path))]
        # What the directories above these lie in is memory of the node.
        words += ["--remount-ro", "/", "--chdir", str(run.directory)]
        inside = {name: value for name, value in run.environment.items() if _NOT_OUTSIDE.match(name)}
        words += [word for name, value in inside.items() for word in ("--setenv", name, value)]
        environment = {name: value for name, value in run.environment.items() if name not in inside}
        environment |= {"HOME": str(run.directory), "TMPDIR": "/tmp"}
        return replace(run, command=(*words, "--", *run.command), environment=environment)

    def explain_failure(self, exit_code: int, stderr_tail: str) -> Optional[str]:
        """Its own words begin with its name; it then ends with 1."""
        last = stderr_tail.rstrip().rpartition("\n")[2]
        if exit_code != 1 or not last.startswith(f"{PROGRAM}: "):
            return None
        if f"{PROGRAM}: execvp " in last:
            return "TRANSFORM_NOT_FOUND" if "No such file" in last else "BAD_COMMAND"
        return (
            "CONTAINER_USER_NAMESPACE_FAILED"
            if "namespace" in last or "uid map" in last
            else "CONTAINER_FAILED"
        )


_NOT_OUTSIDE = re.compile(
    r"LD_|GLIBC_|MALLOC_|(GCONV_PATH|GETCONF_DIR|HOSTALIASES|LOCALDOMAIN|LOCPATH|NIS_PATH|NLSPATH|RESOLV_HOST_CONF|RES_OPTIONS|TZDIR)$"
    r"|S(LURM|RUN|ALLOC)|PMI|PRTE|OMPI|OPAL|MPI|HYDRA|I_MPI"
)
"""What the task says in these variables would move programs outside of the container too: the loader's, which it leaves aside for
setuid programs as well, and those of what starts parallel programs. On the command line they reach the inside alone."""

_NAMESPACES = (
    *("--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--cap-drop", "ALL"),
)


def _system() -> Iterator[str]:
    """The programs of the node; /bin and its like are links on most."""
    for path in map(Path, SYSTEM):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from _bound("--ro-bind", (f"/etc/{name}" for name in ETC))


def _unpacked(image: Path) -> Iterator[str]:
    """What an image holds, piece by piece: into one that is bound as a whole, and not to be changed, nothing else can be bound."""
    for path in sorted(image.iterdir()):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), f"/{path.name}")
        elif path.name not in ("proc", "dev", "sys", "tmp"):
            yield from ("--ro-bind", str(path), f"/{path.name}")


def _python() -> Iterator[str]:
    """The interpreter for {python}, wherever it lies; but not all of the node for its sake."""
    for place in dict.fromkeys((sys.base_prefix, sys.prefix)):
        if len(Path(place).parts) > 2:
            yield from _bound("--ro-bind", [place])


def _bound(how: str, paths: Iterable[object]) -> Iterator[str]:
    for path in map(str, paths):
        if os.path.exists(path):
            yield from (how, path, path)


def _tried(program: str) -> Optional[str]:
    """Whether this account may make namespaces on this node: tried, since that depends on many things."""
    import subprocess  # late: once in a pilot's life

    command = [
        program,
        *_NAMESPACES,
        "--unshare-net",
        *_system(),
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--",
        "true",
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} cannot be used: {error}"
    return None if done.returncode == 0 else f"{program} does not work here: {one_line(done.stderr[:300])}"
