"""The verbs of the Makefile and the scripts behind them, as far as they need no network."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def scripts() -> list[Path]:
    """Every shell script of the tree, found by its first line."""
    folders = [ROOT / name for name in (".ci", "wrappers", "tests", "docs", "etc")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    shebang = re.compile(rb"#!.*\b(sh|bash)\b")
    return [path for path in files if path.suffix == ".sh" or shebang.match(path.read_bytes()[:40])]


def test_help_names_every_verb_with_a_word_on_it() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    listed = dict(re.findall(r"^make (\S+) +(\S.*)$", shown, re.MULTILINE))
    assert set(listed) == verbs
    assert {"dev", "demo", "test", "test-pg", "lint", "fmt", "type", "cover", "docs", "release"} <= verbs


def test_ci_calls_exactly_make_test() -> None:
    code = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert code[-1] == "exec make test"
    assert not [line for line in code[:-1] if re.match(r"(exec |make |pip |python)", line)]


def venv(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    command = [str(ROOT / ".ci" / "venv.sh"), *arguments]
    environment = {**inherited, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_a_suitable_python_it_is_said_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = venv(str(tmp_path / "venv"), "all", "3.10", str(old), "python-that-is-not-there")
    assert result.returncode == 1
    assert "No Python 3.10 or newer" in result.stderr
    assert "apt-get install python3 python3-venv" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_that_the_user_names_and_that_does_not_run_is_refused(tmp_path: Path) -> None:
    result = venv(str(tmp_path / "venv"), "all", "3.10", "python3", PYTHON="/nonexistent/python")
    assert result.returncode == 1
    assert "PYTHON=/nonexistent/python" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_every_script_can_be_started() -> None:
    started = [path for path in scripts() if path.read_bytes().startswith(b"#!")]
    assert ROOT / ".ci" / "run" in started
    assert not [path for path in started if not os.access(path, os.X_OK)]


@pytest.mark.component("shellcheck")
def test_shellcheck_finds_nothing() -> None:
    result = subprocess.run(["shellcheck", *scripts()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
