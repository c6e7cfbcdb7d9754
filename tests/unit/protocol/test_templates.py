"""Placeholders: the known ones are filled in, everything else stays text or is refused; nothing is ever evaluated."""

from __future__ import annotations

from typing import Dict, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import PilotageError
from protocol.templates import (
    COMMAND_PLACEHOLDERS,
    OUTPUT_PLACEHOLDERS,
    SEVERAL,
    check,
    fill,
    fill_command,
    stem,
)

same_each_time = settings(derandomize=True, database=None)
VALUES = {name: f"<{name}>" for name in COMMAND_PLACEHOLDERS}


def test_a_variable_of_a_shell_is_told_from_a_placeholder() -> None:
    with pytest.raises(PilotageError, match=r"write \$\{\{HOME\}\} for a shell's variable"):
        check("echo ${HOME}", COMMAND_PLACEHOLDERS, "command")
    assert fill("echo ${{HOME}}", VALUES) == "echo ${HOME}"
    with pytest.raises(PilotageError) as caught:
        check("echo {HOME}", COMMAND_PLACEHOLDERS, "command")
    assert "shell" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(COMMAND_PLACEHOLDERS))
def test_each_placeholder_is_known_and_filled_in(name: str) -> None:
    assert check(f"a{{{name}}}b", COMMAND_PLACEHOLDERS, "command") == {name}
    assert fill(f"a{{{name}}}b", VALUES) == f"a<{name}>b"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{{}}", "{}"),
        ("{{input}}", "{input}"),
        ("{{{input}}}", "{<input>}"),
        ("{input}{output}", "<input><output>"),
        ('{{"a": {job_nr}}}', '{"a": <job_nr>}'),
        ("$(rm -rf ~) `id` %s $HOME", "$(rm -rf ~) `id` %s $HOME"),
    ],
)
def test_a_template_is_filled_in(template: str, text: str) -> None:
    check(template, COMMAND_PLACEHOLDERS, "command")
    assert fill(template, VALUES) == text


@pytest.mark.parametrize(
    "template",
    [
        "{",
        "}",
        "{}",
        "{unknown}",
        "{input",
        "input}",
        "{ input }",
        "{input.x}",
        "{input!r}",
        "{input:>9}",
        "{0}",
    ]
    + ["{input[0]}", "{{{", "}}}", "{{input}", "{__class__}", "{input}{"],
)
def test_what_is_no_placeholder_is_refused_with_the_list_of_those_there_are(template: str) -> None:
    with pytest.raises(
        PilotageError, match="the output name is no placeholder; there are {lfn} {stem}"
    ) as caught:
        check(template, {**OUTPUT_PLACEHOLDERS, "input": ""}, "output name")
    assert caught.value.name == "BAD_REQUEST"


@pytest.mark.parametrize("name", sorted(set(COMMAND_PLACEHOLDERS) - set(OUTPUT_PLACEHOLDERS)))
def test_an_output_name_holds_only_what_is_the_same_for_each_attempt(name: str) -> None:
    with pytest.raises(PilotageError):
        check(f"{{{name}}}", OUTPUT_PLACEHOLDERS, "output name")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["cat", "{inputs}"], ["cat", "/in/a b", "/in/c"]),
        (["cat", "{inputs}", "-o", "{outputs}"], ["cat", "/in/a b", "/in/c", "-o", "/out/x"]),
        (["sh", "-c", "cat {inputs}"], ["sh", "-c", "cat /in/a b /in/c"]),
        (["cat", "{{inputs}}"], ["cat", "{inputs}"]),
        (["{input}"], ["<input>"]),
        ([], []),
    ],
)
def test_a_word_for_several_files_becomes_an_argument_each(words: List[str], arguments: List[str]) -> None:
    several = {"inputs": ["/in/a b", "/in/c"], "outputs": ["/out/x"]}
    assert fill_command(words, VALUES, several) == arguments


def test_a_job_without_inputs_has_no_argument_for_them() -> None:
    assert fill_command(["ls", "{inputs}"], VALUES, {name: [] for name in SEVERAL}) == ["ls"]


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert fill("{lfn}", {"lfn": "{stem}", "stem": "no"}) == "{stem}"


@same_each_time
@given(st.text("{}abi", max_size=12), st.dictionaries(st.sampled_from(["a", "b", "i"]), st.text(max_size=4)))
def test_a_template_that_passed_the_check_can_be_filled_in(template: str, values: Dict[str, str]) -> None:
    values = {"a": "A", "b": "B", "i": "I", **values}
    try:
        check(template, values, "command")
    except PilotageError as error:
        assert error.name == "BAD_REQUEST"
        return
    fill(template, values)


@same_each_time
@given(st.text(max_size=20))
def test_any_text_can_be_written_with_doubled_braces(text: str) -> None:
    template = text.replace("{", "{{").replace("}", "}}")
    assert check(template, COMMAND_PLACEHOLDERS, "command") == set()
    assert fill(template, {}) == text


@pytest.mark.parametrize(
    ("lfn", "expected"),
    [("a.spd", "a"), ("a.tar.gz", "a.tar"), ("a", "a"), (".hidden", ".hidden"), ("a.", "a"), ("", "")],
)
def test_a_stem_is_the_name_without_its_last_suffix(lfn: str, expected: str) -> None:
    assert stem(lfn) == expected
