"""Whether this node is fit for work: every check is made, and all that is wrong is told, before the first job is asked for."""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

import copytools
from copytools.base import CopyTool, FileTool
from pilot import accounts, node
from pilot.node import Node
from pilot.plugins.executors import Chain, Run
from protocol.errors import PilotageError
from protocol.resources import ResourceType
from protocol.settings import Settings

if TYPE_CHECKING:
    from pilot.plugins.base import ExperimentPlugin

logger = logging.getLogger(__name__)

CLOCK_SECONDS = 5.0
"""A clock that is off by more is worth a warning; times of different nodes are hard to compare then."""
MOUNT_SECONDS = 20.0
"""CVMFS may have to fetch its catalogue first; a network file system whose server is gone never answers."""


class Level(str, enum.Enum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    UNFIT = "unfit"

    def __str__(self) -> str:
        return self.value


class Finding(NamedTuple):
    """The outcome of one check, in a sentence for the operator."""

    check: str
    level: Level
    detail: str


def examine(
    settings: Settings,
    here: Node,
    work: Path,
    *,
    tools: Sequence[CopyTool],
    unusable_tools: Mapping[str, str],
    plugin: ExperimentPlugin,
    executor: Chain,
    clock_skew: Optional[float],
) -> list[Finding]:
    """All checks, in the order in which an operator wants to read them."""
    return [
        *_scratch(work, settings.integer("limits", "free_disk_mb")),
        *_clock(clock_skew, settings.integer("validation", "clock_skew_seconds")),
        *_programs(settings.items("validation", "tools")),
        *_mounts(settings.items("validation", "mounts")),
        *_storage(tools),
        *_copytools(settings.items("copytools", "names"), unusable_tools),
        *_cache(settings.optional_path("cache", "directory")),
        *_cores(here, settings.integer("node_settings", "slots")),
        *_gpus(here, settings.integer("node_settings", "slots"), settings.flag("validation", "gpu")),
        *_executor(executor, settings, work, tools),
        *_patterns(settings.items("patterns", "files")),
        *_experiment(plugin, here),
    ]


def judge(findings: Iterable[Finding]) -> None:
    """NODE_UNFIT with everything that makes the node so; nothing if it is fit."""
    wrong = [finding.detail for finding in findings if finding.level is Level.UNFIT]
    if wrong:
        raise node.unfit("; ".join(wrong))


def log(findings: Iterable[Finding]) -> None:
    """What is no reason to stop, but for somebody to look at; the rest is told by who catches what `judge` raises."""
    for finding in findings:
        if finding.level is Level.WARNING:
            logger.warning("the node has a flaw", extra={"check": finding.check, "detail": finding.detail})
        else:
            logger.debug("the node was checked", extra={"check": finding.check, "detail": finding.detail})


def _scratch(work: Path, least_free_mb: int) -> Iterator[Finding]:
    try:
        node.check_disk(work, least_free_mb)
    except PilotageError as error:
        yield Finding("scratch", Level.UNFIT, error.detail)
    else:
        yield Finding("scratch", Level.OK, f"{node.free_disk_mb(work)} MiB are free in {work}")


def _clock(skew: Optional[float], most: int) -> Iterator[Finding]:
    if skew is None:
        yield Finding("clock", Level.WARNING, "the server did not say what time it is")
        return
    told = f"this node's clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the server's"
    if most and abs(skew) > most:
        yield Finding("clock", Level.UNFIT, f"{told}; {most} are allowed (clock_skew_seconds)")
    elif abs(skew) > CLOCK_SECONDS:
        yield Finding("clock", Level.WARNING, told)
    else:
        yield Finding("clock", Level.OK, "it agrees with the server's")


def _executor(
    executor: Chain, settings: Settings, work: Path, tools: Sequence[CopyTool]
) -> Iterator[Finding]:
    reason = executor.unusable() or _why_no_image(executor, settings, work)
    not_as = accounts.why_not(settings, work) or _why_unbounded(settings, tools)
    if reason is not None:
        yield Finding("executor", Level.UNFIT, f"payloads cannot be run as [payload] executor says: {reason}")
    elif not_as is not None:
        yield Finding("executor", Level.UNFIT, f"payloads cannot be run as [payload] users says: {not_as}")
    elif not executor.isolates and not settings.items("payload", "users"):
        what = "payloads are not isolated: they can read and signal what this account can, the pilot and its token too"
        yield Finding("executor", Level.WARNING, what)
    else:
        yield Finding("executor", Level.OK, "payloads are isolated from the pilot and from each other")


def _why_no_image(executor: Chain, settings: Settings, work: Path) -> Optional[str]:
    """None, or why each job would fail that names no image of its own."""
    if image := settings.text("payload", "image"):
        try:
            executor.check(Run(("true",), work, image=image))
        except PilotageError as error:
            return f"[payload] image: {error.detail}"
    return None


def _why_unbounded(settings: Settings, tools: Sequence[CopyTool]) -> Optional[str]:
    """None, or which copytools would hand the accounts any file of the node: they copy with root's rights, then give the copy away."""
    if not settings.items("payload", "users"):
        return None
    names = [each.name for each in tools if isinstance(each, FileTool) and not each.directories]
    wanted = ", ".join(f"[copytool:{name}] directories" for name in names)
    return f"root would read and write any file of the node for them; set {wanted}" if names else None


def _programs(names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        place = shutil.which(name)
        if place:
            yield Finding("tool", Level.OK, f"{name} is {place}")
        else:
            yield Finding("tool", Level.UNFIT, f"the program {name} is not on PATH")


def _mounts(names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        reason = why_no_mount(Path(name))
        yield Finding("mount", Level.UNFIT if reason else Level.OK, reason or f"{name} is there")


def _storage(tools: Sequence[CopyTool]) -> Iterator[Finding]:
    """No more than a warning: not all jobs have outputs."""
    missing = (each.missing_storage() for each in tools if isinstance(each, FileTool))
    if directory := next(filter(None, missing), None):
        yield Finding(
            "storage",
            Level.WARNING,
            f"there is no directory {directory}: jobs with outputs will fail; mount it, or make it if it is new",
        )


def why_no_mount(path: Path) -> str:
    """ "" for a directory that has something in it. Another process looks: who asks a dead network file system may never return."""
    command = ["find", f"{path}/", "-mindepth", "1", "-maxdepth", "1", "-print", "-quit"]
    try:
        looking = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    try:
        found, wrong = looking.communicate(timeout=MOUNT_SECONDS)
    except subprocess.TimeoutExpired:
        _leave(looking)
        return f"{path} does not answer within {MOUNT_SECONDS:g} s"
    if looking.returncode:
        return f"{path} is not to be used: {wrong.decode(errors='replace').strip().rpartition(': ')[2]}"
    return "" if found else f"{path} is empty: nothing is mounted there"


def _leave(looking: subprocess.Popen[bytes]) -> None:
    """End it, but do not wait for long: in a call to a dead file system it cannot even die."""
    looking.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        looking.communicate(timeout=1)


def _copytools(named: Sequence[str], unusable: Mapping[str, str]) -> Iterator[Finding]:
    """Of those that somebody named each should work; of all that there are, no node has every program."""
    names, are_named = named or copytools.usual(), bool(named)
    usable = [name for name in names if name not in unusable]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
    if not usable:
        yield Finding(
            "copytool", Level.UNFIT, f"no copytool works here; allowed are {', '.join(names)} ({reasons})"
        )
        return
    yield Finding("copytool", Level.OK, f"usable: {', '.join(usable)}")
    if reasons:
        yield Finding("copytool", Level.WARNING if are_named else Level.OK, f"not usable: {reasons}")


def _cache(directory: Optional[Path]) -> Iterator[Finding]:
    """Jobs do without it, so a wrong one is no reason to stop."""
    if directory is None:
        return
    from pilot.cache import Bounds, InputCache  # late: most pilots have none

    reason = InputCache(directory, Bounds(0), links=False).why_not()
    if reason is None:
        yield Finding("cache", Level.OK, f"inputs are kept in {directory}")
    else:
        yield Finding("cache", Level.WARNING, f"no inputs are kept in {directory}: {reason}")


def _cores(here: Node, slots: int) -> Iterator[Finding]:
    if slots > here.cores:
        yield Finding(
            "cores",
            Level.WARNING,
            f"{here.cores} cores for {slots} slots (--slots): each offers one core, and their payloads share them",
        )


def _gpus(here: Node, slots: int, is_needed: bool) -> Iterator[Finding]:
    if here.resource_type is not ResourceType.GPU:
        return
    if not here.gpus:
        told = (
            "this pilot is to ask for GPU jobs, and this node shows no GPU, or the batch system gave it none"
        )
        how = " ([validation] gpu)" if is_needed else ""
        yield Finding("gpu", Level.UNFIT if is_needed else Level.WARNING, told + how)
    elif len(here.gpus) < slots:
        yield Finding("gpu", Level.WARNING, f"{len(here.gpus)} GPUs for {slots} slots: some slots have none")
    for gpu in here.gpus:
        yield Finding("gpu", Level.OK, f"{gpu.name}: {gpu}")


def _patterns(files: Sequence[str]) -> Iterator[Finding]:
    if files:
        from pilot import pattern_search  # late: most sites have none of their own

        for problem in pattern_search.gathered(files, ())[1]:
            yield Finding(
                "patterns", Level.WARNING, f"[patterns] files: {problem.words}; it will be left out"
            )


def _experiment(plugin: ExperimentPlugin, here: Node) -> Iterator[Finding]:
    try:
        plugin.check_node(here)
    except PilotageError as error:
        yield Finding("experiment", Level.UNFIT, error.detail or str(error))
