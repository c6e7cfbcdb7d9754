"""The logs of a job, from archives as pilots pack them and as nobody should."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Dict, Optional

import pytest

from client import joblog
from protocol.errors import PilotageError
from protocol.messages.views import AttemptView, JobView


def archive(path: Path, files: Dict[str, bytes], links: Optional[Dict[str, str]] = None) -> str:
    with tarfile.open(path, "w:gz") as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            packed.addfile(member)
    return f"file://{path}"


def attempt(number: int, url: Optional[str], ended: bool = True, error: Optional[str] = None) -> AttemptView:
    return AttemptView(
        number, number, "FAILED" if error else "COMPLETED", "p", "node7", "CPU", exit_code=3 if error else 0, error=error,
        error_code=1305 if error else None, error_detail="exit \x1bcode 3" if error else None, log_url=url,
        ended="2026-01-01T00:00:00.000Z" if ended else None,
    )  # fmt: skip


def job(*attempts: AttemptView) -> JobView:
    return JobView(17, 1, 2, "task", "COMPLETED", "cpu", 0, len(attempts), "x", "x", attempts=list(attempts))


def test_every_attempt_is_shown_failed_ones_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = archive(tmp_path / "1.tar.gz", {"payload.stdout": b"", "payload.stderr": b"it broke\n"})
    second = archive(tmp_path / "2.tar.gz", {"job-17-2.log": b"record\n", "payload.stdout": b"fine\n"})
    joblog.show(job(attempt(1, first, error="PAYLOAD_FAILED"), attempt(2, second)))
    assert capsys.readouterr().out.splitlines() == [
        "=== job 17, attempt 1: FAILED, exit code 3, on node7 by pilot p",
        r"    PAYLOAD_FAILED (1305): exit \x1bcode 3",
        "--- payload.stdout (empty)",
        "--- payload.stderr (9 B)",
        "it broke",
        "=== job 17, attempt 2: COMPLETED, exit code 0, on node7 by pilot p",
        "--- payload.stdout (5 B)",
        "fine",
        "--- job-17-2.log (7 B)",
        "record",
    ]


def test_one_attempt_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = archive(tmp_path / "1.tar.gz", {"payload.stdout": b"chosen\n"})
    joblog.show(job(attempt(1, url), attempt(2, "file:///not/there")), number=1)
    assert "chosen" in capsys.readouterr().out
    with pytest.raises(PilotageError, match="job 17 has no attempt 3"):
        joblog.show(job(attempt(1, url)), number=3)


@pytest.mark.parametrize(
    ("ended", "words"), [(False, "has not ended"), (True, "left no log archive: its pilot stored none")]
)
def test_an_attempt_without_a_log_says_why(
    ended: bool, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    joblog.show(job(attempt(1, None, ended)))
    assert words in capsys.readouterr().out


def test_what_a_payload_wrote_cannot_drive_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = archive(
        tmp_path / "1.tar.gz",
        {"payload.stdout": b"\x1b]0;title\x07 \xff\xfe\r\n\tindented\x9b\nlast", "e\x1bvil": b"x"},
    )
    joblog.show(job(attempt(1, url)))
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\r\x9b")
    assert "        indented" in out and "\nlast\n" in out


def test_of_a_long_file_the_end_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(1, 2001))
    joblog.show(job(attempt(1, archive(tmp_path / "1.tar.gz", {"payload.stdout": lines}))))
    shown = capsys.readouterr().out.splitlines()
    assert shown[2] == "[... 1500 lines before; --save DIR keeps all of it ...]"
    assert (shown[3], shown[-1]) == ("line 1501", "line 2000")


def test_saved_files_are_whole(tmp_path: Path) -> None:
    lines = b"".join(b"\x1bline %d\n" % number for number in range(2000))
    url = archive(tmp_path / "1.tar.gz", {"payload.stdout": lines, "sub/more.txt": b"more"})
    joblog.show(job(attempt(1, url)), save=tmp_path / "kept")
    assert (tmp_path / "kept" / "job-17-1" / "payload.stdout").read_bytes() == lines
    assert (tmp_path / "kept" / "job-17-1" / "sub" / "more.txt").read_bytes() == b"more"
    joblog.show(job(attempt(1, url)), save=tmp_path / "kept")


@pytest.mark.parametrize("name", ["../out", "/tmp/pilotage-out", "a/../../../out"])
def test_a_member_that_leads_out_is_not_saved(tmp_path: Path, name: str) -> None:
    url = archive(tmp_path / "1.tar.gz", {name: b"x"})
    with pytest.raises(PilotageError, match="which leads out of it"):
        joblog.show(job(attempt(1, url)), save=tmp_path / "kept" / "deep")
    assert not (tmp_path / "out").exists() and not Path("/tmp/pilotage-out").exists()


def test_a_link_in_an_archive_is_neither_shown_nor_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("secret content")
    url = archive(tmp_path / "1.tar.gz", {"payload.stdout": b"x"}, {"link": str(tmp_path / "secret")})
    joblog.show(job(attempt(1, url)), save=tmp_path / "kept")
    assert "secret" not in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "kept" / "job-17-1").iterdir()] == ["payload.stdout"]


def test_a_saved_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "kept" / "job-17-1"
    folder.mkdir(parents=True)
    (folder / "payload.stdout").symlink_to(victim)
    joblog.show(
        job(attempt(1, archive(tmp_path / "1.tar.gz", {"payload.stdout": b"theirs"}))), save=tmp_path / "kept"
    )
    assert victim.read_text() == "mine"
    assert (folder / "payload.stdout").read_text() == "theirs"


@pytest.mark.parametrize("damage", ["cut", "no archive"])
def test_a_damaged_archive_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "1.tar.gz"
    url = archive(path, {"payload.stdout": bytes(range(256)) * 4000})
    path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"hello")
    with pytest.raises(PilotageError, match="the archive is damaged") as caught:
        joblog.show(job(attempt(1, url)))
    assert caught.value.name == "LOG_FAILED"


def test_an_archive_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="gone.tar.gz"):
        joblog.show(job(attempt(1, f"file://{tmp_path}/gone.tar.gz")))


def test_what_is_for_programs_is_named_and_what_is_empty_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {
        "payload.stdout": b"hello\n",
        "payload.stderr": b"",
        "co-1.stderr": b"",
        "jobReport.json": b"{}\n",
    }
    joblog.show(job(attempt(1, archive(tmp_path / "1.tar.gz", members))))
    shown = capsys.readouterr().out
    assert "--- payload.stderr (empty)" in shown and "co-1.stderr" not in shown
    assert "--- jobReport.json (3 B): --save DIR keeps it" in shown and "{}" not in shown
