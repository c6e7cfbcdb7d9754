"""The demo: the main job on one machine, with real programs, from the DAQ's files to verified outputs.

A server on SQLite, 50 files of the DAQ emulator, two tasks over them (MD5 on a CPU queue, BLAKE3 on a GPU queue), one
pilot for each queue; then every hash is compared with the checksum that was registered for its file, and all is stopped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from client import bundle, progress, registrator, tables, watch
from client.interruption import interrupted
from client.processes import Program, Programs, Signals
from client.session import FIRST_TOKEN, Session, running_server
from client.tables import Column
from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.messages.requests import TaskSpec
from protocol.messages.views import FileView, TaskView
from protocol.redaction import one_line
from protocol.resources import ResourceType
from protocol.settings import ENVIRONMENT_PREFIX, read_secret
from protocol.share import shared_path
from protocol.states import DatasetState, JobState, TaskState

MARKER = ".pilotage-demo"
"""The file by which a directory is known as one that an earlier demo made, and may be made anew."""
FOLDERS = ("state", "data", "logs", "pilot-cpu", "pilot-gpu")
FETCHED = "hashes"
"""Where the printed command puts the outputs."""
DATASET = "demo-run-1"
BUILDERS = 2
START_SECONDS = 30.0
STALLED_SECONDS = 120.0
"""Nothing moved for so long: something is wrong, and the logs will tell what."""
SPARE_BYTES = 700 * 1024 * 1024
"""A pilot asks for no job while less than 512 MiB are free."""


class Kind(NamedTuple):
    """One of the two tasks, and who runs it."""

    algorithm: str
    resource_type: ResourceType
    queue: str

    @property
    def task(self) -> str:
        return f"demo-{self.algorithm}"

    @property
    def pilot(self) -> str:
        return f"{self.queue} pilot"


KINDS = (Kind("md5", ResourceType.CPU, "CPU"), Kind("blake3", ResourceType.GPU, "GPU"))

_COLUMNS = (
    Column("task", lambda view: view.name),
    Column("type", lambda view: view.resource_type),
    Column("jobs", lambda view: view.n_jobs, right=True),
    Column("states", lambda view: tables.counts(view.counts)),
    Column("attempts", lambda view: view.n_attempts, right=True),
    Column("time", lambda view: tables.duration(view.started, view.ended), right=True),
    Column(
        "output dataset",
        lambda view: f"{view.output_dataset}: {tables.some(view.n_outputs, 'file')}, {view.output_state}",
    ),
)


@dataclass(frozen=True)
class Wish:
    """What the user asked for. `size` is as the DAQ's DataFileSizeLimit takes it, such as 256KiB."""

    files: int
    size: str
    size_bytes: int
    directory: Path | None
    """None: a temporary one, which is removed at the end."""


def run(wish: Wish) -> int:
    """The exit code: 0, or that of a shell after the signal that ended us. What goes wrong is a PilotageError."""
    with Signals() as signals:
        try:
            with contextlib.ExitStack() as stack:
                directory = stack.enter_context(_directory(wish))
                programs = stack.enter_context(Programs(signals, directory / "logs", _environment(directory)))
                Demo(wish, directory, signals, programs).run()
            signals.check()
        except KeyboardInterrupt:
            tables.console(error=True).show_cursor(True)
            interrupted("everything that the demo started has ended")
            return 128 + (signals.first or 2)
    return 0


class Demo:
    def __init__(self, wish: Wish, directory: Path, signals: Signals, programs: Programs) -> None:
        self.wish = wish
        self.directory = directory
        self.signals = signals
        self.programs = programs
        self.console: Console = tables.console()
        self.began = time.monotonic()
        self._looked = 0.0

    def run(self) -> None:
        if find_spec("blake3") is None:
            raise PilotageError("MISSING_EXTRA", "the demo hashes with BLAKE3: pip install 'pilotage[fast]'")
        server, session = self.start_server()
        with session:
            self.emulate()
            self.register(session)
            self.submit(session)
            pilots = [self.start_pilot(kind, session.url) for kind in KINDS]
            views = self.follow(session)
            verified = self.verify(session, views)
            self.look(everything=True)
        # Without our connection the server ends at once.
        self.programs.stop()
        self.report(verified, server, pilots)

    def say(self, title: str, text: str) -> None:
        self.console.print(f"{title:<9} {one_line(text)}", soft_wrap=True)

    # -- the steps --------------------------------------------------------------------------------------------

    def start_server(self) -> tuple[Program, Session]:
        state = self.directory / "state"
        server = self.programs.start(
            "server", "client.cli", "server", "start", "--foreground", "--state", str(state), "--port", "0",
            "--host", "127.0.0.1", cwd=self.directory,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while (url := running_server(state)) is None:
            self.programs.check()
            if time.monotonic() > deadline:
                raise server.failed(f"was not ready within {START_SECONDS:g} s")
            time.sleep(0.02)
        self.say("Server", f"{url}, SQLite in {shown(state)}")
        return server, Session(url, read_secret(state / FIRST_TOKEN))

    def emulate(self) -> None:
        began, data = time.monotonic(), self.directory / "data"
        daq = self.programs.start(
            "DAQ emulator", "client.cli", "daq", "emulate", "--out", str(data), "--files", str(self.wish.files),
            "--size", self.wish.size, "--builders", str(BUILDERS), "--builder-directories", cwd=self.directory,
        )  # fmt: skip
        done = 0

        def watch_files() -> None:
            nonlocal done
            now = sum(1 for _ in data.glob("builder-*/run-*.spd"))
            advance(now - done)
            done = now

        with progress.counted("Emulating the DAQ", self.wish.files) as advance:
            self.programs.finish(daq, watch_files)
        sizes = [path.stat().st_size for path in data.glob("builder-*/run-*.spd")]
        builders = tables.some(min(BUILDERS, self.wish.files), "builder")
        self.say(
            "DAQ",
            f"{tables.some(len(sizes), 'file')} of {builders}, {tables.size(sum(sizes))} in {_since(began)}",
        )

    def register(self, session: Session) -> None:
        began = time.monotonic()
        view = registrator.register(session, DATASET, [self.directory / "data"], check=self.programs.check)
        self.say(
            "Dataset",
            f"{view.name}: {tables.some(view.n_files, 'file')} registered with size and checksums in {_since(began)}",
        )

    def submit(self, session: Session) -> None:
        packed = bundle.make(shared_path("etc/examples/hash_file.py"))
        session.send_bundle(packed.digest, packed.data)
        for kind in KINDS:
            command = ["{python}", "{bundle}/hash_file.py", kind.algorithm, "{input}", "{lfn}", "{output}"]
            spec = TaskSpec(
                name=kind.task, command=command, input_dataset=DATASET, outputs=["{stem}." + kind.algorithm],
                resource_type=kind.resource_type, bundle=packed.digest,
            )  # fmt: skip
            view = session.submit_task(spec)
            jobs = f"{tables.some(view.n_jobs, 'job')} for {kind.resource_type} pilots"
            self.say("Task", f"{view.task_id} ({view.name}): hash each file with {kind.algorithm}, {jobs}")

    def start_pilot(self, kind: Kind, url: str) -> Program:
        workdir = self.directory / f"pilot-{kind.resource_type}"
        pilot = self.programs.start(
            kind.pilot, "pilot", "--url", url, "--token-file", str(self.directory / "state" / "pilot.token"),
            "--processor-type", kind.resource_type.value, "--pilot-id", f"demo-{kind.resource_type}",
            "-q", kind.queue, "-a", str(workdir), cwd=self.directory,
        )  # fmt: skip
        self.say(
            "Pilot", f"process {pilot.popen.pid} pulls {kind.resource_type} jobs of the queue {kind.queue}"
        )
        return pilot

    def follow(self, session: Session) -> list[TaskView]:
        """Watch both tasks to their end; what is not as it should be then is an error that names the jobs."""
        moved = time.monotonic()
        seen: list[dict[str, int]] = []

        def check(views: Sequence[TaskView]) -> None:
            nonlocal moved, seen
            self.programs.check()
            self.look()
            now = [view.counts for view in views]
            if now != seen:
                moved, seen = time.monotonic(), now
            if time.monotonic() - moved > STALLED_SECONDS:
                raise self.programs.all[-1].failed(
                    f"moved no job for {STALLED_SECONDS:g} s, nor did another program"
                )

        views = watch.follow(session, [kind.task for kind in KINDS], interval=0.2, check=check)
        self.console.print()
        tables.print_table(views, _COLUMNS)
        self.console.print()
        for view in views:
            complete = view.output_state == DatasetState.CLOSED.value and view.n_outputs == self.wish.files
            if view.state != TaskState.COMPLETED.value or not complete:
                jobs = list(islice(session.jobs(task=view.task_id, state=JobState.FAILED.value), 5))
                raise PilotageError(
                    "PROGRAM_FAILED",
                    f"task {view.name} is {view.state} with {view.n_outputs} of {self.wish.files} outputs",
                    problems=[f"job {job.job_id}: {job.error}: {job.error_detail}" for job in jobs],
                    advice=f"read the logs in {shown(self.directory / 'logs')}",
                )
        return views

    def verify(self, session: Session, views: list[TaskView]) -> int:
        """Compare each hash with the checksum registered for its input; how many were right (all, or an error)."""
        registered = {file.lfn: file.checksums for file in session.dataset_files(DATASET)}
        verified = 0
        for kind, view in zip(KINDS, views, strict=True):
            hashes = dict(_hash_in(file) for file in session.dataset_files(str(view.output_dataset)))
            expected = {lfn: checksums[kind.algorithm] for lfn, checksums in registered.items()}
            if hashes != expected:
                wrong = sorted(lfn for lfn in {*hashes, *expected} if hashes.get(lfn) != expected.get(lfn))
                raise PilotageError(
                    "PROGRAM_FAILED",
                    f"{len(wrong)} hashes of {view.output_dataset} differ from the registered checksums, first {wrong[0]}",
                )
            verified += len(hashes)
        return verified

    def look(self, everything: bool = False) -> None:
        """Learn how much memory the programs have used; not more often than each second."""
        if everything or time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            for program in self.programs.all:
                program.look(whole_session=program.name == "server")

    def report(self, verified: int, server: Program, pilots: list[Program]) -> None:
        self.say("Verified", f"{verified} hashes, each equal to the registered checksum of its file")
        peaks = [f"server {tables.size(server.peak.size)} in {server.peak.processes} processes"]
        peaks += [f"{pilot.name} {tables.size(pilot.peak.size)}" for pilot in pilots]
        self.say("Memory", ", ".join(peaks) + " (peak)")
        self.say("Time", f"{time.monotonic() - self.began:.1f} s in all; server and pilots have ended")
        if self.wish.directory is not None:
            self.console.print(f"\n{_next(self.directory)}", soft_wrap=True)


# -- its surroundings ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _directory(wish: Wish) -> Iterator[Path]:
    if wish.directory is None:
        with tempfile.TemporaryDirectory(prefix="pilotage-demo-") as name:
            _prepare(Path(name), wish)
            yield Path(name)
        return
    directory = wish.directory.absolute()
    _make_anew(directory)
    _prepare(directory, wish)
    yield directory


def _make_anew(directory: Path) -> None:
    """An empty directory; one of an earlier demo is emptied, any other that holds something is refused."""
    try:
        if directory.exists() and any(directory.iterdir()):
            if not (directory / MARKER).is_file():
                raise PilotageError(
                    "BAD_PATH",
                    f"{shown(directory)} is no earlier demo and not empty; name another one with --keep",
                )
            if running_server(directory / "state"):
                raise PilotageError(
                    "STATE_DIRECTORY_IN_USE",
                    f"in {shown(directory)} a server runs",
                    advice=f"stop it (pilotage server stop --state {shown(directory / 'state')}), or name another directory with --keep",
                )
            for folder in (*FOLDERS, FETCHED):
                shutil.rmtree(directory / folder, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARKER).write_text("Made by `pilotage demo`, which may empty this directory.\n")
    except OSError as error:
        raise PilotageError("BAD_PATH", f"{shown(directory)}: {error.strerror}") from None


def _prepare(directory: Path, wish: Wish) -> None:
    free, needed = shutil.disk_usage(directory).free, wish.files * wish.size_bytes + SPARE_BYTES
    if free < needed:
        raise PilotageError(
            "NO_LOCAL_SPACE",
            f"{shown(directory)} has {tables.size(free)} free, {tables.size(needed)} are needed",
            advice="name a directory on a larger disk with --keep, or take fewer or smaller files",
        )
    for folder in FOLDERS:
        (directory / folder).mkdir(exist_ok=True)


def _environment(directory: Path) -> Mapping[str, str]:
    """The environment of the programs: neither the user's settings nor those of a home directory reach them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    tree = str(Path(__file__).resolve().parent.parent)
    paths = [tree, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Set, though empty: SQLite in the state directory, whatever /etc/pilotage/server.ini says.
    database = f"{ENVIRONMENT_PREFIX}DATABASE__URL"
    return {
        **kept,
        "HOME": str(directory),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        database: "",
        f"{ENVIRONMENT_PREFIX}VALIDATION__GPU": "no",  # the demo's GPU jobs need none
    }


def _hash_in(file: FileView) -> tuple[str, str]:
    """The logical name and the hash that a payload wrote."""
    text = Path(local_path(file.url)).read_text(encoding="utf-8")
    digits, _, lfn = text.rstrip("\n").partition("  ")
    return lfn, digits


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def shown(path: Path) -> str:
    """A path as the user would write it here."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd())) or "."
    return str(path)


def _command() -> str:
    """How the user calls us again."""
    own = Path(sys.executable).parent / "pilotage"
    found = shutil.which("pilotage")
    if found and own.exists() and os.path.samefile(found, own):
        return "pilotage"
    return shown(own) if own.exists() else f"{shown(Path(sys.executable))} -m client.cli"


def _next(directory: Path) -> str:
    """What the user can do now, as commands that work as they stand."""
    pilotage, state = _command(), shown(directory / "state")
    size = tables.size(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()))
    token = shown(directory / "state" / "pilot.token")
    lines = (
        f"Go on by yourself; all of it lies in {shown(directory)} ({size}):",
        f"  {pilotage} server start --state {state}",
        f"  export {ENVIRONMENT_PREFIX}CLIENT__STATE_DIRECTORY={directory / 'state'}",
        f"  {pilotage} task list",
        f"  {pilotage} job show 1",
        f"  {pilotage} job log 1",
        f"  {pilotage} dataset get {KINDS[0].task}.out --to {shown(directory / FETCHED)}",
        f"  {pilotage} task submit --from {shown(shared_path('etc/examples/hello.json'))}",
        f"  {pilotage} pilot run -q CPU --token-file {token} -a {shown(directory / 'pilot-cpu')} --idle 5",
        f"  {pilotage} task show hello",
        f"  {pilotage} server stop --state {state}",
        f"  rm -r {shown(directory)}",
    )
    return "\n".join(lines)
