"""What an acceptance test has: the real server, real pilots as processes, the commands, and an eye on every process of theirs.

Everything that a world starts carries a mark in its environment, which payloads inherit. At its end the world stops what
still runs, looks whether any process with its mark is left, reads the logs for trace backs, and audits its tasks.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from client import registrator
from client.session import Session
from copytools import checksum
from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.messages import wire_name
from protocol.messages.requests import QueueSpec, TaskSpec
from protocol.messages.views import JobView, TaskView
from protocol.resources import ResourceType
from protocol.states import SUCCESS, JobState
from tests.auditing import assert_clean
from tests.running_server import RunningServer, environment
from tests.waiting import wait_until

T = TypeVar("T")

MARK = "ACCEPTANCE_MARK"
AWAY = ("SERVER_UNREACHABLE", "SERVER_UNAVAILABLE")
END_SECONDS = 15.0
"""What a pilot gets between SIGTERM and a failed test; 10 is what it is allowed."""

QUICK = {
    "PILOTAGE_CONNECTION__BACKOFF_SECONDS": "0.1",
    "PILOTAGE_CONNECTION__BACKOFF_MAX_SECONDS": "0.5",
    "PILOTAGE_COPYTOOLS__BACKOFF_SECONDS": "0.05",
    "PILOTAGE_COPYTOOLS__RETRIES": "1",
    "PILOTAGE_LIMITS__FREE_DISK_MB": "16",
    "PILOTAGE_LIMITS__KILL_GRACE_SECONDS": "1",
    "PILOTAGE_LIMITS__SAMPLE_SECONDS": "0.1",
    "PILOTAGE_VALIDATION__GPU": "no",
}
"""Pilots that wait less than in life; a test about the times of life passes `settings={}`."""

LEASE = {"lease_seconds": 5, "heartbeat_seconds": 1}
"""A queue whose pilots are given up soon."""

WITHOUT_ROOT = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: by which root reads what nobody may
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; without root there is nothing to drop
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""A program that becomes another one, for which the permissions of files count also if root runs the tests."""


class Running:
    """A program that a test started; its output goes to a file."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def troubles(self) -> list[str]:
        """What it warns of, but that payloads are not isolated here."""
        lines = self.text.splitlines()
        return [line for line in lines if re.search("ERROR|WARNING", line) and "not isolated" not in line]

    def is_running(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, to this process alone."""
        self.popen.kill()
        self.popen.wait()

    def wait(self, timeout: float) -> int:
        """Its exit code; a failed test if it does not end in time."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} did not end within {timeout} s:\n{self.text}") from None

    def says(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Wait until its output matches."""

        def look() -> re.Match[str]:
            found = re.search(pattern, self.text, re.MULTILINE)
            assert found or self.is_running(), f"it ended with {self.popen.returncode}:\n{self.text}"
            assert found, self.text[-2000:]
            return found

        return wait_until(look, timeout, f"{pattern!r} in the output of process {self.pid}")


class World:
    """A server, and what one test starts beside it. Names are made unlike those of other tests with the same server."""

    def __init__(self, server: RunningServer, directory: Path, name: str) -> None:
        self.server = server
        self.directory = directory
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.session = Session(server.url, server.admin_token.read_text().strip(), timeout_seconds=10)
        self.data_root = ""
        """Where relative file: addresses lie, for tests that use such."""
        self.behind: dict[str, Path] = {}
        """How addresses of a storage server begin → the directory that it keeps those files in."""
        self.may_trace = False
        """Set by a test that expects a trace back in a log."""
        self._programs: list[Running] = []
        self._tasks: list[int] = []
        self._count = 0
        self._log_began = server.log.stat().st_size

    def unique(self, word: str) -> str:
        self._count += 1
        return f"{self.name}-{word}-{self._count}"

    # -- programs ---------------------------------------------------------------------------------------------

    def environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:  # it is only read
        return environment(self.directory, {MARK: self.name, **extra})

    def start(
        self, *command: str, extra: Mapping[str, str] = {}, log: str = ""
    ) -> Running:  # it is only read
        """A Python program of ours, in a session of its own: `start("-m", "pilot", …)`."""
        path = self.directory / f"{log or self.unique('program')}.out"
        with open(path, "ab") as output:
            popen = subprocess.Popen(
                [sys.executable, *command], cwd=self.directory, env=self.environment(extra),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        running = Running(popen, path)
        self._programs.append(running)
        return running

    def pilot(
        self,
        queue: str,
        *options: str,
        kind: str = "cpu",
        work: str = "work",
        token: Path | None = None,
        settings: Mapping[str, str] = QUICK,
        without_root: bool = False,
    ) -> Running:
        """A pilot for this queue, in the work directory `work`; it stays until it is told to end, if the options do not say otherwise."""
        launcher = ("-c", WITHOUT_ROOT) if without_root else ()
        return self.start(
            *launcher, "-m", "pilot", "--url", self.server.url, "-q", queue, "--processor-type", kind,
            "--token-file", str(token or self.server.pilot_token), "-a", str(self.directory / work), *options,
            extra=settings, log=self.unique("pilot"),
        )  # fmt: skip

    def cli(
        self, *arguments: str, extra: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:  # it is only read
        """A command of `pilotage` to its end; no command ever shows a trace back."""
        done = subprocess.run(
            [sys.executable, "-m", "client.cli", *arguments], cwd=self.directory,
            env=self.environment({"PILOTAGE_CLIENT__STATE_DIRECTORY": str(self.server.directory), **extra}),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done

    def pilotage(self, *arguments: str) -> str:
        """What a command prints that has to end well."""
        done = self.cli(*arguments)
        assert done.returncode == 0, (
            f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def processes(self) -> dict[int, str]:
        """Every living process with our mark: number and command line."""
        return processes_with(self.name)

    def payloads(self) -> dict[int, str]:
        """Those that no test started by itself."""
        own = {program.pid for program in self._programs}
        return {pid: command for pid, command in self.processes().items() if pid not in own}

    def no_payload_is_left(self, timeout: float = 5.0) -> None:
        def look() -> bool:
            left = self.payloads()
            assert not left, f"still there: {left}"
            return True

        wait_until(look, timeout, "the end of all payloads")

    def kill_payloads(self) -> None:
        """What a killed pilot left behind is nobody's: a test that kills one ends it."""
        _kill(self.payloads())

    # -- what there is to do ----------------------------------------------------------------------------------

    def queue(self, **fields: Any) -> str:
        """The name of a new queue; heartbeats each second."""
        spec = QueueSpec(self.unique("queue"), **{"heartbeat_seconds": 1, **fields})
        return self.session.create_queue(spec).name

    def gpu_queue(self) -> str:
        return self.queue(resource_type=ResourceType.GPU)

    def submit(self, queue: str, command: Sequence[str], **fields: Any) -> TaskView:
        """A task with one job (or what the fields say), bound to the queue."""
        if "input_dataset" not in fields:
            fields = {"n_jobs": 1, **fields}
        spec = TaskSpec(self.unique("task"), list(command), queue=queue, **fields)
        view = self.session.submit_task(spec)
        self._tasks.append(view.task_id)
        return view

    def submit_shell(self, queue: str, script: str, **fields: Any) -> TaskView:
        """The same with a shell script; braces in it are placeholders."""
        return self.submit(queue, ["sh", "-c", script], **fields)

    def dataset(self, *paths: Path, **options: Any) -> str:
        """The name of a new dataset with these files."""
        wish = registrator.Options(quiet=True, **options)
        return registrator.register(self.session, self.unique("dataset"), paths, wish).name

    def note(self, task: TaskView) -> TaskView:
        """A task that a command submitted is audited too."""
        self._tasks.append(task.task_id)
        return task

    # -- what became of it ------------------------------------------------------------------------------------

    def until(self, question: Callable[[], T], what: str, timeout: float = 20.0) -> T:
        """Wait for a true answer, also over a time without a server."""

        def ask() -> T:
            try:
                return question()
            except PilotageError as error:
                if error.name in AWAY:
                    raise AssertionError(str(error)) from None
                raise

        return wait_until(ask, timeout, what, interval=0.05)

    def ended(self, task: TaskView, timeout: float = 30.0) -> TaskView:
        """The task when all of its jobs have ended and its output dataset is closed."""

        def look() -> TaskView:
            view = self.session.task(task.task_id)
            assert view.ended, f"{view.state}, {view.counts}, {view.errors}"
            return view

        return self.until(look, f"the end of task {task.name}", timeout)

    def jobs(self, task: TaskView) -> list[JobView]:
        """All jobs of a task with all that is known of them, in the order of their numbers."""
        ids = sorted((job.job_nr, job.job_id) for job in self.session.jobs(task=task.task_id))
        return [self.session.job(job_id) for _, job_id in ids]

    def job(self, task: TaskView) -> JobView:
        """The only job of a task, once it is formed."""
        found = self.until(lambda: list(self.session.jobs(task=task.task_id)), f"the job of {task.name}")
        assert len(found) == 1
        return self.session.job(found[0].job_id)

    def reached(self, task: TaskView, state: JobState, attempt_nr: int = 0, timeout: float = 20.0) -> JobView:
        """The only job of a task when it is in this state (in this attempt, if one is named)."""

        def look() -> JobView:
            job = self.job(task)
            shown = f"{job.state} in attempt {job.attempt_nr}, {job.error}: {job.error_detail}"
            assert job.state == state.value and attempt_nr in (0, job.attempt_nr), shown
            return job

        return self.until(look, f"state {state} of the job of {task.name}", timeout)

    def attempt_ended(self, task: TaskView, attempt_nr: int = 1, timeout: float = 20.0) -> JobView:
        """The only job of a task when this attempt of it has ended."""

        def look() -> JobView:
            job = self.job(task)
            ended = [attempt.attempt_nr for attempt in job.attempts or () if attempt.ended]
            assert attempt_nr in ended, f"{words(job)}"
            return job

        return self.until(look, f"the end of attempt {attempt_nr} of {task.name}", timeout)

    def output(self, task: TaskView) -> str:
        """The text of the only output of a task."""
        (file,) = self.session.dataset_files(str(self.session.task(task.task_id).output_dataset))
        return self.place_of(file.url).read_text(errors="replace")

    def place_of(self, url: str) -> Path:
        """Where the bytes of a stored file lie on this machine."""
        for root, directory in self.behind.items():
            if url.startswith(root):
                return directory / unquote(url[len(root) :].lstrip("/"))
        return Path(local_path(url, self.data_root))

    def log(self, task: TaskView) -> str:
        """What `pilotage job log` shows of the only job of a task, when the log of its last attempt is there."""

        def look() -> bool:
            attempts = self.job(task).attempts or []
            assert attempts and attempts[-1].log_url, f"no log yet of {attempts}"
            return True

        self.until(look, f"the log of {task.name}")
        return self.pilotage("job", "log", str(self.job(task).job_id))

    # -- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop all, by each process's own number; then look whether all is as it should be."""
        slow = [program for program in self._programs if not self._stopped(program)]
        left = self.processes()
        _kill(left)
        log = self.server.text_of_log()[self._log_began :]
        for program in self._programs:
            print(f"-- {program.log.name}, exit code {program.popen.returncode} --\n{program.text[-6_000:]}")
        print(f"-- the server's log during this test --\n{log[-6_000:]}")
        try:
            assert not slow, (
                f"did not end within {END_SECONDS} s of SIGTERM: {[each.popen.args for each in slow]}"
            )
            assert not left, f"left behind: {left}"
            texts = [program.text for program in self._programs]
            assert self.may_trace or not [text for text in (*texts, log) if "Traceback" in text], (
                "a trace back in a log"
            )
            if self.server.process is not None:
                for task in self._tasks:
                    self.audit(self.session.task(task))
                    assert_clean(self.server.installation, task=str(task), data_root=self.data_root)
        finally:
            self.session.close()

    def _stopped(self, program: Running) -> bool:
        if program.is_running():
            program.signal(signal.SIGCONT)
            program.signal(signal.SIGTERM)
            try:
                program.popen.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                program.kill()
                return False
        return True

    def audit(self, task: TaskView) -> None:
        """What must be true of every task at any moment: its jobs, their attempts, their outputs on the disk."""
        jobs = self.jobs(task)
        assert len(jobs) == sum(task.counts.values())
        for job in jobs:
            attempts = job.attempts or []
            assert [attempt.attempt_nr for attempt in attempts] == list(range(1, len(attempts) + 1)), attempts
            completed = [attempt for attempt in attempts if attempt.state == JobState.COMPLETED.value]
            assert len(completed) == (job.state == JobState.COMPLETED.value), attempts
            for attempt in attempts:
                order = [ORDER[word] for word in words(job, attempt.attempt_nr) if word in ORDER]
                assert order == sorted(set(order)), f"job {job.job_id}: {words(job, attempt.attempt_nr)}"
            self._audit_outputs(task, job)

    def _audit_outputs(self, task: TaskView, job: JobView) -> None:
        published = [file for file in job.outputs or () if file.state == "available"]
        if job.state != JobState.COMPLETED.value:
            assert not published, f"job {job.job_id} is {job.state} and has {published}"
            return
        assert len(published) == len((task.spec or {})[wire_name("outputs")])
        for file in published:
            if not file.url.startswith(("file:", *self.behind)):
                continue  # a storage across the network: its test looks there
            path = self.place_of(file.url)
            assert path.stat().st_size == file.size
            assert checksum.of(path, tuple(file.checksums)) == file.checksums


ORDER = {state.value: number for number, state in enumerate((*SUCCESS, JobState.FAILED, JobState.CANCELLED))}


def words(job: JobView, attempt_nr: int | None = None) -> list[str]:
    """The states in a job's history, in their order; of one attempt, if one is named."""
    return [line.state for line in job.history or () if attempt_nr in (None, line.attempt_nr)]


def errors(job: JobView) -> list[str | None]:
    """How each attempt ended."""
    return [attempt.error for attempt in job.attempts or ()]


def processes_with(mark: str) -> dict[int, str]:
    """Every living process with this mark in its environment: number and command line."""
    return {pid: command for pid, command in _living() if _carries(pid, mark)}


def _living() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                yield (
                    int(name),
                    Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                )


def _carries(pid: int, mark: str) -> bool:
    with suppress(OSError):
        # The environment of a zombie is empty.
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _kill(pids: Mapping[int, str]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
