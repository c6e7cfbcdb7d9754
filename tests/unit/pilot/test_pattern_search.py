"""Patterns of known errors: what ours find, how files of them are read, and that no regular expression runs for long."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import List, Tuple

import pytest

from pilot import pattern_search
from pilot.pattern_search import Found, Pattern, Problem, gathered, parse, search, shipped, text_of, tidy
from protocol.errors import BY_NAME, Blame, Budget, PilotageError

SHIPPED = shipped()
CATASTROPHE = Pattern("bad", "(a+)+$", "PAYLOAD_FAILED", place="site.ini")


def first(text: str, patterns: List[Pattern] = SHIPPED) -> Tuple[str, str]:
    """Name and line of the pattern that would decide."""
    found = next((each for each in search(patterns, [("t", tidy(text))]) if isinstance(each, Found)), None)
    return (found.pattern, found.line) if found else ("", "")


# -- ours -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", SHIPPED, ids=lambda pattern: pattern.name)
def test_92_each_pattern_of_ours_is_the_first_that_matches_its_example(pattern: Pattern) -> None:
    assert pattern.example, "an example shows what is meant"
    assert first(pattern.example)[0] == pattern.name


MORE = [
    ("slurm_memory", "srun: error: node07: task 3: Out Of Memory"),
    ("slurm_memory", "slurmstepd: error: Exceeded job memory limit"),
    ("slurm_node", "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2025-01-01T00:00:00 DUE TO NODE FAILURE ***"),
    ("slurm_time", "slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2025-01-01T00:00:00 DUE TO TIME LIMIT ***"),
    ("pbs_memory", "=>> PBS: job killed: vmem 2104320kb exceeded limit 2097152kb"),
    ("c++_bad_alloc", "reco: std::bad_alloc caught in Track::fit"),
    ("python_memory", "Traceback (most recent call last):\n  File 'x'\nMemoryError"),
    ("kernel_out_of_memory", "Out of memory: Kill process 12 (python) score 900 or sacrifice child"),
    ("segmentation_fault", " *** Break *** segmentation violation"),
    ("gpu_missing", "cudaGetDeviceCount returned 100 -> no CUDA-capable device is detected"),
    ("disk_full", "OSError: [Errno 28] No space left on device"),
    ("cvmfs_silent", "cat: /cvmfs/spd.example/a: Input/output error"),
    ("cvmfs_missing", "FileNotFoundError: [Errno 2] No such file or directory: '/cvmfs/spd.example/a'"),
    ("disk_error", "OSError: [Errno 5] Input/output error: 'a'"),
    ("network_refused", "wget: unable to connect: Connection refused"),
    ("host_name", "socket.gaierror: [Errno -2] Name or service not known"),
    ("root_damaged_file", "Warning in <TFile::Init>: no keys recovered, file has been made a Zombie"),
    ("library_missing", "ImportError: libfoo.so.1: cannot open shared object file: No such file or directory"),
    ("command_not_found", "sh: 1: nonsense: not found"),
    ("script", "sh: 3: Syntax error: end of file unexpected"),
    ("file_missing", "cat: none: No such file or directory"),
    ("aborted", "Aborted (core dumped)"),
    ("python", "first\nTraceback (most recent call last):\n  File 'x'\n\nmy.Error: one\ntwo"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), MORE)
def test_92_other_words_for_the_same_are_known_too(name: str, text: str) -> None:
    assert first(text)[0] == name


@pytest.mark.parametrize(
    "text",
    ["", "all is well", "0 errors, 0 warnings", "exit 1", "INFO  connecting", "killed 3 ghosts in the track fit",
     "Warning in <TFile::Init>: file a.root probably not closed, trying to recover",
     "-------- WWWW ------- G4Exception-START -------- WWWW -------\n*** G4Exception : Run0034",
     "ApplicationMgr       INFO Application Manager Terminated successfully"],
)  # fmt: skip
def test_harmless_words_are_not_taken_for_an_error(text: str) -> None:
    assert first(text) == ("", "")


def test_a_harmless_word_early_in_a_long_text_does_not_hide_how_it_ended() -> None:
    text = (
        "cp: cannot stat 'cache': No such file or directory\n"
        + "event\n" * 100
        + "Traceback (most recent call last):\n  File 'x'\nKeyError: 'pt'\n"
    )
    assert first(text) == ("python", "KeyError: 'pt'")


def test_the_last_exception_of_a_chain_is_the_one_that_is_shown() -> None:
    text = "Traceback (most recent call last):\n  File 'a'\nKeyError: 1\n\nDuring handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n  File 'b'\nValueError: two\n"
    assert first(text) == ("python", "ValueError: two")


def test_colours_and_carriage_returns_hide_nothing() -> None:
    assert first("10 %\r20 %\rFloating \x1b[31mpoint exception\x1b[0m\r\n")[0] == "floating_point"


@pytest.mark.parametrize("pattern", SHIPPED, ids=lambda pattern: pattern.name)
def test_what_a_payload_says_accuses_no_node_and_no_queue(pattern: Pattern) -> None:
    """A user must not be able to close a queue by what his payload prints; a site's own patterns may name any error."""
    entry = BY_NAME[pattern.error]
    assert entry.suspect in (Blame.PAYLOAD, Blame.USER)
    assert entry.budget is not Budget.NONE, "else it would be tried again for ever"


def test_every_error_that_is_known_from_texts_alone_is_named_by_a_pattern() -> None:
    named = {pattern.error for pattern in SHIPPED}
    unnamed = {entry.name for entry in BY_NAME.values() if entry.hearsay} - named
    assert unnamed <= {"CONTAINER_SETUP_MISSING"}, "no row without a use"


# -- files ----------------------------------------------------------------------------------------------------------------------


def test_a_sites_pattern_goes_before_ours_and_takes_the_place_of_one_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text("[mine]\nregex = KeyError\nerror = bad_command\nadvice = ask us\n")
    own = "[python]\nregex = ^zebra\nerror = PAYLOAD_FAILED\n[mine]\nregex = lion\nerror = PAYLOAD_FAILED\n"
    patterns, problems = gathered([str(tmp_path / "a.ini")], [("the plugin", own)])
    assert not problems
    assert patterns[0] == Pattern("mine", "KeyError", "BAD_COMMAND", "ask us", place=str(tmp_path / "a.ini"))
    assert [each.regex for each in patterns if each.name == "python"] == ["^zebra"]
    assert first("lion", patterns) == ("", "")


def test_a_pattern_without_a_regex_takes_one_of_ours_out() -> None:
    patterns, problems = gathered([], [("x", "[Disk Full]\nregex =\n")])
    assert not problems and len(patterns) == len(SHIPPED) - 1
    assert first("No space left on device", patterns) == ("", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a]\nerror = PAYLOAD_FAILED\n", "line 1: [a] has no regex"),
        ("[a]\nregex = x\n", "line 1: [a] error '' is not in the catalogue"),
        ("[a]\nregex = x\nerror = PAYLOAD_FALED\n", "did you mean PAYLOAD_FAILED?"),
        ("[a]\nregex = x\nerror = PAYLOAD_FAILED\nadvise = y\n", "line 4: unknown key 'advise'; did you mean advice?"),
        ("[a]\nregex = x\nerror = PAYLOAD_FAILED\nlast_lines = few\n", "last_lines must be a whole number"),
        ("regex = x\n", "a key before the first section"),
        ("[a]\nregex = x\n[a]\nregex = y\n", "occurs twice"),
        ("[a]\nregex = \x07\n", "control character"),
    ],
)  # fmt: skip
def test_b26_a_file_that_is_wrong_is_told_with_its_line_and_the_others_count(
    text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.ini").write_text(text)
    patterns, problems = gathered([str(tmp_path / "wrong.ini"), str(tmp_path / "none.ini")], [])
    assert patterns == SHIPPED
    assert told in problems[0].words and "wrong.ini" in problems[0].words
    assert "none.ini cannot be read: No such file" in problems[1].words


def test_what_cannot_be_a_pattern_is_told_and_the_search_goes_on() -> None:
    bad = [Pattern("open", "(x", "PAYLOAD_FAILED"), Pattern("all", "a*", "PAYLOAD_FAILED")]
    answers = list(search([*bad, Pattern("good", "x", "PAYLOAD_FAILED")], [("t", "x")]))
    assert [type(each) for each in answers] == [Problem, Problem, Found]
    assert "is no regular expression" in str(answers[0]) and "matches an empty text" in str(answers[1])


# -- searching ------------------------------------------------------------------------------------------------------------------


def test_the_last_match_counts_and_a_group_named_line_says_what_is_shown() -> None:
    pattern = Pattern("p", r"start\n(?P<line>.*)", "PAYLOAD_FAILED")
    assert first("start\none\nstart\nx two\nend", [pattern]) == ("p", "x two")
    assert first("a x\nb x c\nd", [Pattern("p", "x", "PAYLOAD_FAILED")]) == ("p", "b x c")


def test_last_lines_bounds_where_it_is_looked_for() -> None:
    pattern = Pattern("p", "x", "PAYLOAD_FAILED", last_lines=2)
    assert first("x\nb\nc\n\n", [pattern]) == ("", "")
    assert first("a\nx\nc\n\n", [pattern]) == ("p", "x")


def test_texts_are_searched_in_their_order_and_all_that_is_found_can_be_had() -> None:
    patterns = [Pattern("p", "x", "PAYLOAD_FAILED"), Pattern("q", "y", "PAYLOAD_FAILED")]
    texts = [("err", "y"), ("out", "y x")]
    assert [(each.pattern, each.text) for each in search(patterns, texts, every=True)] == [
        ("p", "out"),
        ("q", "err"),
        ("q", "out"),
    ]  # type: ignore[union-attr]
    assert [each.pattern for each in search(patterns, texts)] == ["p"]  # type: ignore[union-attr]


def test_b23_a_pattern_that_would_run_for_years_is_given_up_and_the_others_still_count() -> None:
    began = time.process_time()
    answers = list(
        search(
            [CATASTROPHE, Pattern("good", "b$", "PAYLOAD_FAILED")],
            [("t", tidy("a" * 1_000_000 + "b"))],
            seconds=0.1,
        )
    )
    assert time.process_time() - began < 5
    assert isinstance(answers[0], Problem) and "[bad] was given up" in answers[0].words
    assert isinstance(answers[1], Found)


def test_b23_ours_are_quick_on_hostile_texts() -> None:
    """Each text is more than a pilot looks at, of what makes patterns slow."""
    nasty = ["a" * 500_000, "Error in <" * 50_000, "/cvmfs/" * 70_000, "sh: line 1: " * 40_000, "\n" * 300_000,
             "Traceback (most recent call last):\n" * 9_000, " x\n" * 100_000, "FATAL:   " * 50_000]  # fmt: skip
    for text in nasty:
        answers = list(search(SHIPPED, [("t", tidy(text))], every=True))
        assert not [each.words for each in answers if isinstance(each, Problem)], text[:20]


def test_b22_a_line_of_a_gigabyte_is_shown_short(tmp_path: Path) -> None:
    path = tmp_path / "payload.stderr"
    path.write_bytes(b"KeyError " + b"z" * 3_000_000)
    text = text_of(str(path), 1 << 20)
    assert len(text) <= pattern_search.LONGEST_LINE * 2 + 1
    assert len(first(text, [Pattern("p", "KeyError", "PAYLOAD_FAILED")])[1]) <= pattern_search.LINE_CHARACTERS


def test_of_a_large_text_head_and_tail_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"head\n" + b"middle\n" * 1000 + b"tail\n")
    text = text_of(str(path), 400)
    assert text.startswith("head\n") and text.endswith("tail\n") and len(text) <= 401
    path.write_bytes(b"0123456789")
    assert [text_of(str(path), limit) for limit in (10, 11, 1000)] == ["0123456789"] * 3


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    os.symlink("secret", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "", "none", "/dev/zero", "nul\0l"):
        assert text_of(str(tmp_path / name), 1000) == ""


def test_bytes_that_are_no_text_are_harmless(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xff\xfe KeyError \x00 {{7*7}} %s%n")
    assert "KeyError" in text_of(str(tmp_path / "t"), 1000)


def test_the_documented_keys_are_those_that_are_taken() -> None:
    head = (
        (Path(pattern_search.__file__).parent / pattern_search.SHIPPED).read_text().split("[slurm memory]")[0]
    )
    assert set(re.findall(r"^#   (\w+)  ", head, re.MULTILINE)) == set(pattern_search.KEYS)


def test_a_file_of_patterns_may_be_empty() -> None:
    assert parse(b"", "x") == []
    with pytest.raises(PilotageError, match="BAD|larger than 1 MiB"):
        parse(b"#" * (2 << 20), "x")
