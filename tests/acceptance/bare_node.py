"""A worker node that has bash, a bare Python, the wrapper and a token, and nothing else: to run real pilots on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer, environment
from tests.waiting import wait_until


class Node:
    """The wrapper comes from the server, the pilot by the wrapper."""

    def __init__(self, home: Path, server: RunningServer) -> None:
        self.home = home
        self.server = server
        self.started: list[subprocess.Popen[str]] = []
        self.wrapper = home / "run_pilot.sh"
        home.mkdir()
        with urllib.request.urlopen(
            f"{server.url}/v1/run_pilot.sh", timeout=30, context=server.tls
        ) as answer:
            self.wrapper.write_bytes(answer.read())
        self.wrapper.chmod(0o755)
        self.python = self.bare(sys.executable)
        self.environment = {**environment(home), "PYTHONPATH": "/nowhere"}

    def bare(self, python: str) -> Path:
        """That Python without site-packages, and so without pip and all that is installed here."""
        script = self.home / f"bare-{Path(python).name}"
        script.write_text(f'#!/bin/bash\nexec {shlex.quote(python)} -S "$@"\n')
        script.chmod(0o755)
        return script

    def command(self, *options: str) -> list[str]:
        return [
            *(str(self.wrapper), "--python", str(self.python), "--url", self.server.url),
            *(
                "--token-file",
                str(self.server.pilot_token),
                "-q",
                "CPU",
                "--work-directory",
                "work",
                *options,
            ),
        ]

    def start(self, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, *self.command(*options)], cwd=self.home, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *options: str, before: tuple[str, ...] = (), seconds: float = 60) -> Ended:
        return self.end(self.start(*options, before=before), seconds)

    def end(self, process: subprocess.Popen[str], seconds: float = 60) -> Ended:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            output = (late.output or b"").decode(errors="replace")
            pytest.fail(f"the wrapper did not end within {seconds} s:\n{output}", pytrace=False)
        print(output)
        return Ended(process.returncode, output)

    def close(self) -> None:
        """End what a failed test left: in order, so that payloads end too, and if need be by force."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


class Ended:
    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.output = output
        self.last = output.splitlines()[-1].partition(" run_pilot: ")[2]


def submit(server: RunningServer, *command: str, name: str = "task", jobs: int = 1, **more: Any) -> None:
    server.request("POST", "/v1/tasks", {"name": name, "command": list(command), "nJobs": jobs, **more})


def counts(server: RunningServer, name: str = "task") -> dict[str, int]:
    found = server.request("GET", f"/v1/tasks/{name}")["counts"]
    assert isinstance(found, dict)
    return found


def await_counts(server: RunningServer, expected: dict[str, int], name: str = "task") -> None:
    def seen() -> bool:
        now = counts(server, name)
        assert now == expected, now
        return True

    wait_until(seen, 20, f"{name}: {expected}")
