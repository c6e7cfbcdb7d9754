"""What the processes of a payload are doing, for who has to find out why it hangs: the tree, open files, stacks; all bounded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot import proc
from pilot.proc import Stat
from protocol.redaction import one_line

MOST_PROCESSES = 30
MOST_FILES = 20
MOST_STACKS = 3
"""Of the processes that wait for no other one of the payload."""
STACK_SECONDS = 15.0
STACK_CHARACTERS = 20_000

STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a device",
    "T": "stopped",
    "t": "traced",
    "Z": "dead",
}
DEBUGGERS = (
    ("py-spy", "dump", "--pid"),
    ("gdb", "-nx", "-batch", "-iex", "set auto-load off", "-ex", "thread apply all backtrace 40", "-p"),
    ("pstack",),
    ("eu-stack", "-p"),
)
"""The first that is there and answers; the number of the process is added. py-spy knows Python alone."""


def of(processes: Sequence[Stat], environ: Mapping[str, str], with_debugger: bool = True) -> str:
    """Text of some pages. Without a debugger no program of ours touches the processes: only the kernel is asked."""
    parents = {each.parent for each in processes}
    shown = [about(each) for each in processes[:MOST_PROCESSES]]
    if len(processes) > MOST_PROCESSES:
        shown.append(f"... and {len(processes) - MOST_PROCESSES} more")
    for each in [each for each in processes if each.pid not in parents][:MOST_STACKS]:
        shown.append(f"stack of {each.pid}:\n{stack(each.pid, environ, with_debugger)}")
    return "\n\n".join(shown) + "\n"


def about(process: Stat) -> str:
    """One process: its command, in which call of the kernel it is, and what it has open."""
    place = Path(f"/proc/{process.pid}")
    facts = [
        f"process {process.pid}, child of {process.parent}: {command(process.pid)}",
        f"  {STATES.get(process.state, process.state)} in {_text(place / 'wchan').strip() or 'user code'}",
        f"  {process.cpu_ticks / proc.TICKS:.2f} s of CPU time, {process.pages * proc.PAGE >> 20} MiB of memory",
    ]
    return "\n".join([*facts, *(f"  {each}" for each in open_files(process.pid))])


def command(pid: int) -> str:
    """Its program and arguments, in a line."""
    return one_line(_text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()[:500])


def open_files(pid: int) -> list[str]:
    place = f"/proc/{pid}/fd"
    try:
        numbers = sorted(map(int, os.listdir(place)))
    except OSError:
        return ["its open files are not shown to us"]
    found = []
    for number in numbers[:MOST_FILES]:
        try:
            found.append(f"{number} -> {one_line(os.readlink(f'{place}/{number}')[:300])}")
        except OSError:
            continue  # closed meanwhile
    return found + ([f"... and {len(numbers) - MOST_FILES} more"] if len(numbers) > MOST_FILES else [])


def stack(pid: int, environ: Mapping[str, str], with_debugger: bool) -> str:
    """In the program, where there is a debugger on this node that may look; and in the kernel, for root."""
    parts = [_text(Path(f"/proc/{pid}/stack")).strip()]
    for program, *options in DEBUGGERS if with_debugger else ():
        path = shutil.which(program, path=environ.get("PATH"))
        told = _told([path, *options, str(pid)], environ) if path else ""
        if told:
            parts.append(f"{program} says:\n{told}")
            break
    return "\n".join(part for part in parts if part) or "not shown to us, and no debugger that could"


def _told(command: Sequence[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=STACK_SECONDS,
            env={**environ, "DEBUGINFOD_URLS": ""}, cwd="/",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    text = done.stdout.decode(errors="backslashreplace").strip()
    return "" if done.returncode else text[:STACK_CHARACTERS]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace")
    except OSError:
        return ""
