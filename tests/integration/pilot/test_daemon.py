"""The daemon on a node: pilots again and again, and none left when it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import ROOT, Site
from tests.waiting import wait_until


@pytest.fixture
def daemons() -> Iterator[List[subprocess.Popen]]:  # type: ignore[type-arg]
    started: List[subprocess.Popen] = []  # type: ignore[type-arg]
    yield started
    for daemon in started:
        if daemon.poll() is None:
            daemon.kill()
        daemon.wait()


def start(site: Site, daemons: list, ini: str, *options: str) -> subprocess.Popen:  # type: ignore[type-arg]
    config = site.place / "daemon_config.ini"
    config.write_text(ini)
    command = [
        sys.executable, str(ROOT / "pilot"), "daemon", "--config", str(config), "--", "--url", site.dispatcher.url,
        "-q", "CPU", "--token-file", str(site.token), "-a", str(site.work), *options,
    ]  # fmt: skip
    with open(site.place / "daemon.log", "wb") as log:
        daemon = subprocess.Popen(command, env=site.environment, cwd=site.place, stderr=log)
    daemons.append(daemon)
    return daemon


def registrations(dispatcher: Dispatcher) -> List[float]:
    return [said.at for said in dispatcher.said if said.verb == "registerPilot"]


def test_pilots_are_started_again_and_again_script_delay_apart(
    site: Site, dispatcher: Dispatcher, daemons: list
) -> None:  # type: ignore[type-arg]
    daemon = start(site, daemons, "[node_settings]\nSCRIPT_DELAY = 1\n", "--idle", "0")
    wait_until(lambda: len(registrations(dispatcher)) >= 3, 30, "three pilots")
    first, second, third = registrations(dispatcher)[:3]
    assert second - first >= 1 and third - second >= 1
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(15) == PilotExit.TERMINATED


def test_a_pilot_that_is_to_be_replaced_is_followed_at_once_by_what_the_wrapper_starts(
    site: Site, dispatcher: Dispatcher, daemons: list
) -> None:  # type: ignore[type-arg]
    wrapper = site.place / "wrapper.sh"
    wrapper.write_text(f'echo started >>{site.place}/wrapped; exec {sys.executable} {ROOT}/pilot "$@"\n')
    start(site, daemons, f"[node_settings]\nSCRIPT_DELAY = 600\n[daemon]\nwrapper = {wrapper}\n", "--wait")
    wait_until(lambda: dispatcher.bodies("getJob"), 20, "the first pilot")
    dispatcher.queue.heartbeat_seconds = 1
    dispatcher.drain = dispatcher.update = True
    wait_until(lambda: dispatcher.bodies("endPilot"), 20, "its end")
    dispatcher.drain = dispatcher.update = False
    wait_until(lambda: len(registrations(dispatcher)) >= 2, 20, "the second pilot")
    assert (site.place / "wrapped").read_text().count("started") >= 2


def test_the_seeds_own_file_is_taken(site: Site, dispatcher: Dispatcher, daemons: list) -> None:  # type: ignore[type-arg]
    daemon = start(site, daemons, "[node_settings]\nSCRIPT_DELAY = 10\n", "--idle", "0")
    wait_until(
        lambda: "pilot has ended" in (site.place / "daemon.log").read_text(), 20, "the first pilot's end"
    )
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(5) == PilotExit.INTERRUPTED, "it does not sit out the delay"
    assert "the server had no job for this pilot" in (site.place / "daemon.log").read_text()


def test_the_daemon_ends_its_pilots_in_order(site: Site, dispatcher: Dispatcher, daemons: list) -> None:  # type: ignore[type-arg]
    numbers = [dispatcher.add("sleep", "300") for _ in range(2)]
    ini = "[node_settings]\nSCRIPT_DELAY = 0\n[daemon]\npilots = 2\n"
    daemon = start(site, daemons, ini)
    wait_until(
        lambda: all("RUNNING" in dispatcher.attempt(n).states for n in numbers), 20, "both jobs to run"
    )
    begin = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(15) == PilotExit.TERMINATED
    assert time.monotonic() - begin < 10
    assert [dispatcher.attempt(number).end.error for number in numbers] == ["PILOT_SIGTERM"] * 2
    assert not site.processes()


def test_pilots_get_the_settings_file_that_the_daemon_names(
    site: Site, dispatcher: Dispatcher, daemons: list
) -> None:  # type: ignore[type-arg]
    given = site.place / "for-pilots.ini"
    given.write_text("[node_settings]\nPILOT_ID = 42\n[limits]\nidle_seconds = 0\n")
    start(site, daemons, f"[daemon]\npilot_settings = {given}\n")
    wait_until(lambda: registrations(dispatcher), 20, "a pilot")
    assert dispatcher.bodies("registerPilot")[0]["pilotId"].startswith("42-")


def test_a_daemon_that_runs_from_the_zip_starts_pilots_from_the_zip(tmp_path: Path) -> None:
    import zipfile

    archive = tmp_path / "pilot.pyz"
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ("protocol", "pilot", "copytools"):
            for path in (ROOT / folder).rglob("*.py"):
                packed.write(path, path.relative_to(ROOT).as_posix())
        packed.writestr("__main__.py", "from pilot.daemon import own_command\nprint(own_command())\n")
    done = subprocess.run([sys.executable, archive], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([sys.executable, str(archive)])


def test_a_wrapper_that_is_not_there_is_told_at_once(site: Site, daemons: list) -> None:  # type: ignore[type-arg]
    daemon = start(site, daemons, f"[daemon]\nwrapper = {site.place}/nope.sh\n")
    assert daemon.wait(15) == PilotExit.BAD_SETTINGS
    log = (site.place / "daemon.log").read_text()
    assert "[daemon] wrapper" in log and "nope.sh is not there" in log and "Traceback" not in log
