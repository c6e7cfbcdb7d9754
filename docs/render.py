"""Writes the tables of README.md and docs/*.md from the tables in the code: `make docs`; with --check it only compares.

A document marks the place, and everything between the two lines is made here:

    <!-- table: states -->
    <!-- end -->
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from protocol import errors, settings, states  # noqa: E402  # only now the tree is on the path

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
                row.blame.value,
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


def settings_of(module: str, name: str = "TABLE") -> Callable[[], str]:
    """The settings table of a program; its module is imported only when a document asks for it."""

    def render() -> str:
        return settings.markdown(getattr(importlib.import_module(module), name))

    return render


TABLES: dict[str, Callable[[], str]] = {
    "states": job_states,
    "task-states": task_states,
    "errors": error_catalogue,
    "pilot-exits": pilot_exits,
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
