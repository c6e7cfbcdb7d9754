"""Placeholders `{name}` in commands, output names and environments: which there are, and how they are filled in.

Only whole names between braces are placeholders; nothing is evaluated, so a template can do no harm. `{{` and `}}` stand
for the braces themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from protocol.errors import PilotageError

OUTPUT_PLACEHOLDERS: dict[str, str] = {
    "lfn": "logical name of the job's first input",
    "stem": "the same without its last suffix",
    "task_id": "the task's number",
    "job_nr": "the job's number in its task, from 1",
}
"""What an output name may contain: known when the job is formed, the same for each attempt."""

COMMAND_PLACEHOLDERS: dict[str, str] = {
    **OUTPUT_PLACEHOLDERS,
    "input": "path of the first input",
    "inputs": "paths of all inputs, one argument each",
    "output": "path of the first output",
    "outputs": "paths of all outputs, one argument each",
    "job_id": "the job's id",
    "attempt_nr": "number of the attempt, from 1",
    "bundle": "directory with the user's shipped code",
    "software": "directory of the task's software",
    "workdir": "the payload's work directory",
    "python": "the Python interpreter that the pilot runs under",
}
"""What the words of a command and the values of an environment may contain."""

SEVERAL = ("inputs", "outputs")

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def check(template: str, allowed: Mapping[str, str], what: str) -> set[str]:
    """The names that a template uses; raise BAD_REQUEST if one is unknown or a brace stands alone."""
    used = set()
    for match in _TOKEN.finditer(template):
        name = match.group(1)
        if name is not None and name in allowed:
            used.add(name)
        elif match.group(0) not in ("{{", "}}"):
            known = " ".join("{" + each + "}" for each in allowed)
            word = match.group(0)
            meant = (
                "write ${" + word + "} for a shell's variable; "
                if name and template[: match.start()].endswith("$")
                else ""
            )
            raise PilotageError(
                "BAD_REQUEST",
                f"{word[:60]!a} in the {what} is no placeholder; {meant}there are {known} (a plain brace: {{{{ or }}}})",
            )
    return used


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text of a checked template."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        return values[name] if name is not None else match.group(0)[0]

    return _TOKEN.sub(replace, template)


def fill_command(
    words: Sequence[str], values: Mapping[str, str], several: Mapping[str, Sequence[str]]
) -> list[str]:
    """The argument list of a checked command; a word that is just `{inputs}` or `{outputs}` becomes one argument a file."""
    joined = {**values, **{name: " ".join(paths) for name, paths in several.items()}}
    arguments: list[str] = []
    for word in words:
        if word.startswith("{") and word.endswith("}") and word[1:-1] in several:
            arguments.extend(several[word[1:-1]])
        else:
            arguments.append(fill(word, joined))
    return arguments


def stem(lfn: str) -> str:
    """A name without its last suffix; a name that is all suffix stays."""
    head, dot, _ = lfn.rpartition(".")
    return head if dot and head else lfn
