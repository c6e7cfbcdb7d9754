"""What commands print: whole rows into a pipe, nothing that drives a terminal, JSON as the server said it."""

from __future__ import annotations

import json

import pytest

from client import tables
from client.tables import Column
from protocol.messages.views import StorageView
from protocol.states import JobState

COLUMNS = (Column("storage", lambda view: view.name), Column("address", lambda view: view.url))


def test_a_row_is_one_line_in_a_pipe_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    long = "file:///" + "x" * 500
    tables.print_table([StorageView("A", long), StorageView("B", "file:b")], COLUMNS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["storage", "address"], ["A", long], ["B", "file:b"]]
    assert all(line == line.rstrip() for line in lines)


def test_control_characters_and_markup_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table([StorageView("\x1b[2J[red]x[/red]\r\nfake", ":smile:")], COLUMNS)
    out = capsys.readouterr().out
    assert r"\x1b[2J[red]x[/red]\r\nfake" in out
    assert ":smile:" in out
    assert len(out.splitlines()) == 2


def test_a_fact_that_is_missing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_facts({"name": "x", "error": None, "reason": "", "zero": 0})
    assert capsys.readouterr().out == "name  x\nzero  0\n"


def test_json_is_what_the_server_said(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show([StorageView("A", "file:\x1b")])
    out = capsys.readouterr().out
    assert json.loads(out) == [{"name": "A", "url": "file:\x1b", "site": "", "nSuspect": 0, "nBad": 0}]
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 * 1024**2, "10.0 MiB"),
        (2**31, "2.0 GiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_in_powers_of_1024(count: int, text: str) -> None:
    assert tables.size(count) == text


def test_times_and_what_lies_between() -> None:
    start, end = "2026-01-01T23:59:59.500Z", "2026-01-02T00:00:01.750Z"
    assert tables.when(start) == "2026-01-01 23:59:59"
    assert tables.duration(start, end) == "2.2 s"
    assert tables.when(None) is None and tables.duration(start, None) is None


def test_counts_stand_in_the_order_of_the_states_and_unknown_ones_last() -> None:
    numbers = {"NEWER": 5, JobState.COMPLETED.value: 3, JobState.READY.value: 2, JobState.RUNNING.value: 0}
    assert tables.counts(numbers).plain == "READY 2, COMPLETED 3, NEWER 5"
    assert tables.counts({}).plain == ""


def test_ended_jobs_are_those_in_a_final_state() -> None:
    assert tables.ended({"READY": 1, "COMPLETED": 2, "FAILED": 3, "CANCELLED": 4, "FINISHED": 5}) == 9
