"""Who may import whom, read from the source: the arrows that keep the parts apart. The tables here are the rules."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

import pytest

from protocol import states

ROOT = Path(__file__).parent.parent
FOLDERS = ("protocol", "copytools", "pilot", "server", "client", "daq")

OURS: Dict[str, Set[str]] = {
    "protocol": set(),
    "copytools": {"protocol"},
    "pilot": {"protocol", "copytools"},
    "server": {"protocol", "copytools"},
    "client": {"protocol", "copytools"},
    "daq": {"protocol"},
}
"""folder → folders of ours that it may import."""

THEIRS: Dict[str, Set[str]] = {
    "protocol": set(),
    "copytools": {"blake3", "boto3", "botocore", "google", "requests", "urllib3"},
    "pilot": {"click", "urllib3", "filelock", "psutil"},
    "server": {
        *(
            "flask",
            "werkzeug",
            "jinja2",
            "markupsafe",
            "peewee",
            "playhouse",
            "psycopg",
            "gunicorn",
            "pydantic",
        ),
        *("apispec", "flask_swagger_ui", "click", "rich", "filelock", "psutil", "packaging"),
        *("parsl", "celery", "distributed", "hyperqueue", "blake3"),
    },
    "client": {"click", "rich", "urllib3", "filelock", "psutil"},
    "daq": {"click", "rich", "numpy", "isal"},
}
"""folder → packages from PyPI that it may import; the standard library is everybody's."""

MEASURING = "server/bench/mover.py"
"""The one program that may import all of ours: it does what a benchmark measures, in a process of its own."""

ONLY_IN: Dict[str, Tuple[str, ...]] = {
    "click": ("*/cli.py", "client/commands/*.py", "pilot/commands/*.py", "server/commands/*.py"),
    "urllib3": ("pilot/server_client.py", "client/session.py", "copytools/gs.py"),
    "blake3": ("copytools/checksum.py", MEASURING),
    **dict.fromkeys(("boto3", "botocore"), ("copytools/buckets.py",)),
    # Google's library speaks by requests, and raises its errors.
    **dict.fromkeys(("google", "requests"), ("copytools/gs.py",)),
    **dict.fromkeys(("numpy", "isal"), ("daq/hits.py",)),
    # They are compared with, by a Python of their own.
    **dict.fromkeys(("parsl", "celery", "distributed", "hyperqueue"), ("server/bench/peers.py",)),
}
"""package → the only files that may import it."""

LIKE_THE_OTHERS = {"server/commands/*.py": "client"}
"""Commands of another folder than client/: they print as all commands do."""

COMMANDS = "client/cli.py"
"""The one file that may import the command groups of other folders (`x.cli`): it joins them into `pilotage`."""

NO_HTTP = ("flask", "werkzeug", "server.routes", "server.http", "server.app")

INSIDE: Dict[str, Tuple[str, ...]] = {
    # Rules and the database know no HTTP.
    **dict.fromkeys(
        (
            *("server/*_executor.py", "server/*_manager.py", "server/jobs/*.py", "server/brokerage/*.py"),
            *("server/catalogue.py", "server/registration.py", "server/computing.py", "server/tallies.py"),
            *("server/reaper.py", "server/closer.py", "server/auditing/*.py", "server/upkeep/*.py"),
            *("server/models.py", "server/database.py"),
        ),
        NO_HTTP,
    ),
    "server/data*.py": ("server.models",),
    "server/waiting/process.py": (
        "flask",
        "peewee",
        "server.database",
        "server.models",
        "server.job_executor",
    ),
    "server/routes/*.py": ("peewee", "server.app", "server.daemons"),
    "server/settings.py": ("flask", "peewee", "server.models"),
    # A pilot starts the sooner the less it reads.
    **dict.fromkeys(
        ("pilot/*.py", "pilot/*/*.py"), ("protocol.messages.requests", "protocol.messages.views")
    ),
    # The pilot: run.py knows all parts, no part knows run.py; a plugin knows no control.
    "pilot/control/*.py": ("pilot.run", "pilot.cli"),
    "pilot/plugins/*.py": ("pilot.control", "pilot.run", "pilot.cli", "pilot.server_client", "pilot.context"),
    **dict.fromkeys(
        (
            "pilot/plugins/executors/*.py",
            "pilot/plugins/monitors/*.py",
            "pilot/plugins/resources/*.py",
        ),
        ("pilot.control", "pilot.run", "pilot.cli", "pilot.server_client", "pilot.context"),
    ),
    # What a workflow does with jobs it does by the steps that it is given, and with what the controls share.
    "pilot/plugins/workflows/*.py": ("pilot.control", "pilot.run", "pilot.cli", "pilot.server_client"),
    # The APIs work without a pilot: arguments, and no settings of one.
    "pilot/api/*.py": (
        *("pilot.control", "pilot.run", "pilot.cli", "pilot.context", "pilot.building"),
        *("pilot.settings", "protocol.settings", "protocol.pilot_settings"),
    ),
    "pilot/limits.py": ("pilot.control", "pilot.run", "pilot.server_client", "subprocess", "threading", "os"),
    "pilot/server_client.py": ("pilot.control", "pilot.run", "pilot.plugins"),
}
"""files → what they may not import although their folder may."""


class Import(NamedTuple):
    file: str
    """Relative to the root, with /."""
    line: int
    module: str
    """Dotted; for `from a import b` both `a` and `a.b` are given."""
    for_types: bool = False
    """Under `if TYPE_CHECKING:`, so that it never happens at run time."""

    def is_of(self, name: str) -> bool:
        return self.module == name or self.module.startswith(name + ".")


def sources() -> List[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_in(path: Path, root: Path = ROOT) -> Iterator[Import]:
    """Each import of a file, also within functions, under `if TYPE_CHECKING` and by a literal import_module()."""
    file = path.relative_to(root).as_posix()
    package = list(path.relative_to(root).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=file)
    guarded = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test).split(".")[-1] == "TYPE_CHECKING"
        for child in guard.body
        for node in ast.walk(child)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, node in guarded)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            for name in (module, *(f"{module}.{alias.name}" for alias in node.names)):
                yield Import(file, node.lineno, name, node in guarded)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(file, node.lineno, node.args[0].value)


def all_imports() -> List[Import]:
    return [found for path in sources() for found in imports_in(path)]


def broken(found: Import) -> str | None:
    """The rule that this import breaks, in words, or None."""
    top = found.module.partition(".")[0]
    folder = found.file.partition("/")[0]
    path = Path(found.file)
    for pattern, forbidden in INSIDE.items():
        if path.match(pattern) and any(found.is_of(name) for name in forbidden):
            return f"{pattern} may not import {found.module}"
    if top == folder or top in sys.stdlib_module_names or (top == "typing_extensions" and found.for_types):
        return None
    if top in ONLY_IN and not any(path.match(pattern) for pattern in ONLY_IN[top]):
        return f"{top} may be imported only in {', '.join(ONLY_IN[top])}"
    if top in FOLDERS:
        joined = found.file == COMMANDS and (found.module == top or found.is_of(f"{top}.cli"))
        alike = any(path.match(pattern) and top == other for pattern, other in LIKE_THE_OTHERS.items())
        measured = found.file == MEASURING and top in ("pilot", "client")
        return (
            None if top in OURS[folder] or joined or alike or measured else f"{folder}/ may not import {top}/"
        )
    return None if top in THEIRS[folder] else f"{folder}/ may not import {top}"


def test_every_import_follows_an_arrow() -> None:
    wrong = [f"{found.file}:{found.line}: {rule}" for found in all_imports() if (rule := broken(found))]
    assert not wrong, "\n".join(sorted(set(wrong)))


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("protocol/states.py", "protocol_extra"),
        ("protocol/states.py", "server.models"),
        ("protocol/messages.py", "click"),
        ("copytools/cp.py", "pilot.process"),
        ("pilot/run.py", "server"),
        ("pilot/run.py", "flask"),
        ("pilot/run.py", "peewee"),
        ("pilot/api/data.py", "protocol.messages.views"),
        ("pilot/run.py", "click"),
        ("pilot/control/data.py", "urllib3"),
        ("pilot/server_client.py", "requests"),
        ("pilot/plugins/spd.py", "pilot.control.job"),
        ("pilot/plugins/monitors/disk.py", "pilot.context"),
        ("pilot/plugins/workflows/user.py", "pilot.control.payload"),
        ("pilot/api/data.py", "pilot.settings"),
        ("client/session.py", "server.cli"),
        ("client/cli.py", "server.models"),
        ("server/job_executor.py", "flask"),
        ("server/routes/pilot.py", "peewee"),
        ("daq/emulator.py", "client.session"),
    ],
)
def test_a_forbidden_import_is_seen(file: str, module: str) -> None:
    assert broken(Import(file, 1, module)) is not None


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("protocol/states.py", "enum"),
        ("protocol/messages.py", "protocol.states"),
        ("client/cli.py", "server.cli"),
        ("pilot/server_client.py", "urllib3.util"),
        ("server/cli.py", "click"),
        ("server/routes/pilot.py", "flask"),
    ],
)
def test_an_allowed_import_is_let_pass(file: str, module: str) -> None:
    assert broken(Import(file, 1, module)) is None


def test_all_ways_to_import_are_seen(tmp_path: Path) -> None:
    (tmp_path / "pilot" / "control").mkdir(parents=True)
    path = tmp_path / "pilot" / "control" / "job.py"
    path.write_text(
        "import flask\nfrom server import models\nfrom ..run import go\nfrom . import data\n"
        "def late():\n    import peewee\n    return importlib.import_module('gunicorn.app')\n"
    )
    seen = {found.module for found in imports_in(path, tmp_path)}
    assert {"flask", "server.models", "pilot.run", "pilot.control.data", "peewee", "gunicorn.app"} <= seen


def test_words_for_type_checkers_may_come_from_outside_but_not_at_run_time(tmp_path: Path) -> None:
    (tmp_path / "protocol").mkdir()
    path = tmp_path / "protocol" / "messages.py"
    path.write_text(
        "if TYPE_CHECKING:\n    from typing_extensions import A\nelse:\n    from typing_extensions import B\n"
    )
    assert [(found.line, broken(found) is None) for found in imports_in(path, tmp_path)] == [
        (2, True),
        (2, True),
        (4, False),
        (4, False),
    ]


def test_no_copytool_imports_another() -> None:
    """What two tools need belongs to base.py: a tool can then be read, changed and left out alone."""
    tools = {
        path.stem
        for path in (ROOT / "copytools").glob("*.py")
        if any(
            isinstance(node, ast.ClassDef) and node.name == "Tool"
            for node in ast.parse(path.read_text()).body
        )
    }
    wrong = [
        f"{found.file}:{found.line} imports {found.module}"
        for found in all_imports()
        for tool in tools
        if found.file == f"copytools/{Path(found.file).stem}.py" and found.is_of(f"copytools.{tool}")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    """`python pilot/cli.py`, or a debugger started there, would import ours instead: queues.py, not queue.py."""
    names = {
        path.relative_to(ROOT).as_posix(): path.stem for path in sources() if not path.stem.startswith("__")
    }
    names.update({folder: folder for folder in FOLDERS})
    named_alike = {file for file, name in names.items() if name in sys.stdlib_module_names}
    # A copytool is named as queues name it, and nobody starts one as a program.
    assert named_alike <= {"copytools/http.py"}


def literals(path: Path) -> Iterator[Tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_job_state_is_spelt_outside_protocol() -> None:
    """A status is JobState.READY; the word "READY" in quotes is a second place that must agree.

    Only a migration has the words of its day: it must not change when the table of states does.
    """
    words = {state.value for state in states.JobState}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] != "protocol" and path.parent.name != "migrations"
        for line, word in literals(path)
        if word in words
    ]
    assert not wrong, "\n".join(wrong)


DOCUMENTED = (*FOLDERS, "wrappers", "etc", "tests")


@pytest.mark.parametrize("folder", DOCUMENTED)
def test_each_folder_tells_its_purpose_its_limits_and_how_to_add_one_more(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    assert title.startswith(f"# {folder}/: "), "the title names the purpose"
    assert "**May not import**" in rest
    assert "**To add one more**" in rest
    for other in OURS.get(folder, set()):
        assert f"`{other}`" in rest, f"it may import {other}/: say so"


def test_every_folder_of_the_tree_is_in_these_tables() -> None:
    packages = {
        path.parent.name for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith(".")
    }
    assert packages - {"tests"} == set(FOLDERS) == set(OURS) == set(THEIRS)
