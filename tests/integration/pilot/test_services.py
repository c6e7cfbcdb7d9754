"""Services around a payload, with real pilots: the benchmark before it, the benchmark that it is, and the report of its memory."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from pilot import benchmark
from protocol.errors import PilotExit
from protocol.messages.pilots import BenchmarkReport
from tests.fakes.collector import Collector
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.waiting import wait_until

QUICK = {"services.benchmark": "yes", "services.benchmark_seconds": "0.2", "services.benchmark_disk_mb": "4"}
QUICK_OF_TASK = {"services.benchmark_seconds": "0.2"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


def told(dispatcher: Dispatcher, number: int) -> Optional[BenchmarkReport]:
    found = [word.benchmark for word in dispatcher.attempt(number).words if word.benchmark is not None]
    assert len(found) < 2, "it is told once"
    return found[0] if found else None


def test_137_a_benchmark_with_the_cores_of_the_job_runs_before_it_where_the_queue_wants_it(
    site: Site, dispatcher: Dispatcher, collector: Collector
) -> None:
    dispatcher.queue.pilot_settings = QUICK
    token = site.place / "collector.token"
    token.write_text("token-of-the-collector")
    token.chmod(0o600)
    number = dispatcher.add("cat", "pilot-benchmark.json", cores=2)
    code = site.run(
        PILOTAGE_SERVICES__COLLECTOR=collector.url,
        PILOTAGE_SERVICES__COLLECTOR_TOKEN_FILE=str(token),
        PILOTAGE_SERVICES__COLLECTOR_LEAVE_OUT="system, node",
    )
    assert code == PilotExit.DONE and dispatcher.attempt(number).state == "COMPLETED"
    report = told(dispatcher, number)
    assert report is not None and report.cores == 2 and report.by == "pilot" and report.scores["integer"] > 0
    [(_, headers, posted)] = collector.got
    assert headers["Authorization"] == "Bearer token-of-the-collector"
    assert (
        posted["scores"] == report.scores and posted["job_id"] == 1000 + number and posted["site"] == "LOCAL"
    )
    assert posted["pilot_id"] and not {"system", "node"} & set(posted)
    kept = site.archive(number)
    assert json.loads(kept["payload.stdout"])["cores"] == 2
    assert "the benchmark is there" in kept[f"job-{1000 + number}-1.log"]
    assert "token-of-the-collector" not in site.pilots[-1].log


def test_168_a_task_may_ask_for_a_benchmark_before_its_jobs(site: Site, dispatcher: Dispatcher) -> None:
    asked = dispatcher.add("true", pilot_settings={**QUICK_OF_TASK, "services.benchmark": "yes"})
    other = dispatcher.add("true", pilot_settings=QUICK_OF_TASK)
    assert site.run("--max-jobs", "2") == PilotExit.DONE
    assert told(dispatcher, asked) is not None and told(dispatcher, other) is None


def test_137_neither_a_collector_that_is_away_nor_a_benchmark_that_fails_costs_a_job(
    site: Site, dispatcher: Dispatcher, collector: Collector
) -> None:
    collector.status = 500
    dispatcher.queue.pilot_settings = QUICK
    first, second = dispatcher.add("true"), dispatcher.add("true")
    options = {"PILOTAGE_SERVICES__COLLECTOR": collector.url}
    assert site.run("--max-jobs", "1", **options) == PilotExit.DONE
    assert dispatcher.attempt(first).state == "COMPLETED" and told(dispatcher, first) is not None
    assert "the collector did not take a report" in site.pilots[-1].log
    dispatcher.queue.pilot_settings = {**QUICK, "services.benchmark_seconds": "600"}
    pilot = site.start("--max-jobs", "1", **options)
    wait_until(lambda: children_of(pilot.process.pid), 15, "the benchmark")
    for pid in children_of(pilot.process.pid):
        os.kill(pid, signal.SIGKILL)
    assert pilot.wait() == PilotExit.DONE
    assert dispatcher.attempt(second).state == "COMPLETED" and told(dispatcher, second) is None
    assert "the benchmark failed" in pilot.log


def test_a_collector_that_is_none_and_a_token_that_others_can_read_end_the_pilot_at_its_start(
    site: Site, dispatcher: Dispatcher, collector: Collector
) -> None:
    dispatcher.add("true")
    for url in ("ftp://elastic/x", "https://user:secret@elastic/x", "http://"):
        assert site.run(PILOTAGE_SERVICES__COLLECTOR=url) == PilotExit.BAD_SETTINGS
        assert "user:secret" not in site.pilots[-1].log
    token = site.place / "collector.token"
    token.write_text("token-of-the-collector")
    token.chmod(0o644)
    options = {
        "PILOTAGE_SERVICES__COLLECTOR": collector.url,
        "PILOTAGE_SERVICES__COLLECTOR_TOKEN_FILE": str(token),
    }
    assert site.run(**options) == PilotExit.BAD_SETTINGS
    assert "is not private" in site.pilots[-1].log and dispatcher.waiting


def children_of(pid: int) -> List[int]:
    """The benchmark that a pilot has started, if it is there."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        if parent == pid and b"pilot.benchmark" in command:
            found.append(int(name))
    return found


def test_137_a_job_that_is_cancelled_in_its_benchmark_ends_at_once(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    dispatcher.queue.pilot_settings = {**QUICK, "services.benchmark_seconds": "600"}
    number = dispatcher.add("true")
    pilot = site.start()
    wait_until(lambda: children_of(pilot.process.pid), 15, "the benchmark")
    dispatcher.attempt(number).stop = True
    assert pilot.wait() == PilotExit.DONE
    assert not site.processes()


BENCHMARK = {"PILOTAGE_BENCHMARK": "benchmark-{job_nr}.json"}


def test_169_a_payload_that_is_a_benchmark_is_attached_and_posted(
    site: Site, dispatcher: Dispatcher, collector: Collector
) -> None:
    dispatcher.queue.pilot_settings = QUICK
    words = [sys.executable, benchmark.__file__, "--seconds", "0.2", "--disk-mb", "0", "--output", "{output}"]
    number = dispatcher.add(*words, outputs=["benchmark-1.json"], environment=BENCHMARK)
    assert site.run(PILOTAGE_SERVICES__COLLECTOR=collector.url) == PilotExit.DONE
    report = told(dispatcher, number)
    assert report is not None and report.by == "payload", "and none of the pilot's beside it"
    assert json.loads(site.stored(f"benchmark-1.json.{number}").read_text())["scores"] == report.scores
    assert [body["by"] for _, _, body in collector.got] == ["payload"]


def plain(words: str) -> str:
    """Without placeholders."""
    return words.replace("{", "{{").replace("}", "}}")


LEFT: Dict[str, str] = {
    "nothing": "true",
    "a link": 'echo \'{"scores": {"a": 1}}\' > there; ln -s there FILE',
    "nonsense": "echo nonsense > FILE",
    "too much": "head -c 100000 /dev/zero > FILE",
    "no JSON": 'echo \'{"scores": {"a": NaN}}\' > FILE',
    "a pipe": "mkfifo FILE",
    "a directory": "mkdir FILE",
}


def test_b5_what_a_payload_leaves_in_the_place_of_a_benchmark_harms_nobody(
    site: Site, dispatcher: Dispatcher
) -> None:
    numbers = []
    for what in LEFT.values():
        words = what.replace("FILE", f"benchmark-{len(numbers) + 1}.json")
        numbers.append(dispatcher.add("sh", "-c", plain(words), environment=BENCHMARK))
    numbers.append(dispatcher.add("true", environment={"PILOTAGE_BENCHMARK": "../../../etc/passwd"}))
    assert site.run("--max-jobs", str(len(numbers))) == PilotExit.DONE
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED"] * len(numbers)
    assert [told(dispatcher, number) for number in numbers] == [None] * len(numbers)
    assert site.pilots[-1].log.count("there is no benchmark") == len(numbers)


RANKS = """
import json, os, subprocess, sys, time
child = "import time; x = bytearray({size}); time.sleep(1.5)"
ranks = [subprocess.Popen([sys.executable, "-c", child.format(size=(1 + n) * 30_000_000)],
         env={**os.environ, "PMI_RANK": str(n), "PMI_JOBID": "ours"}) for n in range(2)]
time.sleep(1)
live = json.load(open("memory_monitor.json"))
[rank.wait() for rank in ranks]
json.dump({"events": 5, "live": sorted(live)}, open("jobReport.json", "w"))
"""


def test_170_memory_is_reported_per_rank_live_and_merged_into_the_jobs_report(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    number = dispatcher.add(sys.executable, "-c", plain(RANKS))
    assert site.run(SLURM_PROCID="0", PMI_RANK="0", PMI_JOBID="the-pilots") == PilotExit.DONE
    kept = site.archive(number)
    merged: Dict[str, Any] = json.loads(kept["jobReport.json"])
    assert merged["events"] == 5 and "seconds" in merged["live"]
    ranks = merged["memory_monitor"]["ranks"]
    assert ranks["0"]["peak_mb"] > 30 and ranks["1"]["peak_mb"] > 60
    assert any(name.startswith("python") for name in merged["memory_monitor"]["processes"])
    assert json.loads(kept["memory_monitor.json"]) == merged["memory_monitor"]
    said = [each for body in dispatcher.bodies("heartbeat") for each in body["attempts"]]
    metrics = [each["metrics"] for each in said if "rank_1_mb" in each.get("metrics", {})]
    assert metrics and metrics[-1]["ranks"] == 2 and metrics[-1]["rank_most_mb"] >= metrics[-1]["rank_1_mb"]


REPORTS: Dict[str, Callable[[Dict[str, str]], bool]] = {
    "true": lambda kept: "memory_monitor" in json.loads(kept["jobReport.json"]),
    "echo broken > jobReport.json": lambda kept: kept["jobReport.json"] == "broken\n",
    "echo mine > mine; ln -s mine jobReport.json": lambda kept: "jobReport.json" not in kept,
    "rm -f memory_monitor.json; mkdir memory_monitor.json": lambda kept: "memory_monitor.json" not in kept,
}


def test_170_b5_whatever_is_in_the_place_of_the_reports_the_job_completes(
    site: Site, dispatcher: Dispatcher
) -> None:
    numbers = [dispatcher.add("sh", "-c", f"sleep 0.5; {what}") for what in REPORTS]
    output = dispatcher.add("sh", "-c", "sleep 0.5; echo mine > jobReport.json", outputs=["jobReport.json"])
    assert site.run("--max-jobs", "9", "--slots", "5", "--idle", "1") == PilotExit.DONE
    for number, is_right in zip(numbers, REPORTS.values()):
        assert dispatcher.attempt(number).state == "COMPLETED"
        assert is_right(site.archive(number)), site.archive(number).keys()
    assert site.stored(f"jobReport.json.{output}").read_text() == "mine\n", "an output is the user's"
    log = site.archive(numbers[1])[f"job-{1000 + numbers[1]}-1.log"]
    assert "the memory report is not in the job's report" in log and "jobReport.json is left as it is" in log


def test_f18_the_file_of_the_memory_report_is_no_work_of_a_looping_payload(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sleep", "600")
    site.run(PILOTAGE_LIMITS__LOOPING_SECONDS="1")
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "LOOPING_JOB"
    assert json.loads(site.archive(number)["memory_monitor.json"])["processes"]
