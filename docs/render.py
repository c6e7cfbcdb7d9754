"""Writes the tables of README.md and docs/*.md from the tables in the code: `make docs`; with --check it only compares.

A document marks the place, and everything between the two lines is made here:

    <!-- table: states -->
    <!-- end -->
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from protocol import errors, settings, states, templates  # noqa: E402  # only now the tree is on the path
from protocol.messages import wire_name  # noqa: E402
from protocol.messages.pilots import Step  # noqa: E402
from protocol.messages.requests import TaskSpec  # noqa: E402

MARKED = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; | and line ends in a cell would break it."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    return line(head) + line("---" for _ in head) + "".join(map(line, rows))


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def job_states() -> str:
    def next_ones(state: states.JobState) -> str:
        targets: dict[str, list[str]] = {}
        for target in states.JobState:
            actors = states.MOVES.get((state, target), ())
            if actors:
                targets.setdefault(", ".join(sorted(actor.value for actor in actors)), []).append(
                    target.value
                )
        return "; ".join(f"{span(words)} ({who})" for who, words in targets.items()) or "final"

    def span(words: list[str]) -> str:
        return ", ".join(words) if len(words) < 4 else f"any from {words[0]} to {words[-1]}"

    head = ("state", "meaning", "then (moved by)")
    return table(head, ((code(state), states.MEANING[state], next_ones(state)) for state in states.JobState))


def task_states() -> str:
    return table(
        ("state", "meaning"), ((code(state), states.TASK_MEANING[state]) for state in states.TaskState)
    )


def error_catalogue() -> str:
    head = ("code", "name", "meaning", "fault of", "budget", "retry", "what to do")
    rows = sorted(errors.CATALOGUE, key=lambda entry: entry.code)
    return table(
        head,
        (
            (
                row.code,
                code(row.name),
                row.text,
                f"{row.blame.value} (said)" if row.hearsay else row.blame.value,
                row.budget.value,
                row.retry.value,
                row.advice,
            )
            for row in rows
        ),
    )


def pilot_exits() -> str:
    head = ("exit code", "name", "meaning")
    return table(
        head, ((exit.value, code(exit.name), errors.PILOT_EXIT_TEXT[exit]) for exit in errors.PilotExit)
    )


def state_words() -> str:
    return "`" + " → ".join(states.SUCCESS) + "`\n"


def exit_words() -> str:
    return " · ".join(f"{exit.value} `{exit.name}`" for exit in errors.PilotExit) + "\n"


def task_fields() -> str:
    """The fields of a task, with the option of `pilotage task submit` that sets each."""
    submit = importlib.import_module("client.commands.tasks").submit
    options = {
        each.name: max(each.opts, key=len) for each in submit.params if each.param_type_name == "option"
    }
    options |= {"command": "-- COMMAND", "bundle": "--ship", "steps": "--pre --co --post"}
    kinds = typing.get_type_hints(TaskSpec)
    head = ("field", "option", "type", "default", "meaning")

    def row(each: dataclasses.Field[Any]) -> tuple[str, ...]:
        kind = _kind(kinds[each.name], each.metadata)
        meaning = each.metadata["description"]
        return code(wire_name(each.name)), code(options[each.name]), kind, _default(each), meaning

    return table(head, map(row, dataclasses.fields(TaskSpec)))


def step_fields() -> str:
    """The fields of one step of a task."""
    kinds = typing.get_type_hints(Step)
    rows = (
        (code(wire_name(each.name)), _kind(kinds[each.name], each.metadata), _default(each), each.metadata["description"])
        for each in dataclasses.fields(Step)
    )  # fmt: skip
    return table(("field", "type", "default", "meaning"), rows)


def _kind(kind: Any, bounds: Any) -> str:
    if kind is int:
        return f"{bounds['ge']:,} to {bounds['le']:,}"
    if kind is str:
        return "name" if bounds.get("max_length") == 200 else "text"
    if typing.get_origin(kind) is list:
        return "list of steps" if typing.get_args(kind) == (Step,) else "list of texts"
    if typing.get_origin(kind) is dict:
        return "names with texts"
    return " or ".join(choice.value for choice in kind)


def _default(each: dataclasses.Field[Any]) -> str:
    if each.default is not dataclasses.MISSING:
        return code(each.default)
    return "" if each.default_factory is not dataclasses.MISSING else "must be given"


def placeholders() -> str:
    head = ("placeholder", "stands for", "in output names too")
    rows = templates.COMMAND_PLACEHOLDERS.items()
    return table(
        head,
        (
            (code(f"{{{name}}}"), text, "yes" if name in templates.OUTPUT_PLACEHOLDERS else "")
            for name, text in rows
        ),
    )


def plugin_hooks() -> str:
    plugin = importlib.import_module("pilot.plugins.base").ExperimentPlugin
    hooks = [(name, hook) for name, hook in vars(plugin).items() if not name.startswith("_")]
    return table(("hook", "when, and what for"), ((code(_call(*hook)), hook[1].__doc__) for hook in hooks))


def _call(name: str, function: Any) -> str:
    arguments = [argument for argument in inspect.signature(function).parameters if argument != "self"]
    return f"{name}({', '.join(arguments)})"


def routes() -> str:
    """Every address of the server, in the order of the doors."""
    doors = importlib.import_module("server.app").DOORS
    head = ("address", "role", "what it does")
    rows = [route for door in doors for route in door.routes]
    return table(head, ((code(f"{row.method} {row.path}"), row.role.value, row.summary) for row in rows))


def pilot_options() -> str:
    """The pilot's options as `--help` shows them; a flag takes no value."""
    options = importlib.import_module("pilot.cli").run.params
    head = ("option", "meaning")
    return table(head, ((code(", ".join(each.opts)), _sentence(each.help)) for each in options))


def audit_checks() -> str:
    """What the audit looks for; a note is no damage."""
    checks = importlib.import_module("server.auditing.findings").CHECKS.values()
    head = ("check", "over", "it must be that", "otherwise")
    return table(
        head,
        (
            (code(check.name) + (" (note)" if check.is_note else ""), check.over, check.holds, check.advice)
            for check in checks
        ),
    )


def _sentence(text: str) -> str:
    return re.sub(r"  \[default: (.*)\]", r" (default: `\1`)", text)


def settings_of(module: str, name: str = "TABLE") -> Callable[[], str]:
    """The settings table of a program; its module is imported only when a document asks for it."""

    def render() -> str:
        return settings.markdown(getattr(importlib.import_module(module), name))

    return render


TABLES: dict[str, Callable[[], str]] = {
    "states": job_states,
    "state-words": state_words,
    "task-states": task_states,
    "errors": error_catalogue,
    "pilot-exits": pilot_exits,
    "exit-words": exit_words,
    "task-fields": task_fields,
    "step-fields": step_fields,
    "placeholders": placeholders,
    "plugin-hooks": plugin_hooks,
    "routes": routes,
    "pilot-options": pilot_options,
    "audit-checks": audit_checks,
    "pilot-settings": settings_of("pilot.settings"),
    "daemon-settings": settings_of("pilot.settings", "DAEMON_TABLE"),
    "server-settings": settings_of("server.settings"),
    "client-settings": settings_of("client.settings"),
}


def rendered(text: str, document: str) -> str:
    """The document with its tables made anew; a table that does not exist ends the program with the names there are."""

    def fill(marked: re.Match[str]) -> str:
        name = marked["name"]
        if name not in TABLES:
            raise SystemExit(f"{document}: no table {name!r}; there are: {', '.join(TABLES)}")
        return marked[1] + "\n" + TABLES[name]() + "\n" + marked[3]

    return MARKED.sub(fill, text)


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(arguments: Sequence[str]) -> int:
    outdated = False
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = rendered(old, path.name)
        if new == old:
            continue
        if "--check" in arguments:
            outdated = True
            name = str(path.relative_to(ROOT))
            sys.stdout.writelines(
                difflib.unified_diff(
                    old.splitlines(True), new.splitlines(True), name, f"{name}, made anew", n=0
                )
            )
        else:
            path.write_text(new, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
    if outdated:
        print("the documentation differs from the tables in the code: make docs")
    return int(outdated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
