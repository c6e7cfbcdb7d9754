"""What `pip install` brings: every package, the wrappers and configurations, on a node no more than it needs."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import protocol

ROOT = Path(__file__).parent.parent
FOLDERS = ("protocol", "copytools", "pilot", "server", "client", "daq")


def lines(option: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    section, _, key = option.partition("/")
    return [
        line.split("#")[0].strip() for line in parser[section][key].splitlines() if line.split("#")[0].strip()
    ]


def test_every_package_of_the_tree_is_in_the_distribution() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    named = set(lines("options/packages"))
    assert {name for name in named if not name.startswith("protocol.shared.")} == found


def test_a_node_needs_three_packages() -> None:
    """Flask, peewee and rich are extras: a worker node installs the pilot without them."""
    assert [line.split()[0] for line in lines("options/install_requires")] == ["click", "urllib3", "filelock"]


@pytest.mark.parametrize("name", ["click", "urllib3", "filelock"])
def test_what_a_server_puts_into_the_pilot_file_runs_on_python_3_9(name: str) -> None:
    """The extra `server` holds these to versions that still do; this environment has that extra."""
    assert "3.9.0" in SpecifierSet(importlib.metadata.metadata(name)["Requires-Python"])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/ of a copy of the tree, with a wheel made from the source archive, as a release is used."""
    place = tmp_path_factory.mktemp("package")
    ignore = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
        "htmlcov",
        "state",
        "demo",
    )
    shutil.copytree(ROOT, place / "tree", ignore=ignore)
    build(place / "tree", "sdist", place / "dist")
    archive = next((place / "dist").glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        if sys.version_info >= (3, 12):
            tar.extractall(place / "unpacked", filter="data")
        else:
            tar.extractall(place / "unpacked")
    build(next((place / "unpacked").iterdir()), "wheel", place / "dist")
    return place / "dist"


def build(tree: Path, kind: str, target: Path) -> None:
    program = f"import setuptools.build_meta as b; b.build_{kind}({str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone, installed into a folder: what a node has beside its three packages."""
    target = tmp_path_factory.mktemp("installed")
    wheel = next(built.glob("*.whl"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def ask(installed: Path, program: str) -> str:
    """What a program prints in that installation; away from the tree, without this environment's packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_carries_the_version_that_protocol_tells(built: Path, installed: Path) -> None:
    assert next(built.glob("*.whl")).name == f"pilotage-{protocol.__version__}-py3-none-any.whl"
    assert ask(installed, "import protocol; print(protocol.__version__)") == protocol.__version__


@pytest.mark.parametrize("folder", ["wrappers", "etc"])
def test_wrappers_and_configurations_are_found_in_an_installation(installed: Path, folder: str) -> None:
    place = Path(ask(installed, f"from protocol.share import shared_path; print(shared_path({folder!r}))"))
    assert installed in place.parents
    expected = {
        path.relative_to(ROOT / folder): (path.read_bytes(), os.access(path, os.X_OK))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {
        path.relative_to(place): (path.read_bytes(), os.access(path, os.X_OK))
        for path in place.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == expected


def test_an_installation_has_no_tests_and_every_module(installed: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    there = {str(path.relative_to(installed)) for path in installed.rglob("*.py")}
    assert modules <= there
    assert not [name for name in there if name.startswith("tests/")]


def test_a_server_installation_has_what_its_pages_need(installed: Path) -> None:
    """Templates, styles and SQL are data: setup.cfg must name their patterns."""
    data = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert data <= {str(path.relative_to(installed)) for path in installed.rglob("*")}
