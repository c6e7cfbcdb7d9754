"""Real pilots as processes, on a node of the tests: a directory with work space, token and inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Dict, List, Optional

from protocol.messages.pilots import InputFile
from tests.fakes.dispatcher import TOKEN, Dispatcher

ROOT = Path(__file__).parent.parent
QUICK = {
    "PILOTAGE_CONNECTION__BACKOFF_SECONDS": "0.1",
    "PILOTAGE_CONNECTION__BACKOFF_MAX_SECONDS": "0.3",
    "PILOTAGE_COPYTOOLS__BACKOFF_SECONDS": "0.05",
    "PILOTAGE_LIMITS__SAMPLE_SECONDS": "0.2",
}
"""Settings that make a test quick."""


class PilotProcess:
    """A pilot that runs; its log is in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float = 20) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the pilot does not end; its log:\n{self.log}") from None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


class Site:
    """A worker node: work directory, token, environment; and the dispatcher it pulls from."""

    def __init__(self, place: Path, dispatcher: Dispatcher) -> None:
        self.place = place
        self.dispatcher = dispatcher
        self.work = place / "work"
        self.token = place / "token"
        self.token.write_text(TOKEN)
        self.token.chmod(0o600)
        self.environment: Dict[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")},
            **QUICK,
            "HOME": str(place),
            "PILOTAGE_PAYLOAD__USERS_LOCKS": str(place / "locks"),
        }
        self.program: List[str] = [sys.executable, str(ROOT / "pilot")]
        """Another one for a pilot of another account, say."""
        self.pilots: List[PilotProcess] = []

    def start(self, *options: str, url: Optional[str] = None, **environment: str) -> PilotProcess:
        """Start a pilot that ends after one job unless the options say otherwise."""
        command = [*self.program, "--url", url or self.dispatcher.url, "-q", "CPU",
                   "--token-file", str(self.token), "-a", str(self.work), *(options or ("--max-jobs", "1"))]  # fmt: skip
        log = self.place / f"pilot-{len(self.pilots)}.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command, cwd=self.place, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.pilots.append(PilotProcess(process, log))
        return self.pilots[-1]

    def run(self, *options: str, **environment: str) -> int:
        return self.start(*options, **environment).wait()

    def input(self, lfn: str, content: bytes, **checksums: str) -> InputFile:
        path = self.place / "input" / lfn
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return InputFile(lfn, "test", "in", len(content), checksums, f"file://{path}")

    def stored(self, name: str) -> Path:
        return self.dispatcher.storage / name

    def archive(self, number: int) -> Dict[str, str]:
        """The log archive of an attempt: name → text."""
        with tarfile.open(self.stored(f"log/{number}.tar.gz")) as packed:
            files = ((member.name, packed.extractfile(member)) for member in packed)
            return {name: file.read().decode(errors="replace") for name, file in files if file}

    def processes(self) -> List[int]:
        """What runs with something of this site in its command line."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if str(self.place).encode() in command and int(name) != os.getpid():
                found.append(int(name))
        return found

    def clear(self) -> None:
        """End what a test left, and show the logs should it have failed."""
        for pilot in self.pilots:
            if pilot.process.poll() is None:
                pilot.process.send_signal(signal.SIGKILL)
                pilot.process.wait()
            print(pilot.log)
        for leftover in self.processes():
            os.kill(leftover, signal.SIGKILL)
