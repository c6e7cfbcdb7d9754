"""The documentation says what the tables in the code say, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for folder in ("docs", "protocol", "copytools", "pilot", "server", "client", "daq", "wrappers", "etc", "tests")
      for path in (ROOT / folder).glob("*.md")),
]  # fmt: skip


def render(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs" / "render.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_tables_in_the_documents_are_those_of_the_code() -> None:
    result = render("--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_table_stands_in_a_document() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    program = "import runpy; print(*runpy.run_path('docs/render.py', run_name='docs')['TABLES'])"
    names = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert names.split()
    assert not [name for name in names.split() if f"<!-- table: {name} -->" not in text]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_of_the_tree_lead_to_them(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in local if not (document.parent / link).exists()]


def test_every_verb_named_in_the_documents_is_one_of_the_makefile() -> None:
    verbs = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"`make ([a-z0-9-]+)", text))
    assert named <= verbs, named - verbs


def test_every_command_named_in_the_documents_is_there() -> None:
    from client.commands import root

    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(
        re.findall(r"(?:^ *(?:\$ )?|`)pilotage ([a-z]+) ([a-z][a-z-]*)(?=[ `\n])", text, re.MULTILINE)
    )
    assert len(named) > 20
    context = click.Context(root)
    groups = {noun: root.get_command(context, noun) for noun, _ in named}
    assert not [noun for noun, found in groups.items() if found is None]
    assert not [
        f"{noun} {verb}"
        for noun, verb in sorted(named)
        if isinstance(found := groups[noun], click.Group) and verb not in found.list_commands(context)
    ]


def test_the_tests_that_prove_what_is_true_now_exist() -> None:
    text = (ROOT / "docs" / "mission.md").read_text(encoding="utf-8")
    short = {"acc": "acceptance", "int": "integration", "unit": "unit", "conf": "conformance"}
    named = re.findall(rf"`({'|'.join(short)})/([^`:]+?\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    for folder, path, function in named:
        file = ROOT / "tests" / short[folder] / path
        assert file.exists(), file
        assert not function or f"def {function}(" in file.read_text(encoding="utf-8"), (
            f"{path}: no {function}"
        )


def test_the_plugin_that_is_shown_as_an_example_is_one() -> None:
    from pilot.plugins.base import ExperimentPlugin

    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    example = re.search(r"(^    from pilot\.plugins\.base.*?)^\S", text, re.MULTILINE | re.DOTALL)
    assert example
    made: dict[str, type[ExperimentPlugin]] = {}
    exec(textwrap.dedent(example[1]), made)
    overridden = {name for name in vars(made["Plugin"]) if not name.startswith("_")}
    assert issubclass(made["Plugin"], ExperimentPlugin)
    assert overridden == {"explain_failure", "log_files"} <= set(vars(ExperimentPlugin))
    shown = made["Plugin"].explain_failure(None, None, 65, "")  # type: ignore[arg-type]
    assert shown is not None and shown.name == "PAYLOAD_OUT_OF_MEMORY"
