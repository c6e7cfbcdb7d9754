"""A real server for the client's tests, and the command `pilotage` as a function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import pytest

from client import cli, settings
from client.session import Session
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


class Server(NamedTuple):
    url: str
    state: Path
    pid: int


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Pilotage = Callable[..., Outcome]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of these tests: each uses names of its own."""
    state = tmp_path_factory.mktemp("server") / "state"
    command = [sys.executable, "-m", "server", "start", "--foreground", "--state", str(state), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    with open(state.with_name("server.log"), "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:

        def ready() -> Server:
            assert process.poll() is None, state.with_name("server.log").read_text()
            facts = json.loads((state / "server.json").read_text())
            return Server(facts["url"], state, process.pid)

        yield wait_until(ready, 30, "the server")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def session(server: Server, tmp_path: Path) -> Iterator[Session]:
    options = {"client__state_directory": str(server.state)}
    with Session.find(settings.load(options, None, {"HOME": str(tmp_path)}, tmp_path)) as session:
        yield session


@pytest.fixture
def pilotage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Pilotage:
    """The command, in this process, with an empty home; it finds the test's server if the test has one."""
    for name in [name for name in os.environ if name.startswith("PILOTAGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    if "server" in request.fixturenames:
        monkeypatch.setenv("PILOTAGE_CLIENT__STATE_DIRECTORY", str(request.getfixturevalue("server").state))

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run
