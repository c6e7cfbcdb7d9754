"""Retries, verification and the choice of a copytool."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Tuple

import pytest

from copytools import checksum
from copytools.base import CopyTool
from pilot import settings as tables
from pilot.control import data
from pilot.jobrun import JobOver, JobRun
from protocol.errors import PilotageError
from protocol.messages.pilots import InputFile, JobSpec, OutputFile


class Recorder(CopyTool):
    """Copies from a dictionary, after as many failures as it was given."""

    schemes = ("mem",)
    content = b"content"

    def __init__(self, *failures: PilotageError, learned: Optional[Dict[str, str]] = None) -> None:
        super().__init__({})
        self.failures = list(failures)
        self.calls: List[str] = []
        self.wanted: List[Tuple[str, ...]] = []
        self.learned = learned

    def copy_in(self, source: str, to: Path, timeout: float) -> Optional[Dict[str, str]]:
        self.calls.append(source)
        self.wanted.append(self.algorithms)
        if self.failures:
            raise self.failures.pop(0)
        to.write_bytes(self.content)
        return self.learned

    def copy_out(self, path: Path, target: str, timeout: float) -> Optional[Dict[str, str]]:
        self.calls.append(target)
        if self.failures:
            raise self.failures.pop(0)
        return self.learned


@pytest.fixture
def job(tmp_path: Path) -> JobRun:
    made = JobRun(JobSpec(1, 1, 1, 1, 1, "t", ["true"]), tmp_path / "job", lambda: None)
    (tmp_path / "job" / "inputs").mkdir(parents=True)
    return made


def context(tmp_path: Path, *tools: CopyTool, **environ: str) -> Any:
    named = {
        f"PILOTAGE_COPYTOOLS__{name.upper()}": value
        for name, value in {"backoff_seconds": "0", **environ}.items()
    }
    plugin = SimpleNamespace(check_input=lambda *a: None)
    return SimpleNamespace(
        settings=tables.load(start=tmp_path, environ=named),
        tools=tools,
        plugin=plugin,
        silence=threading.Event(),
        job_logs=SimpleNamespace(write=bool),
        cache=None,
    )


def file(**fields: Any) -> InputFile:
    given: Dict[str, Any] = {"size": len(Recorder.content), "checksums": {}, **fields}
    return InputFile("a.dat", "s", "d", url="mem:a", **given)


def failure(name: str = "STAGE_IN_FAILED") -> PilotageError:
    return PilotageError(name, "as told")


def stage_in(ctx: Any, job: JobRun, one: InputFile) -> None:
    job.spec.inputs = [one]
    data.stage_in(ctx, job)


def test_a_failure_that_may_pass_is_tried_again(job: JobRun, tmp_path: Path) -> None:
    tool = Recorder(failure(), failure(), failure())
    stage_in(context(tmp_path, tool), job, file())
    assert len(tool.calls) == 4
    assert job.input_path(job.spec.inputs[0]).read_bytes() == Recorder.content


def test_after_the_last_try_the_error_is_the_last_one(job: JobRun, tmp_path: Path) -> None:
    tool = Recorder(*[failure() for _ in range(5)], failure("INPUT_NOT_FOUND"))
    with pytest.raises(PilotageError) as caught:
        stage_in(context(tmp_path, tool, retries="5"), job, file())
    assert caught.value.name == "INPUT_NOT_FOUND"
    assert len(tool.calls) == 6


@pytest.mark.parametrize("name", ["INPUT_UNREADABLE", "BAD_PATH", "NO_LOCAL_SPACE"])
def test_what_another_try_does_not_mend_is_tried_once(name: str, job: JobRun, tmp_path: Path) -> None:
    tool = Recorder(failure(name))
    with pytest.raises(PilotageError):
        stage_in(context(tmp_path, tool), job, file())
    assert len(tool.calls) == 1


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"size": 3}, "INPUT_SIZE_MISMATCH"),
        ({"checksums": {"adler32": "00000000"}}, "STAGE_IN_ADLER32_MISMATCH"),
        ({"checksums": {"md5": "0" * 32}}, "STAGE_IN_MD5_MISMATCH"),
        ({"checksums": {"md5": "0" * 32, "adler32": "0bb802f4"}}, "STAGE_IN_MD5_MISMATCH"),
    ],
)
def test_a_copy_that_is_not_as_registered_is_removed_and_tried_once_more(
    fields: Dict[str, Any], name: str, job: JobRun, tmp_path: Path
) -> None:
    tool = Recorder()
    with pytest.raises(PilotageError) as caught:
        stage_in(context(tmp_path, tool), job, file(**fields))
    assert caught.value.name == name
    assert len(tool.calls) == 2
    assert list((tmp_path / "job" / "inputs").iterdir()) == []


def test_what_the_tool_learned_is_believed_and_not_read_again(
    job: JobRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum, "of", lambda *a: pytest.fail("read again"))
    tool = Recorder(learned={"md5": "1" * 32})
    stage_in(context(tmp_path, tool), job, file(checksums={"md5": "1" * 32}))


def test_an_input_that_this_node_cannot_verify_is_not_taken(
    job: JobRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum, "_blake3", lambda: None)
    with pytest.raises(PilotageError) as caught:
        stage_in(context(tmp_path, Recorder()), job, file(checksums={"blake3": "0" * 64}))
    assert caught.value.name == "CHECKSUM_NOT_SUPPORTED"


def test_the_tool_is_told_which_checksums_are_wanted(job: JobRun, tmp_path: Path) -> None:
    tool = Recorder()
    stage_in(
        context(tmp_path, tool),
        job,
        file(checksums={"md5": "9a0364b9e99bb480dd25e1f0284c8555", "adler32": "0"}),
    )
    assert tool.wanted == [("md5",)], "the best of the registered ones that this node can calculate"
    job.input_path(job.spec.inputs[0]).unlink()
    stage_in(context(tmp_path, tool), job, file())
    assert tool.wanted[1] == Recorder().algorithms


def test_a_job_that_ends_meanwhile_is_not_tried_again(job: JobRun, tmp_path: Path) -> None:
    tool = Recorder(failure())

    class Ending(Recorder):
        def copy_in(self, source: str, to: Path, timeout: float) -> None:
            job.abandon("cancelled")
            raise failure()

    with pytest.raises(JobOver):
        stage_in(context(tmp_path, Ending()), job, file())
    assert tool.failures


def test_the_tool_hears_when_its_job_is_over(job: JobRun, tmp_path: Path) -> None:
    heard: List[bool] = []

    class Listening(Recorder):
        def copy_in(self, source: str, to: Path, timeout: float) -> None:
            heard.append(self._asked_to_stop())
            job.abandon("cancelled")
            heard.append(self._asked_to_stop())

    with pytest.raises(JobOver):
        stage_in(context(tmp_path, Listening()), job, file())
    assert heard == [False, True]


@pytest.mark.parametrize(("url", "taken"), [("other:a", "second"), ("MEM:a", "first")])
def test_the_first_tool_of_the_list_that_knows_the_address_is_taken(
    url: str, taken: str, job: JobRun, tmp_path: Path
) -> None:
    first, second = Recorder(), Recorder()
    second.schemes = ("other", "mem")
    stage_in(context(tmp_path, first, second), job, replace(file(), url=url))
    assert [bool(first.calls), bool(second.calls)] == [taken == "first", taken == "second"]


def test_an_address_that_no_tool_knows_is_told_without_its_password(job: JobRun, tmp_path: Path) -> None:
    with pytest.raises(PilotageError) as caught:
        stage_in(context(tmp_path, Recorder()), job, replace(file(), url="https://user:secret@host/a"))
    assert caught.value.name == "UNKNOWN_COPYTOOL" and "secret" not in str(caught.value)


def stage_out(ctx: Any, job: JobRun, tmp_path: Path) -> None:
    job.spec.outputs = [OutputFile("out", "s", "d", "mem:out.1")]
    (tmp_path / "job" / "out").write_bytes(b"result")
    data.stage_out(ctx, job)


def test_an_output_is_reported_with_size_and_adler32_whatever_the_tool_learned(
    job: JobRun, tmp_path: Path
) -> None:
    stage_out(context(tmp_path, Recorder(learned={"md5": "2" * 32})), job, tmp_path)
    (report,) = job.outputs
    assert report.size == 6
    assert report.checksums["md5"] == "2" * 32
    assert report.checksums["adler32"] == checksum.of(tmp_path / "job" / "out", ["adler32"])["adler32"]
    assert (checksum.preferred() in report.checksums) and not job.over.is_set()


def test_a_failed_copy_of_an_output_is_tried_again_and_then_fails_the_job(
    job: JobRun, tmp_path: Path
) -> None:
    tool = Recorder(*[failure("STAGE_OUT_FAILED") for _ in range(9)])
    with pytest.raises(PilotageError) as caught:
        stage_out(context(tmp_path, tool), job, tmp_path)
    assert caught.value.name == "STAGE_OUT_FAILED" and len(tool.calls) == 4
    assert job.outputs == []


def test_a_log_that_cannot_be_stored_does_not_fail_the_job(job: JobRun, tmp_path: Path) -> None:
    job.spec.log_url = "nowhere:log"
    ctx = context(tmp_path, Recorder(learned={}))
    ctx.plugin.log_files = lambda workdir: []
    stage_out(ctx, job, tmp_path)
    assert job.log is None and job.error is None


def test_a_full_disk_of_the_node_is_named_as_such(job: JobRun, tmp_path: Path) -> None:
    class Full(Recorder):
        def copy_in(self, source: str, to: Path, timeout: float) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(PilotageError) as caught:
        stage_in(context(tmp_path, Full()), job, file())
    assert caught.value.name == "NO_LOCAL_SPACE"


def test_what_lay_there_before_is_not_touched(job: JobRun, tmp_path: Path) -> None:
    path = job.directory / "inputs" / "a.dat"
    path.write_bytes(b"something else")
    with pytest.raises(PilotageError) as caught:
        stage_in(context(tmp_path, Recorder()), job, file())
    assert caught.value.name == "ALREADY_EXISTS" and path.read_bytes() == b"something else"
