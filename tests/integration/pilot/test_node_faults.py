"""F13, F14, F20, F21: what goes wrong on the node or comes from outside, at each stage of a job, with real pilots."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from copytools import checksum
from protocol.errors import PilotExit
from protocol.messages.pilots import InputFile, OutputFile, Step, StepKind
from tests.fakes.dispatcher import Dispatcher
from tests.filesystems import mounted
from tests.pilots import Site
from tests.waiting import wait_until

Reached = Callable[..., None]

TOOL = """
import os, time
from copytools.base import CopyTool

class Tool(CopyTool):
    schemes = ("slow", "lying", "short", "flipped")

    def copy_in(self, source, to, timeout):
        kind, _, path = source.partition(":")
        data = bytearray(open(path, "rb").read())
        if kind == "lying":
            return None
        if kind == "slow":
            self._wait(path, timeout)
        if kind == "short":
            del data[-1]
        if kind == "flipped":
            data[0] ^= 1
        to.write_bytes(data)
        return None

    def copy_out(self, path, target, timeout):
        self._wait(target.partition(":")[2], timeout)
        return None

    def _wait(self, path, timeout):
        open(path + ".copying", "w").close()
        deadline = self.deadline(timeout)
        while not os.path.exists(path + ".go"):
            deadline.pause(0.05)
"""


@pytest.fixture
def tool(site: Site) -> Dict[str, str]:
    """A copytool from outside that is slow or lies, and the setting that brings it."""
    place = site.place / "packages"
    (place / "oddtool-1.dist-info").mkdir(parents=True)
    (place / "oddtool.py").write_text(TOOL)
    (place / "oddtool-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: oddtool\nVersion: 1\n"
    )
    (place / "oddtool-1.dist-info" / "entry_points.txt").write_text("[pilotage.copytools]\nodd = oddtool\n")
    return {"PYTHONPATH": str(place)}


class Phase:
    """A job that stands still in one phase of its life until somebody lets it go."""

    def __init__(self, name: str, site: Site, dispatcher: Dispatcher) -> None:
        self.name = name
        self._mark = site.place / "phase"
        fields: Dict[str, Any] = {}
        command = ["sh", "-c", "echo done > out"]
        wait = f"touch {self._mark}.copying; until [ -e {self._mark}.go ]; do sleep 0.05; done"
        if name == "stage-in":
            self._mark.write_bytes(b"x")
            fields["inputs"] = [InputFile("a", "s", "d", 1, {}, f"slow:{self._mark}")]
        elif name == "stage-out":
            fields["outputs"] = [OutputFile("out", "test", "out", f"slow:{self._mark}")]
        elif name == "running":
            command = ["sh", "-c", f"{wait}; exec {nap(site)}"]
        else:
            fields["steps"] = [Step(StepKind(name), ["sh", "-c", wait])]
        self.number = dispatcher.add(*command)
        dispatcher.waiting[-1] = replace(dispatcher.waiting[-1], **fields)

    def reached(self) -> None:
        wait_until(Path(f"{self._mark}.copying").exists, 15, f"the job in {self.name}")


NOT_ELSEWHERE = ("pre", "post", "stage-out")
"""Phases: stage-in and the payload itself have tests of their own in test_signals.py."""


def letters(site: Site) -> List[Path]:
    return sorted((site.work / "outbox").glob("*/*.json"))


# -- told to end, killed, cancelled: in each phase ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_ELSEWHERE)
def test_f20_a_pilot_that_is_told_to_end_gives_its_job_back_in_any_phase(
    name: str, site: Site, dispatcher: Dispatcher, tool: Dict[str, str]
) -> None:
    phase = Phase(name, site, dispatcher)
    pilot = site.start(**tool)
    phase.reached()
    began = time.monotonic()
    pilot.signal(signal.SIGTERM)
    assert pilot.wait() == PilotExit.TERMINATED
    assert time.monotonic() - began < 10
    end = dispatcher.attempt(phase.number).end
    assert end is not None and end.error == "PILOT_SIGTERM", end
    assert not site.processes() and [path.name for path in site.work.iterdir()] == ["outbox"]


@pytest.mark.parametrize("name", ["stage-in", "running", "stage-out"])
def test_f04_what_a_pilot_left_that_was_killed_in_any_phase_is_gone_with_the_next_one(
    name: str, site: Site, dispatcher: Dispatcher, tool: Dict[str, str]
) -> None:
    """Directories, and processes too: without a container nothing else would end them."""
    phase = Phase(name, site, dispatcher)
    pilot = site.start(**tool)
    phase.reached()
    pilot.signal(signal.SIGKILL)
    pilot.wait()
    assert list(site.work.glob("pilot-*/job-*"))
    good = dispatcher.add("true")
    assert site.run(**tool) == PilotExit.DONE
    assert dispatcher.attempt(good).state == "COMPLETED"
    assert dispatcher.attempt(phase.number).end is None, "nobody speaks for the dead one"
    assert not site.processes() and not sleepers(site)
    assert [path.name for path in site.work.iterdir()] == ["outbox"]


def nap(site: Site) -> str:
    """Long, and known again."""
    return f"sleep 605.{abs(hash(str(site.place))) % 1_000_000}"


def sleepers(site: Site) -> List[str]:
    found, wanted = [], nap(site).replace(" ", "\0").encode() + b"\0"
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cmdline").read_bytes() == wanted:
                found.append(name)
        except OSError:
            continue
    return found


def test_nobody_elses_process_in_a_dead_pilots_directory_is_ended(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    """An operator who looks into it, say."""
    number = dispatcher.add(*nap(site).split())
    pilot = site.start()
    reached(number, "RUNNING")
    wait_until(lambda: sleepers(site), 10, "the payload")
    pilot.signal(signal.SIGKILL)
    pilot.wait()
    (place,) = site.work.glob("pilot-*/job-*/")
    looking = subprocess.Popen(["sleep", "60"], cwd=place)
    try:
        site.run("--idle", "0")
        assert looking.poll() is None
        assert not sleepers(site) and not place.exists()
    finally:
        looking.kill()
        looking.wait()


@pytest.mark.parametrize("name", NOT_ELSEWHERE)
def test_f21_a_job_that_is_cancelled_in_any_phase_stops_and_publishes_nothing(
    name: str, site: Site, dispatcher: Dispatcher, tool: Dict[str, str]
) -> None:
    dispatcher.queue.heartbeat_seconds = 0.5
    phase = Phase(name, site, dispatcher)
    site.start(**tool)
    phase.reached()
    dispatcher.held[phase.number].stop = True
    assert site.pilots[-1].wait(10) == PilotExit.DONE
    held = dispatcher.attempt(phase.number)
    assert held.end is None and not letters(site)
    assert not [word for word in held.words if word.outputs]
    assert not list(dispatcher.storage.rglob("*.tar.gz")), "not even its log"
    assert not site.processes()


def test_f21_a_job_that_is_cancelled_while_its_completion_is_on_the_way_is_given_up(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    number = dispatcher.add("sh", "-c", 'until [ -e "$0" ]; do sleep 0.05; done', str(site.place / "go"))
    pilot = site.start()
    reached(number, "RUNNING")
    words = len(dispatcher.bodies("updateJob"))
    dispatcher.misbehave("updateJob", times=1, seconds=1, drop=True)
    (site.place / "go").touch()
    wait_until(lambda: len(dispatcher.bodies("updateJob")) > words, 10, "the word that gets lost")
    dispatcher.held[number].stop = True
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(number).end is None and not letters(site)


# -- the node's disk ------------------------------------------------------------------------------------------------------------


FILLS = "head -c 20000000 /dev/zero > fill 2>&-; while echo lost 2>&-; do :; done; rm fill; exit {code}"
"""Until nobody takes its text any more."""


@pytest.mark.component("mount")
def test_f13_text_that_a_full_disk_did_not_take_is_told_though_there_is_room_again(
    site: Site, dispatcher: Dispatcher
) -> None:
    failed, fine = (dispatcher.add("sh", "-c", "trap '' PIPE; " + FILLS.format(code=code)) for code in (3, 0))
    with mounted("size=16m") as small:
        code = site.run(
            "-a",
            str(small),
            "--max-jobs",
            "2",
            PILOTAGE_LIMITS__FREE_DISK_MB="10",
            PILOTAGE_LIMITS__FULL_DISK_MB="0",
        )
    assert code == PilotExit.DONE
    end = dispatcher.attempt(failed).end
    assert end is not None and (end.error, end.exit_code) == ("NO_LOCAL_SPACE", 3), (
        "the payload is not to blame"
    )
    assert "what it printed could not be kept" in end.error_detail
    well = dispatcher.attempt(fine).end
    assert well is not None and (well.error, well.metrics["text_lost"]) == ("", 1.0)
    assert "not all that the payload printed could be kept" in site.archive(fine)[f"job-{1000 + fine}-1.log"]


def made_read_only(place: Path) -> None:
    """For whoever opens something from now on."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)


@pytest.mark.component("mount")
def test_f13_a_disk_that_becomes_read_only_is_no_fault_of_the_payload_and_brings_no_further_job(
    site: Site, dispatcher: Dispatcher
) -> None:
    go = site.place / "go"
    script = f"touch {go}.ready; until [ -e {go} ]; do sleep 0.05; done; echo more > {{workdir}}/more"
    number, after = dispatcher.add("sh", "-ec", script), dispatcher.add("true")
    with mounted("size=16m") as small:
        pilot = site.start("-a", str(small), "--max-jobs", "2", PILOTAGE_LIMITS__FREE_DISK_MB="1")
        wait_until(Path(f"{go}.ready").exists, 10, "the payload")
        made_read_only(small)
        go.touch()
        assert pilot.wait() == PilotExit.NODE_UNFIT
        subprocess.run(["umount", str(small)], check=True)
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "PAYLOAD_READ_ONLY_DISK", end
    assert [spec.attempt_id for spec in dispatcher.waiting] == [after], "the next one goes elsewhere"
    assert "cannot be written" in pilot.log


@pytest.mark.component("mount")
def test_f13_a_disk_that_is_read_only_before_the_payload_is_no_bad_command(
    site: Site, dispatcher: Dispatcher, tool: Dict[str, str]
) -> None:
    phase = Phase("stage-in", site, dispatcher)
    with mounted("size=16m") as small:
        pilot = site.start("-a", str(small), **tool, PILOTAGE_LIMITS__FREE_DISK_MB="1")
        phase.reached()
        made_read_only(small)
        (place,) = small.glob("pilot-*/job-*/inputs")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
        Path(f"{site.place}/phase.go").touch()
        pilot.wait()
        for mount in (place, small):
            subprocess.run(["umount", str(mount)], check=True)
    end = dispatcher.attempt(phase.number).end
    assert end is not None and end.error == "NODE_UNFIT", end


GONE = {
    "removed, and failed": ("rm -rf $PWD; exit 1", "PAYLOAD_FAILED"),
    "removed, while it is looked at": ("rm -rf $PWD; sleep 1; exit 1", "PAYLOAD_FAILED"),
    "removed, and all is well": ("rm -rf $PWD", "MISSING_OUTPUT"),
    "moved": ("mv $PWD $PWD-away; sleep 0.5", "MISSING_OUTPUT"),
    "a file in its place": ("rm -rf $PWD; touch $PWD; sleep 0.5", "MISSING_OUTPUT"),
    "a link in its place": ("rm -rf $PWD; ln -s /etc $PWD; sleep 0.5", "MISSING_OUTPUT"),
}


def test_f16_a_payload_that_removes_its_directory_costs_its_job_and_not_its_pilot(
    site: Site, dispatcher: Dispatcher
) -> None:
    """With B5: of a link in the directory's place no file is taken for an output."""
    numbers = {
        what: dispatcher.add("sh", "-c", script, outputs=["passwd"]) for what, (script, _) in GONE.items()
    }
    early = dispatcher.add("true", steps=[Step(StepKind.PRE, ["sh", "-c", "rm -rf $PWD"])])
    good = dispatcher.add("true")
    assert site.run("--max-jobs", str(len(numbers) + 2)) == PilotExit.DONE
    ends = {what: dispatcher.attempt(number).end for what, number in numbers.items()}
    assert {what: end.error for what, end in ends.items() if end} == {
        what: error for what, (_, error) in GONE.items()
    }
    assert not site.stored(f"passwd.{numbers['a link in its place']}").exists()
    assert dispatcher.attempt(early).end.error == "BAD_COMMAND"  # type: ignore[union-attr]
    assert dispatcher.attempt(good).state == "COMPLETED"


def test_f13_a_site_that_removes_the_pilots_directory_ends_the_pilot_and_is_told(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    """A cleaner of old files, say."""
    go = site.place / "go"
    number = dispatcher.add("sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done", outputs=["out"])
    after = dispatcher.add("true")
    pilot = site.start("--max-jobs", "2")
    reached(number, "RUNNING")
    (place,) = site.work.glob("pilot-*/")
    subprocess.run(["rm", "-rf", str(place)], check=True)
    go.touch()
    assert pilot.wait() == PilotExit.NODE_UNFIT
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "NODE_UNFIT", end
    assert [spec.attempt_id for spec in dispatcher.waiting] == [after]


@pytest.mark.component("mount")
def test_f13_a_log_of_the_pilot_on_a_full_disk_costs_no_job(site: Site, dispatcher: Dispatcher) -> None:
    numbers = [dispatcher.add("sh", "-c", "echo fine > out", outputs=["out"]) for _ in range(2)]
    with mounted("size=64k") as small:
        fill(small)
        code = site.run("--max-jobs", "2", "--log-file", str(small / "pilot.log"), "--log-level", "DEBUG")
    assert code == PilotExit.DONE
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED", "COMPLETED"]


def fill(place: Path) -> None:
    with open(place / "fill", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 1024):
                pass
        except OSError:
            pass


# -- storage --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("lying", "STAGE_IN_FAILED"),
        ("short", "INPUT_SIZE_MISMATCH"),
        ("flipped", "STAGE_IN_ADLER32_MISMATCH"),
    ],
)
def test_f14_a_copytool_that_says_well_done_and_has_not_is_found_out(
    kind: str, error: str, site: Site, dispatcher: Dispatcher, tool: Dict[str, str]
) -> None:
    path = site.place / "source"
    path.write_bytes(b"content")
    known = checksum.of(path, ("adler32",))
    number = dispatcher.add("true", inputs=[InputFile("a", "s", "d", 7, known, f"{kind}:{path}")])
    site.run(**tool)
    held = dispatcher.attempt(number)
    assert held.end is not None and held.end.error == error, held.end
    assert "RUNNING" not in held.states


def test_f14_a_copytool_that_hangs_is_given_up_after_its_time_and_tried_again(
    site: Site, dispatcher: Dispatcher, tool: Dict[str, str]
) -> None:
    path = site.place / "source"
    path.write_bytes(b"x")
    number = dispatcher.add("true", inputs=[InputFile("a", "s", "d", 1, {}, f"slow:{path}")])
    site.run(**tool, PILOTAGE_COPYTOOLS__TIMEOUT_SECONDS="1", PILOTAGE_COPYTOOLS__RETRIES="1")
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "STAGE_IN_TIMEOUT", end
    assert site.pilots[-1].log.count("a copy failed") == 1


# -- outputs that are none ------------------------------------------------------------------------------------------------------


NO_OUTPUTS = {
    "a link": ("ln -s /etc/passwd out", "OUTPUT_NOT_A_FILE"),
    "a link to nothing": ("ln -s nothing out", "OUTPUT_NOT_A_FILE"),
    "a pipe": ("mkfifo out", "OUTPUT_NOT_A_FILE"),
    "a directory": ("mkdir out", "OUTPUT_NOT_A_FILE"),
    "a socket": (
        "{python} -c \"import socket; socket.socket(socket.AF_UNIX).bind('out')\"",
        "OUTPUT_NOT_A_FILE",
    ),
    "a second name": ("echo x > other; ln other out", "STAGE_OUT_FAILED"),
}


def test_b05_no_output_that_is_something_else_is_stored(site: Site, dispatcher: Dispatcher) -> None:
    numbers = {
        what: dispatcher.add("sh", "-c", script, outputs=["out"]) for what, (script, _) in NO_OUTPUTS.items()
    }
    assert site.run("--max-jobs", str(len(numbers)), PILOTAGE_COPYTOOLS__RETRIES="0") == PilotExit.DONE
    for what, number in numbers.items():
        end = dispatcher.attempt(number).end
        assert end is not None and end.error != "", what
        assert end.error == NO_OUTPUTS[what][1] or what == "a second name", (what, end.error)
        assert not site.stored(f"out.{number}").exists(), what


# -- addresses that lead to the pilot -------------------------------------------------------------------------------------------


def test_b25_what_is_the_pilots_own_is_no_input_and_no_place_for_an_output(
    site: Site, dispatcher: Dispatcher, reached: Reached
) -> None:
    """A container hides it from the payload; no address may bring it in."""
    (site.place / "way-in").symlink_to(site.place)
    paths = [
        site.token,
        site.place / "way-in" / "token",
        site.work / "outbox" / "x",
        site.work / "pilot-other" / "job-1-1" / "x",
    ]
    for path in paths[2:]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * site.token.stat().st_size)
    size = site.token.stat().st_size
    numbers = [
        dispatcher.add("cat", "{input}", inputs=[InputFile("a", "s", "d", size, {}, f"file://{path}")])
        for path in paths
    ]
    writing = dispatcher.add("sh", "-c", "echo > out", outputs=["out"])
    spec = dispatcher.waiting[-1]
    dispatcher.waiting[-1] = replace(
        spec, outputs=[replace(spec.outputs[0], url=f"file://{site.work}/outbox/p/1-1.json")]
    )
    assert site.run("--max-jobs", str(len(paths) + 1)) == PilotExit.DONE
    ends = [dispatcher.attempt(number).end for number in (*numbers, writing)]
    assert [end.error for end in ends if end] == ["BAD_PATH"] * (len(paths) + 1)
    assert not (site.work / "outbox" / "p").exists()


WORDS = ["; rm -rf ~", "$(id)", "`id`", "a\nb", "--help", "%s%n", "'", '"', "*", "\x1b[2J"]


def test_b24_the_words_of_a_command_stay_words_and_what_cannot_be_started_is_told(
    site: Site, dispatcher: Dispatcher
) -> None:
    fine = dispatcher.add(
        "{python}", "-c", "import os, sys; print(sys.argv[1:], os.environ['BASH_FUNC_x%%'])", *WORDS,
        environment={"BASH_FUNC_x%%": "() {{ id; }}", "PYTHONPATH": "/no/such", "PATH": ""},
    )  # fmt: skip
    too_long = dispatcher.add("echo", *["x" * 100_000] * 30)
    nul, name = dispatcher.add("echo", "a\0b"), dispatcher.add("true", environment={"A=B": "x"})
    assert site.run("--max-jobs", "4") == PilotExit.DONE
    assert dispatcher.attempt(fine).state == "COMPLETED", dispatcher.attempt(fine).end
    assert site.archive(fine)["payload.stdout"] == f"{WORDS} () {{ id; }}\n"
    for number in (too_long, nul, name):
        end = dispatcher.attempt(number).end
        assert end is not None and end.error == "BAD_COMMAND", number
