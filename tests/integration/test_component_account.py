"""What could not be tested is told at the end of the run, and with CI=true is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST_FILE = """
import pytest

from tests import components


@pytest.mark.component("absent")
def test_by_marker():
    pass


def test_by_call():
    components.require("absent")


@pytest.mark.component("present")
def test_present():
    pass


@pytest.mark.parametrize("database", ["sqlite", "absent"])
def test_by_parameter(database):
    pass


def test_plain():
    pass
"""
CONFTEST = """
from tests import components

components.COMPONENTS["absent"] = components.Component("absent", lambda: "no such thing", "make absent")
components.COMPONENTS["present"] = components.Component("present", lambda: None)
"""


def run(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    ci: str = "",
    test: str = TEST_FILE,
) -> pytest.RunResult:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CI", ci)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test)
    return pytester.runpytest_subprocess("-p", "tests.components", "-p", "no:cacheprovider", *arguments)


def test_a_test_without_its_component_is_listed_with_the_command_that_enables_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, monkeypatch)
    result.assert_outcomes(passed=3, skipped=3)
    result.stdout.fnmatch_lines(
        [
            "*NOT RUN: component tests*",
            "absent: no such thing",
            "    to run them: make absent",
            "    *::test_by_marker",
            "    *::test_by_call",
            "    *::test_by_parameter?absent?",
        ]
    )


def test_in_ci_a_test_without_its_component_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, monkeypatch, ci="true")
    result.assert_outcomes(passed=3, errors=2, failed=1)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*NOT RUN: component tests*", "absent: no such thing"])


def test_a_run_with_all_components_says_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, monkeypatch, "-k", "plain or present", ci="true")
    result.assert_outcomes(passed=2, deselected=4)
    result.stdout.no_fnmatch_line("*NOT RUN*")


def test_the_tests_of_one_component_can_be_chosen(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, monkeypatch, "--component", "present")
    result.assert_outcomes(passed=1, deselected=5)


def test_a_misspelt_component_stops_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(
        pytester, monkeypatch, test="import pytest\n@pytest.mark.component('postgers')\ndef test(): pass\n"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no component 'postgers'; there are: *postgres*"])
