"""From the server to a node and back: the wrapper fetches the pilot, which runs real jobs on a bare Python."""

from __future__ import annotations

import re
import signal
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.acceptance.bare_node import Node, await_counts, submit
from tests.components import old_python
from tests.running_server import RunningServer
from tests.waiting import wait_until


@pytest.fixture
def node(tmp_path: Path, running_server: RunningServer) -> Iterator[Node]:
    node = Node(tmp_path / "node", running_server)
    yield node
    node.close()


def payload_pid(file: Path) -> int:
    return int(
        wait_until(lambda: file.exists() and file.read_text().strip(), 30, "the payload's process number")
    )


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- a job ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["this Python", "Python 3.9"])
def test_a_node_with_a_bare_python_runs_jobs_to_their_end(node: Node, which: str) -> None:
    if which == "Python 3.9":
        found = old_python()
        if found is None:
            pytest.skip("no Python 3.9 on PATH or in ~/.pyenv; pyenv install 3.9 enables this test")
        node.python = node.bare(found)
    submit(node.server, "true", jobs=2)
    await_counts(node.server, {"READY": 2})
    ended = node.run("--max-jobs", "2")
    assert (ended.code, ended.last) == (
        0,
        "exit code 0: DONE: the pilot ran at least one job and ended in order",
    )
    await_counts(node.server, {"COMPLETED": 2})


def test_files_come_in_and_go_out_with_the_copytools_of_the_package(node: Node) -> None:
    data = node.home / "a.txt"
    data.write_text("hello\n")
    file = {"lfn": "a.txt", "size": 6, "url": f"file://{data}", "checksums": {"adler32": "084b021f"}}
    node.server.request("POST", "/v1/datasets", {"name": "in", "files": [file], "close": True})
    submit(
        node.server, "sh", "-c", "tr a-z A-Z <{input} >{output}",
        jobs=0, inputDataset="in", outputs=["{stem}.upper"], outputDataset="out",
    )  # fmt: skip
    await_counts(node.server, {"READY": 1})
    assert node.run("--max-jobs", "1").code == 0
    await_counts(node.server, {"COMPLETED": 1})
    (stored,) = node.server.request("GET", "/v1/datasets/out/files")["items"]
    assert stored["lfn"] == "a.upper"
    assert Path(stored["url"].replace("file://", "", 1)).read_text() == "HELLO\n"


def test_the_token_is_on_no_command_line(node: Node) -> None:
    told = node.home / "pid"
    submit(node.server, "sh", "-c", f"echo $$ >{told}; exec sleep 300")
    process = node.start()
    try:
        pid = payload_pid(told)
        secret = node.server.pilot_token.read_text().strip().encode()
        lines = {}
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines[int(place.parent.name)] = place.read_bytes()
            except OSError:
                continue  # it has ended
        assert pid in lines
        assert process.pid in lines
        assert [number for number, line in lines.items() if secret in line] == []
    finally:
        process.terminate()
        node.end(process)


@pytest.mark.component("strace")
def test_nothing_is_fetched_from_anywhere_but_the_server(node: Node) -> None:
    """Each connection and each program of wrapper, pilot and payload, as the kernel saw them."""
    submit(node.server, "true")
    await_counts(node.server, {"READY": 1})
    trace = node.home / "trace"
    watched = ("strace", "-f", "-qq", "-s", "4096", "-e", "trace=connect,sendto,execve", "-o", str(trace))
    assert node.run("--max-jobs", "1", before=watched).code == 0
    text = trace.read_text(errors="replace")
    peers = set(
        re.findall(
            r"sin6?_port=htons\((\d+)\), (?:sin_addr=inet_addr\(|.*inet_pton\(AF_INET6, )\"([^\"]+)\"", text
        )
    )
    assert peers == {(node.server.url.rpartition(":")[2], "127.0.0.1")}
    programs = {Path(program).name for program in re.findall(r'execve\("([^"]+)"', text)}
    assert "true" in programs
    assert programs & {"pip", "pip3", "curl", "wget", "git"} == set()
    assert "-m pip" not in text


# -- exit codes -------------------------------------------------------------------------------------------------------


def test_no_job_is_no_failure_to_the_batch_system(node: Node) -> None:
    ended = node.run("--idle", "0")
    assert (ended.code, ended.last) == (0, "exit code 82: NO_JOBS: the server had no job for this pilot")


def test_a_token_that_the_server_refuses_ends_with_68(node: Node) -> None:
    wrong = node.home / "wrong.token"
    wrong.write_text("pilot-of-somebody-else\n")
    wrong.chmod(0o600)
    ended = node.run("--token-file", str(wrong))
    assert (ended.code, ended.last) == (
        68,
        "exit code 68: NO_CREDENTIALS: the server refused the pilot's token",
    )


def test_a_wrong_option_of_the_pilot_ends_with_2(node: Node) -> None:
    ended = node.run("--slots", "many")
    assert (ended.code, ended.last.split(":")[1].strip()) == (2, "BAD_SETTINGS")


def test_an_unknown_queue_ends_with_2(node: Node) -> None:
    assert node.run("-q", "NOWHERE").code == 2


@pytest.mark.parametrize("cached", [False, True])
def test_a_server_that_is_away_ends_with_79(node: Node, cached: bool) -> None:
    """Without a package the wrapper gives up after three tries; with one, the pilot waits as its settings say."""
    if cached:
        assert node.run("--idle", "0").code == 0
    node.server.stop()
    node.environment["PILOTAGE_CONNECTION__GIVE_UP_SECONDS"] = "1"
    node.environment["PILOTAGE_CONNECTION__BACKOFF_SECONDS"] = "0.2"
    ended = node.run()
    assert ended.code == 79
    assert "SERVER_UNREACHABLE" in ended.last
    assert ("starting the package that a server named last" in ended.output) is cached


def test_a_package_of_another_digest_than_the_operators_is_not_run(node: Node) -> None:
    submit(node.server, "true")
    ended = node.run("--sha256", "0" * 64)
    assert (ended.code, ended.last.split(":")[0]) == (92, "WRONG_DIGEST")
    assert node.server.request("GET", "/v1/pilots")["items"] == []


def test_the_servers_own_digest_is_the_one_to_pin(node: Node) -> None:
    with urllib.request.urlopen(f"{node.server.url}/v1/pilot.pyz.sha256", timeout=30) as answer:
        digest = answer.read().decode().split()[0]
    assert node.run("--sha256", digest, "--idle", "0").code == 0


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code", "error"), [(signal.SIGTERM, 143, "PILOT_SIGTERM"), (signal.SIGINT, 130, "PILOT_SIGINT")]
)
def test_a_signal_to_the_wrapper_ends_pilot_and_payload_and_the_job_goes_back(
    node: Node, sent: signal.Signals, code: int, error: str
) -> None:
    told = node.home / "pid"
    submit(node.server, "sh", "-c", f"echo $$ >{told}; sleep 300 & wait")
    process = node.start()
    pid = payload_pid(told)
    began = time.monotonic()
    process.send_signal(sent)
    ended = node.end(process, 15)
    assert time.monotonic() - began < 10
    assert ended.code == code
    assert not is_running(pid)
    await_counts(node.server, {"READY": 1})
    (job,) = node.server.request("GET", "/v1/jobs?task=task")["items"]
    (attempt,) = node.server.request("GET", f"/v1/jobs/{job['jobId']}")["attempts"]
    assert attempt["error"] == error


# -- a newer package --------------------------------------------------------------------------------------------------


def replace_package(server: RunningServer) -> None:
    """What a newer server would hand out: another archive under the same address."""
    newer = server.directory / "newer.pyz"
    newer.write_bytes((server.directory / "pilot.pyz").read_bytes())
    with zipfile.ZipFile(newer, "a") as archive:
        archive.writestr("newer.txt", "a file more")
    newer.rename(server.directory / "pilot.pyz")


def test_a_pilot_is_replaced_by_the_servers_newer_one_when_its_job_has_ended(node: Node) -> None:
    told, go = node.home / "pid", node.home / "go"
    submit(node.server, "sh", "-c", f"echo $$ >{told}; while [ ! -e {go} ]; do sleep 0.1; done", name="first")
    process = node.start("--wait", "--lifetime", "3600")
    payload_pid(told)
    replace_package(node.server)
    (pilot,) = node.server.request("GET", "/v1/pilots")["items"]
    shown = node.server.request("POST", f"/v1/pilots/{pilot['pilotId']}/update")
    assert (shown["updating"], shown["nHeld"]) == (True, 1)
    go.write_text("")
    await_counts(node.server, {"COMPLETED": 1}, "first")
    submit(node.server, "true", name="second")
    await_counts(node.server, {"COMPLETED": 1}, "second")
    pilots = node.server.request("GET", "/v1/pilots")["items"]
    assert {each["pilotId"]: each.get("exitCode") for each in pilots}[pilot["pilotId"]] == 84
    assert len(pilots) == 2
    process.terminate()
    ended = node.end(process)
    assert ended.code == 143
    started = re.findall(r"starting (pilot-[0-9a-f]{64}\.pyz)", ended.output)
    assert len(started) == len(set(started)) == 2


def package_of(output: str) -> Optional[str]:
    found = re.search(r"starting (pilot-[0-9a-f]{64}\.pyz)", output)
    return found and found.group(1)


def test_a_newer_package_does_not_disturb_a_running_pilot(node: Node) -> None:
    told, go = node.home / "pid", node.home / "go"
    submit(node.server, "sh", "-c", f"echo $$ >{told}; while [ ! -e {go} ]; do sleep 0.1; done", name="first")
    first = node.start("--max-jobs", "2")
    payload_pid(told)
    replace_package(node.server)
    submit(node.server, "true", name="second")
    second = node.run("--max-jobs", "1", "--work-directory", "other")
    assert second.code == 0
    await_counts(node.server, {"COMPLETED": 1}, "second")
    go.write_text("")
    await_counts(node.server, {"COMPLETED": 1}, "first")
    submit(node.server, "true", name="third")
    ended = node.end(first)
    assert ended.code == 0
    await_counts(node.server, {"COMPLETED": 1}, "third")
    assert package_of(ended.output) != package_of(second.output)
