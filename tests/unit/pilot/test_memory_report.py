"""The memory report: bounded whatever is seen, per rank where there are ranks, and merged into what a payload may have put there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, List, Optional

import pytest

from pilot import memory_report
from pilot.memory_report import MemoryReport, Seen, rank_of


def seen(pid: int, memory_mb: float, rank: Optional[int] = None, cpu_seconds: float = 0.0) -> Seen:
    return Seen(pid, "reco", rank, memory_mb, cpu_seconds)


def test_each_process_has_a_series_with_its_peak_and_average() -> None:
    report = MemoryReport()
    report.look(0.0, [seen(7, 100.0, cpu_seconds=1.0)])
    report.look(2.0, [seen(7, 300.0, cpu_seconds=3.0), seen(8, 50.0)])
    found = report.as_json()
    assert found["seconds"] == [0.0, 2.0] and found["total"]["memory_mb"] == [100.0, 350.0]
    assert found["processes"]["reco 7"] == {
        "peak_mb": 300.0, "average_mb": 200.0, "cpu_seconds": 3.0, "memory_mb": [100.0, 300.0],
    }  # fmt: skip
    assert found["processes"]["reco 8"]["memory_mb"] == [None, 50.0]
    assert "ranks" not in found


def test_the_processes_of_one_rank_are_one_series() -> None:
    report = MemoryReport()
    report.look(0.0, [seen(1, 5.0), seen(2, 10.0, rank=0), seen(3, 20.0, rank=1), seen(4, 30.0, rank=1)])
    found = report.as_json()
    assert {rank: line["peak_mb"] for rank, line in found["ranks"].items()} == {"0": 10.0, "1": 50.0}
    assert set(found["processes"]) == {"reco 1"}


def test_the_report_of_a_long_job_with_many_processes_stays_small_and_keeps_the_largest() -> None:
    report = MemoryReport()
    for step in range(1000):
        short = [seen(10_000 + step * 100 + i, 1.0) for i in range(80)]
        report.look(step * 2.0, [seen(1, 500.0), *short])
    found = report.as_json()
    assert len(found["seconds"]) <= memory_report.MOST_POINTS
    assert found["seconds"][0] == 0.0 and found["seconds"][-1] > 1900
    assert len(found["processes"]) <= memory_report.MOST_SERIES["processes"]
    assert found["processes"]["reco 1"]["average_mb"] == 500.0
    assert found["total"]["peak_mb"] == 580.0 and found["dropped"] > 1000
    assert all(len(line["memory_mb"]) == len(found["seconds"]) for line in found["processes"].values())
    assert len(json.dumps(found)) < 100_000


def test_all_ranks_of_a_large_node_are_told_and_more_are_counted_together() -> None:
    report = MemoryReport()
    report.look(0.0, [seen(1000 + rank, 10.0, rank=rank) for rank in range(256)])
    assert set(report.as_json()["ranks"]) == set(map(str, range(256)))
    report.look(2.0, [seen(1000 + rank, 10.0, rank=rank) for rank in range(300)])
    ranks = report.as_json()["ranks"]
    assert len(ranks) == 256 and ranks["others"]["memory_mb"] == [None, 450.0]


def test_a_rank_is_a_processes_own_and_not_the_pilots() -> None:
    ours = {b"SLURM_PROCID": b"0", b"SLURM_STEP_ID": b"4"}
    assert rank_of([b"SLURM_PROCID=0", b"SLURM_STEP_ID=4"], ours) is None
    assert rank_of([b"SLURM_PROCID=0", b"SLURM_STEP_ID=5"], ours) == 0
    assert rank_of([b"SLURM_PROCID=1", b"OMPI_COMM_WORLD_RANK=3"], {}) == 3
    assert rank_of([b"PMI_RANK=x", b"PATH=/bin"], {}) is None


def merged(directory: Path) -> Any:
    return json.loads((directory / "jobReport.json").read_text())


def test_our_part_goes_into_the_payloads_report_or_into_one_of_our_own(tmp_path: Path) -> None:
    assert memory_report.merge(tmp_path, {"version": 1}) == ""
    assert merged(tmp_path) == {"memory_monitor": {"version": 1}}
    (tmp_path / "jobReport.json").write_text('{"events": 5, "memory_monitor": "old"}')
    assert memory_report.merge(tmp_path, {"version": 1}) == ""
    assert merged(tmp_path) == {"events": 5, "memory_monitor": {"version": 1}}
    assert os.listdir(tmp_path) == ["jobReport.json"]


NOT_OURS = {
    "broken": b'{"events": 5',
    "a list": b"[1, 2]",
    "nested too deeply": b"[" * 100_000,
    "too large": b'"' + b"x" * memory_report.LARGEST_JOB_REPORT + b'"',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("what", NOT_OURS)
def test_a_report_that_cannot_be_merged_is_left_as_it_is_and_the_reason_told(
    tmp_path: Path, what: str
) -> None:
    (tmp_path / "jobReport.json").write_bytes(NOT_OURS[what])
    assert "jobReport.json" in memory_report.merge(tmp_path, {})
    assert (tmp_path / "jobReport.json").read_bytes() == NOT_OURS[what]


def test_b5_nothing_is_read_or_written_through_links_and_pipes(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text('{"secret": 1}')
    work = tmp_path / "work"
    work.mkdir()
    (work / "jobReport.json").symlink_to(outside)
    (work / "memory_monitor.json").symlink_to(outside)
    assert memory_report.merge(work, {"version": 1}) != ""
    memory_report.write(work, "memory_monitor.json", {"version": 1})
    assert outside.read_text() == '{"secret": 1}'
    assert not (work / "memory_monitor.json").is_symlink()
    (work / "jobReport.json").unlink()
    os.mkfifo(work / "jobReport.json")
    assert "not a plain file" in memory_report.merge(work, {})
    (tmp_path / "elsewhere").symlink_to(work)
    with pytest.raises(OSError):
        memory_report.write(tmp_path / "elsewhere", "memory_monitor.json", {})


def test_a_directory_in_the_place_of_the_file_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "memory_monitor.json").mkdir()
    with pytest.raises(OSError):
        memory_report.write(tmp_path, "memory_monitor.json", {})
    left: List[str] = os.listdir(tmp_path)
    assert left == ["memory_monitor.json"]
