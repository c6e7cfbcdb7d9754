"""The pilot as one file: the same bytes each time, complete in itself, and held to libraries that run on Python 3.9."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from protocol.errors import PilotageError
from server import pilot_package
from tests.components import old_python

IMPORT_ALL = """
import importlib, json, pkgutil, sys
archive = sys.argv[1]
sys.path.insert(0, archive)
for name in ("protocol", "copytools", "pilot"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(json.dumps({name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}))
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    pilot_package.build(tmp_path / "pilot.pyz")
    return tmp_path / "pilot.pyz"


def pythons() -> list[str]:
    return [sys.executable, *filter(None, [old_python()])]


def test_the_same_sources_give_the_same_bytes(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 100_000
    monkeypatch.setattr(time, "time", lambda: later)
    old = os.umask(0o077)
    try:
        pilot_package.build(archive.with_name("again.pyz"))
    finally:
        os.umask(old)
    assert archive.with_name("again.pyz").read_bytes() == archive.read_bytes()
    assert sorted(path.name for path in archive.parent.iterdir()) == ["again.pyz", "pilot.pyz"]


def test_the_digest_is_that_of_the_bytes_also_after_a_change(archive: Path) -> None:
    assert pilot_package.digest(archive) == hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.write_bytes(archive.read_bytes() + b"x")
    assert pilot_package.digest(archive) == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_it_carries_every_module_of_ours_and_nothing_of_the_server(archive: Path) -> None:
    names = zipfile.ZipFile(archive).namelist()
    root = Path(pilot_package.__file__).parent.parent
    ours = {
        str(path.relative_to(root))
        for folder in pilot_package.OURS
        for pattern in ("*.py", "*.ini")
        for path in (root / folder).rglob(pattern)
    }
    assert "pilot/patterns.ini" in ours
    assert ours <= set(names)
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"__main__.py", *pilot_package.OURS, *pilot_package.LIBRARIES}


def test_each_library_comes_with_its_licence(archive: Path) -> None:
    names = [name.lower() for name in zipfile.ZipFile(archive).namelist()]
    for library in pilot_package.LIBRARIES:
        assert [name for name in names if name.startswith(library) and "licen" in name], library


@pytest.mark.parametrize("python", pythons())
def test_its_modules_import_nothing_but_itself_and_the_standard_library(
    archive: Path, python: str, tmp_path: Path
) -> None:
    """-S: no site-packages. Whatever a module of ours needs at import must be in the archive."""
    done = subprocess.run(
        [python, "-I", "-S", "-W", "error", "-c", IMPORT_ALL, str(archive)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout)
    assert {"pilot.cli", "pilot.run", "copytools.cp", "urllib3.poolmanager"} <= set(modules)
    prefix = subprocess.run(
        [python, "-I", "-S", "-c", "import os; print(os.path.dirname(os.__file__))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    outside = {
        name: file
        for name, file in modules.items()
        if file and not file.startswith((str(archive), prefix)) or "site-packages" in file
    }
    assert outside == {}


@pytest.mark.parametrize("python", pythons())
def test_it_tells_the_versions_of_what_it_carries(archive: Path, python: str) -> None:
    """Entry points of other packages are looked for among all that have metadata, these too."""
    program = (
        "import importlib.metadata as m, sys; sys.path.insert(0, sys.argv[1]); m.entry_points(); "
        "print(*sorted((d.metadata['Name'], d.version) for d in m.distributions(path=[sys.argv[1]])))"
    )
    done = subprocess.run(
        [python, "-I", "-S", "-c", program, str(archive)], capture_output=True, text=True, check=True
    )
    expected = sorted((name, importlib.metadata.version(name)) for name in pilot_package.LIBRARIES)
    assert done.stdout.strip() == " ".join(map(str, expected))


def test_a_library_that_needs_a_newer_python_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.metadata.distribution("click")
    metadata = tmp_path / "click-99.dist-info"
    shutil.copytree(Path(str(installed.locate_file(""))) / f"click-{installed.version}.dist-info", metadata)
    text = (metadata / "METADATA").read_text()
    (metadata / "METADATA").write_text(
        text.replace("Requires-Python: >=3.7", "Requires-Python: >=3.10").replace("8.1", "8.2")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PilotageError, match=r"click 8\.2.* needs Python >=3\.10; the pilot must run on 3\.9"):
        pilot_package.build(tmp_path / "pilot.pyz")
    assert not (tmp_path / "pilot.pyz").exists()
    assert not list(tmp_path.glob(".building*"))


def test_a_library_that_does_not_tell_its_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "click-8.1.8.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 8.1.8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PilotageError, match="does not tell its files"):
        pilot_package.build(tmp_path / "pilot.pyz")


def test_an_older_python_is_told_so_in_one_line(archive: Path, tmp_path: Path) -> None:
    """An old Python is played by an altered version number: none need be installed."""
    program = (
        "import runpy, sys; sys.version_info = (3, 8, 18); runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(archive)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 69
    assert done.stderr.startswith("A pilot needs Python 3.9 or newer")
    assert len(done.stderr.splitlines()) == 1
