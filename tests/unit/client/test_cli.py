"""The command itself: what is loaded when, exit codes, and an end in one line whatever happens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple

import click
import pytest

from client import cli, commands
from client.commands import COMMANDS, Lazy
from client.commands import pilot as pilot_commands
from protocol.errors import BY_NAME, FOR_PROGRAMS, PilotageError


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PILOTAGE_DEBUG", raising=False)

    def pilotage(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return pilotage


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes the command `queue` raise this."""

    def fail(error: BaseException) -> None:
        def work() -> None:
            raise error

        module = type(sys)("failing_commands")
        module.queue = click.Command("queue", callback=work)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "failing_commands", module)
        monkeypatch.setitem(COMMANDS, "queue", Lazy("failing_commands:queue", "fails"))

    return fail


def tree(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}".strip(), command
        if isinstance(command, click.Group):
            yield from tree(command, f"{path} {name}".strip())


ALL = dict(tree(commands.root))
OURS = {path: command for path, command in ALL.items() if path.split()[0] not in ("server", "daq") and "pilot run" not in path
        and "pilot daemon" not in path}  # fmt: skip


def test_the_groups_of_the_documentation_are_there() -> None:
    assert {"server", "pilot", "task", "job", "dataset", "queue", "storage", "daq", "config", "demo"} <= set(
        COMMANDS
    )
    assert {
        "task submit",
        "task watch",
        "job log",
        "dataset register",
        "dataset get",
        "pilot run",
        "server start",
    } <= set(ALL)


@pytest.mark.parametrize(
    "path", [path for path, command in OURS.items() if not isinstance(command, click.Group)]
)
def test_every_command_has_a_sentence_and_an_example_that_names_it(path: str) -> None:
    command = OURS[path]
    assert command.help and command.help.splitlines()[0].endswith(".")
    assert f"pilotage {path}" in (command.epilog or "")


@pytest.mark.parametrize("path", [path for path in OURS if path not in ("demo", "pilot bridge") and not isinstance(OURS[path], click.Group)])  # fmt: skip
def test_every_command_that_shows_something_prints_json_if_asked(path: str) -> None:
    assert any("--json" in parameter.opts for parameter in OURS[path].params)


@pytest.mark.parametrize("path", list(OURS))
def test_every_help_can_be_printed(path: str, run: Run) -> None:
    done = run(*path.split(), "--help")
    assert done.code == 0 and done.out.startswith(f"Usage: pilotage {path} ")


def test_the_list_of_commands_loads_none_of_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_load", lambda *args: pytest.fail("a command was loaded"))
    done = run("--help")
    assert done.code == 0 and all(name in done.out for name in COMMANDS)


def test_a_worker_node_without_rich_and_flask_starts_a_pilot(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("rich", "flask", "peewee", "server")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "flask", "peewee"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("pilot.cli", "client.tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    done = run("pilot", "run", "--help")
    assert done.code == 0 and done.out.startswith("Usage: pilotage pilot run ")


@pytest.mark.parametrize(
    ("missing", "command", "extra"), [("rich", "queue", "client"), ("flask", "server", "server")]
)
def test_a_missing_extra_is_told_with_the_command_that_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, command: str, extra: str
) -> None:
    """Also when it is noticed late, as the server does, which loads Flask when it serves."""
    error = ModuleNotFoundError(f"No module named '{missing}'", name=missing)
    if command == "queue":
        monkeypatch.setattr(commands.importlib, "import_module", lambda module: fail(error))
    else:
        module: Any = type(sys)("late")
        module.server = click.Command("server", callback=lambda: fail(error))
        monkeypatch.setitem(sys.modules, "late", module)
        monkeypatch.setitem(COMMANDS, "server", Lazy("late:server", "x", "server"))
    done = run(command)
    assert done.code == 1
    assert f"pip install 'pilotage[{extra}]'" in done.err and missing in done.err
    assert "Traceback" not in done.err


def fail(error: BaseException) -> None:
    raise error


def test_an_error_of_the_catalogue_is_one_line_and_advice(run: Run, failing: Callable[..., None]) -> None:
    failing(PilotageError("STATE_DIRECTORY_IN_USE", "X \x1b[31mX\nY"))
    done = run("queue")
    assert done.code == 1 and done.out == ""
    assert done.err.splitlines() == [
        r"Error: another server works in this state directory: X \x1b[31mX\nY",
        "next: stop it first: pilotage server stop",
    ]


@pytest.mark.parametrize("name", sorted(FOR_PROGRAMS))
def test_advice_that_says_nothing_at_a_command_line_is_not_shown_there(
    run: Run, failing: Callable[..., None], name: str
) -> None:
    failing(PilotageError(name, "no queue X; see 'pilotage queue list'"))
    assert run("queue").err.splitlines() == [
        f"Error: {BY_NAME[name].text}: no queue X; see 'pilotage queue list'"
    ]


def test_an_error_s_own_advice_and_problems_are_told(run: Run, failing: Callable[..., None]) -> None:
    failing(PilotageError("BAD_PATH", "two", problems=["one", "a\nb"], advice="do this"))
    assert run("queue").err.splitlines() == [
        "Error: a path cannot be used: two", "  one", r"  a\nb", "next: do this"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "/x\ny"), r"/x\ny: Permission denied"),
        (OSError("odd"), "odd"),
        (ValueError("what"), "a fault of this program: ValueError: what"),
        (ImportError("cannot import name 'x'"), "a fault of this program: ImportError"),
    ],
)
def test_anything_else_is_one_line_too(
    run: Run, failing: Callable[..., None], error: Exception, words: str
) -> None:
    failing(error)
    done = run("queue")
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.startswith(f"Error: {words}") and len(done.err.splitlines()) == 2


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_trace_back_is_there_for_those_who_ask(
    run: Run, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    failing(PilotageError("NOT_FOUND", "no queue"))
    if how == "environment":
        monkeypatch.setenv("PILOTAGE_DEBUG", "1")
    done = run(*(["--debug"] if how == "option" else []), "queue")
    assert done.code == 1 and "Traceback" in done.err and "in work" in done.err


def test_ctrl_c_is_one_line_and_130(run: Run, failing: Callable[..., None]) -> None:
    failing(KeyboardInterrupt())
    assert run("queue") == Outcome(130, "", "Interrupted.\n")


def test_ctrl_c_while_the_modules_load_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda arguments: fail(KeyboardInterrupt()))
    assert run("queue") == Outcome(130, "", "Interrupted.\n")


@pytest.mark.parametrize("code", [0, 1, 82])
def test_the_exit_code_of_a_command_is_the_program_s(
    run: Run, failing: Callable[..., None], code: int
) -> None:
    failing(SystemExit(code))
    assert run("queue").code == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["taask"], "did you mean 'task'?"),
        (["task", "lst"], "did you mean 'list'?"),
        (["xyzzy"], "No such command 'xyzzy'"),
        (["task", "list", "--bla"], "No such option: --bla"),
        (["--bla", "task", "list"], "No such option: --bla"),
        (["--debg", "task", "list"], "Did you mean --debug?"),
        (
            ["--server", "http://h", "task", "list"],
            "put --server after the verb: pilotage task list --server",
        ),
        (["task", "--server=http://h", "list"], "put --server after the verb: pilotage task list --server"),
        (["--json", "job", "show", "17"], "put --json after the verb: pilotage job show --json"),
        (["--state", "/srv", "audit"], "put --state after the verb: pilotage audit --state"),
        (["pilot", "-q", "CPU", "run"], "put -q after the verb: pilotage pilot run -q"),
        (["job", "show"], "Missing argument"),
    ],
)
def test_wrong_usage_is_2_and_tells_what_may_be_meant(run: Run, arguments: List[str], words: str) -> None:
    done = run(*arguments)
    assert (done.code, words in done.err) == (2, True), done.err


def test_the_pilot_s_commands_need_no_more_than_a_node_has() -> None:
    assert {name: each.extra for name, each in pilot_commands.COMMANDS.items()}["run"] == "fast"


def test_settings_of_all_programs_are_shown_with_their_origin(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PILOTAGE_SERVER__PORT", "9999")
    (tmp_path / "pilot.ini").write_text("[node_settings]\nQUEUE = SPD\n")
    done = run("config", "show", "server")
    (line,) = [line for line in done.out.splitlines() if line.startswith("[server] port")]
    assert line.split() == ["[server]", "port", "9999", "environment", "PILOTAGE_SERVER__PORT"]
    done = run("config", "show", "pilot", "--config", str(tmp_path / "pilot.ini"))
    assert f"{tmp_path}/pilot.ini line 2" in done.out
    assert all(
        f"\n{program}\n" in f"\n{run('config', 'show').out}"
        for program in ("client", "pilot", "daemon", "server")
    )
