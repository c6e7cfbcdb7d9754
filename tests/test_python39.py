"""What runs on a worker node runs on Python 3.9, the system Python of EL 9. See also `make test39`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.components import old_python

ROOT = Path(__file__).parent.parent
ON_NODES = ("protocol", "copytools", "pilot")
ALSO_ON_NODES = (
    *("client/cli.py", "client/__init__.py", "client/commands/__init__.py", "etc/examples"),
    "wrappers/minipilot.py",
)
"""The way from the command `pilotage` to a pilot, the payloads of the examples, and the pilot in one file."""


def vermin(*paths: object) -> subprocess.CompletedProcess[str]:
    """vermin reads the source and names what an old Python lacks, with file and line."""
    command = [str(Path(sys.executable).parent / "vermin"), "-t=3.9-", "--violations", "--no-tips"]
    return subprocess.run([*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False)


def test_nothing_on_a_node_needs_more_than_python_3_9() -> None:
    result = vermin(*ON_NODES, *ALSO_ON_NODES)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "newer",
    [
        "match x:\n    case 1: pass\n",
        "import dataclasses\n@dataclasses.dataclass(slots=True)\nclass A: pass\n",
        "import tomllib\n",
        "zip([], [], strict=True)\n",
    ],
)
def test_something_newer_is_seen(newer: str, tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text(newer)
    result = vermin(tmp_path / "newer.py")
    assert result.returncode == 1
    assert "Target versions not met" in result.stdout


def test_every_file_on_a_node_postpones_its_annotations() -> None:
    """`X | None` in an annotation is then only text, which Python 3.9 lets pass."""
    wrong = [
        str(path.relative_to(ROOT))
        for folder in ON_NODES
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py" or "def " in path.read_text()
        if "from __future__ import annotations\n" not in path.read_text()
    ]
    assert not wrong


def test_a_real_python_3_9_compiles_what_runs_on_a_node(tmp_path: Path) -> None:
    python = old_python()
    if python is None:
        pytest.skip("no Python 3.9 here; enabled by one on PATH. vermin has looked")
    program = (
        "import compileall, os, sys; "
        "compile_it = lambda it: (compileall.compile_dir if os.path.isdir(it) else compileall.compile_file)(it, quiet=1, force=True); "
        "sys.exit(not all([compile_it(it) for it in sys.argv[1:]]))"
    )
    result = subprocess.run(
        [python, "-X", f"pycache_prefix={tmp_path}", "-c", program, *ON_NODES, *ALSO_ON_NODES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
