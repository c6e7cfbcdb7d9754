"""The commands that the documents show are run as they stand there, in a home of their own with a real server.

Of a document, the blocks marked `sh` (run whole) and `console` (`$ ` begins a command, what follows is its output) are run in
one shell. A command must end with 0, and the lines shown must be in its output in this order; others may stand between.
In a line `…` stands for anything. Numbers of processes, times, the node's name, the home and the port may differ.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.world import MARK, processes_with
from tests.postgres import free_port
from tests.running_server import QUICK, ROOT, environment

PORT = "8080"
"""The port of the documents; a free one takes its place."""
SECONDS = 60


@dataclass(frozen=True)
class Step:
    """One command of a document, where it stands, and the lines that are shown below it."""

    place: str
    command: str
    shown: tuple[str, ...] = ()


def steps(document: Path, sections: tuple[str, ...] = ()) -> list[Step]:
    """The commands in these sections of a document; without sections, in all of it."""
    found: list[Step] = []
    section, language, block, began = "", "", [""], 0
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if language in ("sh", "console") and (not sections or section in sections):
                place = f"{document.name}:{began}"
                found += [Step(place, "\n".join(block))] if language == "sh" else _console(place, block)
            language, block, began = (line[3:] if not language else ""), [], number
        elif language:
            block.append(line)
        elif line.startswith("## "):
            section = line[3:]
    return found


def _console(place: str, block: list[str]) -> Iterator[Step]:
    text = "\n".join(block)
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Step(place, command, tuple(line for line in shown if line.strip() not in ("", "…")))


class Shell:
    """Runs steps one after the other in one bash, in an empty home, and tells what each printed."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.port = str(free_port())
        self.mark = f"{name}-{self.port}"

    def run(self, wanted: list[Step]) -> list[tuple[int, str]]:
        """Exit code and output of each step; those of steps that were not reached are missing."""
        home = self.home / "me"
        (home / "bin").mkdir(parents=True)
        program = home / "bin" / "pilotage"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m client.cli "$@"\n')
        program.chmod(0o755)
        script = self.home / "script.sh"
        lines = [f'{step.command.replace(PORT, self.port)}\necho "\n=== $?"' for step in wanted]
        script.write_text("\n".join(lines) + "\n")
        output = self.home / "output"
        # A file: what stays in the background would keep a pipe open.
        with open(output, "wb") as file, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["bash", str(script)], cwd=home, env=self._environment(home), stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, timeout=SECONDS, check=False,
            )  # fmt: skip
        parts = re.split(r"^=== (\d+)\n", output.read_text(errors="replace"), flags=re.MULTILINE)
        return [(int(code), text) for text, code in zip(parts[::2], parts[1::2])]

    def _environment(self, home: Path) -> Mapping[str, str]:
        settings = {
            **QUICK,
            MARK: self.mark,
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "PILOTAGE_SERVER__PORT": self.port,
            "PILOTAGE_NODE_SETTINGS__PORT": self.port,
        }
        return environment(home, settings)

    def close(self) -> None:
        """End what the steps have left, by its mark."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in processes_with(self.mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def plain(self, text: str) -> str:
        """Text without what differs from run to run and from machine to machine."""
        text = text.replace(str(self.home / "me"), "/home/me")
        text = re.sub(rf"(?<!\d){self.port}(?!\d)", PORT, text)
        text = re.sub(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w.])", "node1", text)
        text = re.sub(r"\bnode1-\d+-[0-9a-f]{6}\b", "PILOT", text)
        text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME", text)
        text = re.sub(r"\bprocess \d+", "process N", re.sub(r"\b\d+\.\d s\b", "S s", text))
        return re.sub(r"[ \t]+", " ", text)


def check(shell: Shell, wanted: list[Step]) -> None:
    """Run the steps and compare; the failure names the place in the document."""
    assert wanted, "there is no command to run"
    done = shell.run(wanted)
    for step, (code, output) in zip(wanted, done):
        where = f"{step.place}\n$ {step.command}\n{output}"
        assert code == 0, f"exit code {code}: {where}"
        lines = iter(shell.plain(output).splitlines())
        for line in step.shown:
            pattern = ".*".join(map(re.escape, shell.plain(line).rstrip().split("…")))
            assert any(re.fullmatch(pattern, each.rstrip()) for each in lines), f"not shown: {line}\n{where}"
    assert len(done) == len(wanted), f"the shell ended after {done}"


@pytest.fixture
def shell(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    shell = Shell(tmp_path, request.node.name.partition("[")[0])
    yield shell
    shell.close()


@pytest.mark.component("curl")
@pytest.mark.component("unshare")
@pytest.mark.parametrize(
    ("document", "sections"),
    [
        ("README.md", ("Going on alone", "curl for debugging")),
        ("docs/curl.md", ()),
        ("docs/offline-nodes.md", ()),
    ],
    ids=["README", "curl", "offline-nodes"],
)
def test_the_commands_of_a_document_do_what_it_shows(
    shell: Shell, document: str, sections: tuple[str, ...]
) -> None:
    check(shell, steps(ROOT / document, sections))


@pytest.mark.parametrize("document", ["README.md", "docs/curl.md"])
def test_by_hand_only_jobs_of_the_document_are_asked_for(document: str) -> None:
    """A queue binds its tasks to itself and not its pilots: on a server with other work they would get that."""
    commands = [step.command for step in steps(ROOT / document)]
    asked = [command for command in commands if "getJob" in command and "requestId" in command]
    assert asked and all('"prodSourceLabel": "hand"' in command for command in asked)


def test_the_readme_speaks_as_a_pilot_by_curl() -> None:
    commands = "\n".join(step.command for step in steps(ROOT / "README.md", ("curl for debugging",)))
    for address in ("registerPilot", "getJob", "updateJob", "jobs/", "tasks/"):
        assert re.search(rf"curl .*/v1/{address}", commands), address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("$ false\n", "exit code 1"),
        ("$ echo two\none\n", "not shown: one"),
        ("$ printf 'b\\na\\n'\na\nb\n", "not shown: b"),
        ("$ exit 3\n", "the shell ended"),
    ],
)
def test_a_command_that_does_not_do_what_is_shown_is_noticed(shell: Shell, text: str, says: str) -> None:
    document = shell.home / "document.md"
    document.write_text(f"## One\n```console\n{text}```\n")
    with pytest.raises(AssertionError, match=says):
        check(shell, steps(document))
