"""The real server as a process, for tests: own state directory, a free port, stopped at the end, its log printed on failure.

    def test_something(running_server):
        task = running_server.request("POST", "/v1/tasks", {"name": "t", "command": ["true"], "nJobs": 1})

`serving(directory, "--certfile", …)` is the same as a context manager, for more servers, other options or another scope.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Union

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
START_SECONDS = 30
STOP_SECONDS = 20
QUICK = {
    "PILOTAGE_EXECUTOR__PERIOD_SECONDS": "0.1",
    "PILOTAGE_CLOSER__PERIOD_SECONDS": "0.1",
    "PILOTAGE_REAPER__PERIOD_SECONDS": "0.5",
}
"""The daemons pass more often than in life, so that tests need not wait for them."""


class Refused(AssertionError):
    """The server answered with a failure; `body` is what it said."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"HTTP status {status}: {body}")
        self.status = status
        self.body = body


def environment(home: Path, extra: Mapping[str, str] = {}) -> Dict[str, str]:  # it is only read
    """For a program of ours: the tree to import from, and no setting of whoever runs the tests."""
    ours = ("PILOTAGE_", "X509_", "PYTHON", "XDG_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**inherited, "HOME": str(home), "PYTHONPATH": str(ROOT), **extra}


class RunningServer:
    """A server in `directory`; it can be stopped, killed and started again on the same state and the same port."""

    def __init__(self, directory: Path, *options: str, extra: Mapping[str, str] = {}) -> None:
        self.directory = directory
        self.options = options
        self.extra = {**QUICK, **extra}
        self.log = directory.with_name(directory.name + ".log")
        self.tls: Optional[ssl.SSLContext] = None
        """What `request` trusts, for a server that speaks https."""
        self.url = ""
        self.process: Optional[subprocess.Popen[bytes]] = None

    @property
    def admin_token(self) -> Path:
        return self.directory / "admin.token"

    @property
    def pilot_token(self) -> Path:
        return self.directory / "pilot.token"

    @property
    def installation(self) -> Union[Path, str]:
        """What an audit looks at: the URL of the database that it was given, or its state directory."""
        if "--database" in self.options:
            return self.options[self.options.index("--database") + 1]
        return self.extra.get("PILOTAGE_DATABASE__URL") or self.directory

    def start(self) -> None:
        """Start it and wait until it answers."""
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "server", "start", "--foreground", "--state", str(self.directory)]
        command += ["--port", port, *self.options]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.log.parent, env=environment(self.log.parent, self.extra),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.url = wait_until(self._answers, START_SECONDS, "the server's first answer")

    def _answers(self) -> str:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(
                f"the server ended with {self.process.returncode}:\n{self.text_of_log()}", pytrace=False
            )
        try:
            running = json.loads((self.directory / "server.json").read_text())
        except ValueError:
            return ""
        if running["pid"] != self.process.pid:
            return ""
        url = str(running["url"])
        if url.startswith("https:"):  # whom to trust is the test's affair
            return url
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return url if answer.status == 200 else ""

    def stop(self) -> None:
        """SIGTERM, as an operator does; if that is not enough, SIGKILL to what it started, and a failure."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(
                f"the server did not end within {STOP_SECONDS} s:\n{self.text_of_log()}", pytrace=False
            )
        self.process = None

    def kill(self) -> None:
        """SIGKILL to all of it at once, as a machine that fails."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def text_of_log(self) -> str:
        return self.log.read_text(errors="replace")

    def request(self, method: str, path: str, body: Any = None, token: Optional[Path] = None) -> Any:
        """What the server answers, read from JSON; by default with the admin's token. Refused if it is a failure."""
        secret = (token or self.admin_token).read_text().strip()
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            raise Refused(error.code, text) from None


@contextmanager
def serving(directory: Path, *options: str, extra: Mapping[str, str] = {}) -> Iterator[RunningServer]:
    """A server that runs within the block; `directory` becomes its state directory, its log lies beside it."""
    server = RunningServer(directory, *options, extra=extra)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.kill()
        # Shown by pytest with a failure only.
        print(f"-- log of the server in {directory} --\n{server.text_of_log()}")


@pytest.fixture
def running_server(tmp_path: Path) -> Iterator[RunningServer]:
    """The real server on its embedded default, answering."""
    with serving(tmp_path / "server") as server:
        yield server
