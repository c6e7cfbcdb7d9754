"""Known errors in what payloads write: the search is a process of its own, and what it finds becomes the job's error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, List, Optional, Sequence

import pytest

from pilot import pattern_search, patterns
from pilot.patterns import Answer, Sources, look
from server import pilot_package
from tests.components import old_python
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site

CATASTROPHE = "[bad]\nregex = (a+)+$\nerror = BAD_COMMAND\n"
RAISES = "print('before'); raise KeyError('pt')"


def searched(texts: List[Path], where: Optional[Sources] = None, **how: Any) -> Answer:
    return look(texts, where or Sources(), **{"seconds": 30.0, "limit_bytes": 1 << 20, **how})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "payload.stderr"
    path.write_text("so far so good\nOSError: [Errno 28] No space left on device\n")
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Let a shell script take the place of the search."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


# -- the process ----------------------------------------------------------------------------------------------------------------


def test_what_is_found_comes_with_its_line_and_where_it_stood(text: Path, tmp_path: Path) -> None:
    answer = searched([tmp_path / "none", text])
    assert answer.complete and not answer.problems
    [found] = answer.found
    assert (found.pattern, found.error, found.text) == ("disk_full", "PAYLOAD_DISK_FULL", str(text))
    assert patterns.said(found, str) == "payload.stderr says: OSError: [Errno 28] No space left on device"


def test_b23_a_catastrophic_pattern_costs_little_and_the_others_count(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("a" * 1_000_000 + "b\nstd::bad_alloc\n" + "a" * 5000 + "b")
    began = time.monotonic()
    answer = searched([path], Sources(own=[("site", CATASTROPHE)]))
    assert time.monotonic() - began < 20
    assert [each.pattern for each in answer.found] == ["c++_bad_alloc"] and answer.complete
    assert "the pattern [bad] was given up" in answer.problems[0]


def test_b23_a_search_that_is_late_is_killed_and_what_it_has_said_counts(
    text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = '{"found": ["p", "PAYLOAD_FAILED", "words", "t", ""]}'
    stand_in(
        monkeypatch,
        tmp_path,
        f"echo '{line}'; echo '{{\"found\": [\"cut'; echo $$ > {tmp_path}/pid; exec sleep 1000",
    )
    answer = searched([text], seconds=0.5)
    assert [each.pattern for each in answer.found] == ["p"] and not answer.complete
    number = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{number}").exists()


def test_a_search_that_nobody_waits_for_any_more_is_killed(
    text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, tmp_path, f"touch {tmp_path}/begun; exec sleep 1000")
    answer = searched([text], stop=(tmp_path / "begun").exists)
    assert answer == Answer([], [], False)


@pytest.mark.parametrize(
    "script", ["exit 1", "echo nonsense", "kill -9 $$", 'echo \'{"found": ["p", "NO_SUCH", "", "", ""]}\'']
)
def test_a_search_that_dies_or_talks_nonsense_finds_nothing(
    script: str, text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, tmp_path, script)
    assert searched([text]) == Answer([], [], False)


def test_a_search_that_cannot_begin_finds_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert searched([text]) == Answer([], [], False)


@pytest.mark.parametrize("python", [sys.executable, *filter(None, [old_python()])])
def test_the_pilot_as_one_file_searches_with_the_patterns_that_it_carries(
    python: str, text: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "pilot.pyz"
    pilot_package.build(archive)
    assert "pilot/patterns.ini" in zipfile.ZipFile(archive).namelist()
    done = subprocess.run(
        [python, str(archive), "patterns", str(text)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "disk_full" in done.stdout and "PAYLOAD_DISK_FULL" in done.stdout


# -- jobs -----------------------------------------------------------------------------------------------------------------------


def failed(
    site: Site, dispatcher: Dispatcher, *command: str, options: Sequence[str] = (), **settings: str
) -> Any:
    number = dispatcher.add(*command)
    site.run("--max-jobs", "1", *options, **settings)
    return dispatcher.attempt(number).end


def test_92_the_matching_line_and_its_error_are_reported(site: Site, dispatcher: Dispatcher) -> None:
    end = failed(site, dispatcher, sys.executable, "-c", RAISES)
    assert (end.error, end.exit_code) == ("PAYLOAD_PYTHON_EXCEPTION", 1)
    assert end.error_detail.startswith(
        "exit code 1; payload.stderr says: KeyError: 'pt'; its last words: Traceback"
    )


def test_92_log_files_of_the_payload_are_searched_too(site: Site, dispatcher: Dispatcher) -> None:
    end = failed(
        site,
        dispatcher,
        "sh",
        "-c",
        "echo 'CUDA error: out of memory: CUDA out of memory' > reco.log; exit 1",
    )
    assert end.error == "GPU_OUT_OF_MEMORY"
    assert "reco.log says: CUDA error" in end.error_detail


def test_92_a_sites_own_patterns_come_first_with_their_advice(site: Site, dispatcher: Dispatcher) -> None:
    mine = site.place / "site.ini"
    mine.write_text(
        "[licence]\nregex = no licence for (?P<line>\\w+)\nerror = SOFTWARE_NOT_INSTALLED\nadvice = ask the site\n"
    )
    end = failed(
        site, dispatcher, "sh", "-c", "echo no licence for geant; ./none", PILOTAGE_PATTERNS__FILES=str(mine)
    )
    assert end.error == "SOFTWARE_NOT_INSTALLED"
    assert "payload.stdout says: no licence for geant (advice: ask the site)" in end.error_detail


def test_93_an_experiments_own_patterns_are_used(site: Site, dispatcher: Dispatcher) -> None:
    end = failed(
        site, dispatcher, "sh", "-c", "echo '[FATAL] FairRun::Init: no geometry' >&2; exit 1",
        options=["--pilotuser", "spd"],
    )  # fmt: skip
    assert end.error == "PAYLOAD_ABORTED"


def test_b23_a_job_is_reported_in_time_whatever_a_sites_pattern_does(
    site: Site, dispatcher: Dispatcher
) -> None:
    mine = site.place / "site.ini"
    mine.write_text(CATASTROPHE)
    number = dispatcher.add("sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' a; echo b; exit 7")
    pilot = site.start("--max-jobs", "1", PILOTAGE_PATTERNS__FILES=str(mine))
    pilot.wait(40)
    end = dispatcher.attempt(number).end
    assert (end.error, end.exit_code) == ("PAYLOAD_FAILED", 7)
    assert "[bad] was given up" in pilot.log


def test_b22_a_line_stays_one_line_and_shows_no_secret(site: Site, dispatcher: Dispatcher) -> None:
    program = "printf 'Error in <TFile::Init>: \\033[2J password=hunter22 \\001 <script>\\n' >&2; exit 1"
    end = failed(site, dispatcher, "sh", "-c", program)
    assert end.error == "PAYLOAD_INPUT_UNUSABLE"
    assert "hunter22" not in end.error_detail
    assert all(character.isprintable() for character in end.error_detail)


def test_a_signal_says_more_than_the_text(site: Site, dispatcher: Dispatcher) -> None:
    end = failed(site, dispatcher, "sh", "-c", "echo No space left on device >&2; kill -BUS $$")
    assert end.error == "PAYLOAD_BUS_ERROR"


def test_a_search_that_is_turned_off_changes_nothing(site: Site, dispatcher: Dispatcher) -> None:
    end = failed(site, dispatcher, sys.executable, "-c", RAISES, PILOTAGE_PATTERNS__SEARCH_SECONDS="0")
    assert end.error == "PAYLOAD_FAILED"


def test_a_job_that_succeeds_is_not_searched(site: Site, dispatcher: Dispatcher) -> None:
    """A file of patterns that cannot be read would be told in the log."""
    number = dispatcher.add("sh", "-c", "echo KeyError >&2")
    pilot = site.start("--max-jobs", "1", PILOTAGE_PATTERNS__FILES="/no/such/file.ini")
    pilot.wait()
    assert dispatcher.attempt(number).state == "COMPLETED" and "error pattern" not in pilot.log
    dispatcher.add("false")
    pilot = site.start("--max-jobs", "1", PILOTAGE_PATTERNS__FILES="/no/such/file.ini")
    pilot.wait()
    assert "an error pattern cannot be used" in pilot.log and "/no/such/file.ini cannot be read" in pilot.log


# -- the command ----------------------------------------------------------------------------------------------------------------


def command(*words: str, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "client.cli", "pilot", "patterns", *words]
    root = str(Path(patterns.__file__).parent.parent)
    return subprocess.run(
        program,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, "HOME": str(cwd)},
    )


def test_the_command_shows_what_is_found_the_first_that_counts_first(text: Path, tmp_path: Path) -> None:
    text.write_text(
        "Traceback (most recent call last):\n  File 'x'\nOSError: [Errno 28] No space left on device\n"
    )
    done = command(str(text), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["pattern", "error", "file", "line"]
    assert [line[:2] for line in lines[1:]] == [
        ["disk_full", "PAYLOAD_DISK_FULL"],
        ["python", "PAYLOAD_PYTHON_EXCEPTION"],
    ]


def test_the_command_reads_standard_input(text: Path, tmp_path: Path) -> None:
    text.write_text("all is well\n")
    done = command("-", str(text), cwd=tmp_path, given="terminate: std::bad_alloc\n")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [
        ["c++_bad_alloc", "PAYLOAD_BAD_ALLOC", "-"]
    ]


def test_the_command_tries_each_pattern_on_its_example(tmp_path: Path) -> None:
    good = command(cwd=tmp_path)
    assert good.returncode == 0 and good.stdout.count("matches") >= len(pattern_search.shipped())
    mine = tmp_path / "mine.ini"
    mine.write_text(
        "[a]\nregex = x+\nerror = PAYLOAD_FAILED\nexample = y\n[b]\nregex = (\nerror = PAYLOAD_FAILED\nexample = (\n"
    )
    done = command("--patterns", "mine.ini", cwd=tmp_path)
    assert done.returncode == 1
    assert "[a] does not match its example" in done.stderr and "is no regular expression" in done.stderr


def test_the_command_speaks_json_and_says_when_nothing_matches(tmp_path: Path) -> None:
    import json

    (tmp_path / "t").write_text("all is well\n")
    assert command("t", cwd=tmp_path).stdout.startswith("No pattern matches")
    assert json.loads(command("--json", "t", cwd=tmp_path).stdout) == {"rows": [], "problems": []}
    (tmp_path / "t").write_text("std::bad_alloc\n")
    [row] = json.loads(command("--json", "t", cwd=tmp_path).stdout)["rows"]
    assert row == {
        "pattern": "c++_bad_alloc",
        "error": "PAYLOAD_BAD_ALLOC",
        "code": 1223,
        "file": "t",
        "line": "std::bad_alloc",
    }
