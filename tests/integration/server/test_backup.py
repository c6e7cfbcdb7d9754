"""Backup and restore: a consistent copy while others write, and a restored server that repeats no number and takes no old word."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import PilotageError
from protocol.messages.pilots import Heartbeat, HeldAttempt
from server import computing, job_executor
from server.access import tokens
from server.core import Core
from server.database import Database, proxy
from server.models import AdminEvent, Attempt, Dataset, File, Job, Site, Task
from server.upkeep import backup, garbage
from tests.integration.server.lived import live, pictures
from tests.integration.server.world import World, refusing
from tests.postgres import Cluster

BUNDLE = "ab" * 32


class Machine:
    """An installation: a state directory, a database of its own, and a core as the dispatcher opens it."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        directory.mkdir(mode=0o700, exist_ok=True)

    def open(self) -> Core:
        database = Database(self.url)
        database.migrate()
        with database.reading():
            key = tokens.epoch_key(tokens.server_key(self.directory))
        return Core(database, key, self.directory)

    def __enter__(self) -> World:
        self.core = self.open()
        self._reading = self.core.database.reading()
        self._reading.__enter__()
        if not Site.select().exists():
            self.core.database.write(lambda: computing.set_up_defaults(self.core, "file:///srv/storage"))
        return World(self.core)

    def __exit__(self, *exc_info: object) -> None:
        self._reading.__exit__(None, None, None)
        self.core.database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.component("postgres"))])
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    directory = tmp_path / "state"
    if request.param == "sqlite":
        return Machine(directory, f"sqlite:///{directory}/pilotage.db")
    cluster: Cluster = request.getfixturevalue("postgres_cluster")
    if (
        shutil.which("pg_dump", path=f"{cluster.bin}") is None
        or shutil.which("psql", path=f"{cluster.bin}") is None
    ):
        pytest.skip("this Postgres has no pg_dump and psql; the system's has")
    monkeypatch.setenv("PATH", f"{cluster.bin}:{os.environ['PATH']}")
    return Machine(directory, request.getfixturevalue("postgres_url"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "backup.tar.gz"


def test_what_is_restored_is_what_was_there(machine: Machine, file: Path) -> None:
    with machine as world:
        live(world)
        (machine.directory / "bundles").mkdir()
        (machine.directory / "bundles" / BUNDLE).write_bytes(b"code")
        before = pictures(world)
        key = (machine.directory / "server.key").read_text()
    manifest = backup.backup(machine.url, machine.directory, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert manifest.migrations == backup.known_migrations()
    with machine as world:
        world.task("lost", n_jobs=3)
        world.form()
    (machine.directory / "server.key").write_text("00" * 32 + "\n")
    (machine.directory / "bundles" / BUNDLE).unlink()
    backup.restore(machine.url, machine.directory, file, replace=True)
    with machine as world:
        assert pictures(world) == before
        assert AdminEvent.select().where(AdminEvent.action == "db restore").exists()
    assert (machine.directory / "server.key").read_text() == key
    assert (machine.directory / "server.key").stat().st_mode & 0o777 == 0o600
    assert (machine.directory / "bundles" / BUNDLE).read_bytes() == b"code"
    assert not list(machine.directory.glob(".restore-*"))


def test_a_restored_server_refuses_old_attempts_and_gives_new_numbers(machine: Machine, file: Path) -> None:
    with machine as world:
        known, _ = live(world)
        run_elsewhere(machine, file)
        # In the time that is lost the attempt goes on, and others are made.
        world.task("later", n_jobs=2, outputs=["{job_nr}.o"])
        world.form()
        lost = world.claim(n_jobs=3)
        highest = {
            table: max(row.id for row in table.select()) for table in (Job, Attempt, Task, Dataset, File)
        }
    for _ in range(2):  # also when it is restored a second time
        restored = backup.restore(machine.url, machine.directory, file, replace=True)
        with machine as world:
            for attempt in (known, *lost):
                with world.refused("STALE_ATTEMPT"):
                    job_executor.update(world.core, world.word(attempt))
            beats = [HeldAttempt(each.attempt_id, each.attempt_token) for each in (known, *lost)]
            answers = job_executor.heartbeat(world.core, Heartbeat("p1", beats))
            assert {answer.command.value for answer in getattr(answers, "answers", answers)} == {"stop"}
            world.dataset(1, name="fresh")
            world.task("later", input_dataset="fresh", outputs=["{stem}.o"])
            world.form()
            world.pilot("p3")
            jobs = world.claim("p3", n_jobs=5)
            assert jobs
            assert all(job.attempt_id > highest[Attempt] for job in jobs)
            (job,) = [each for each in jobs if each.outputs]
            world.complete(job)
            assert job.job_id > highest[Job]
            assert job.task_id > highest[Task]
            assert Dataset.select().order_by(Dataset.id.desc()).get().id > highest[Dataset]
            assert File.select().order_by(File.id.desc()).get().id > highest[File]
            highest = {table: max(row.id for row in table.select()) for table in highest}
            lost = [*lost, *jobs]
        assert restored.passed_over >= backup.NUMBERS_AT_LEAST


def test_attempts_from_before_a_restore_are_told_from_those_after_it(machine: Machine, file: Path) -> None:
    """Files of the former may be published by the installation that the backup was taken of."""
    with machine as world:
        known, _ = live(world)
    backup.backup(machine.url, machine.directory, file)
    for _ in range(2):
        backup.restore(machine.url, machine.directory, file, replace=True)
        with machine as world:
            last = garbage._last_foreign_attempt()
            assert last >= known.attempt_id + backup.NUMBERS_AT_LEAST
            world.task("later", n_jobs=1)
            world.form()
            world.pilot("p3")
            jobs = world.claim("p3", n_jobs=5)
            assert jobs
            assert min(job.attempt_id for job in jobs) > last


def test_the_epoch_of_a_second_restore_is_another_one(
    machine: Machine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine as world:
        live(world)
    backup.backup(machine.url, machine.directory, file)
    first = backup.restore(machine.url, machine.directory, file, replace=True)
    again = file.with_name("again.tar.gz")
    backup.backup(machine.url, machine.directory, again)
    monkeypatch.setattr(backup.time, "time", lambda: 1000.0)  # a clock that stands wrong
    backup.restore(machine.url, machine.directory, again, replace=True)
    with machine:
        assert backup.Counter.get_by_id(tokens.KEY_EPOCH).value > first.epoch


def test_a_backup_is_one_moment_while_others_write(machine: Machine, file: Path) -> None:
    """Each work writes two rows that belong together; no backup has one without the other."""
    stop = threading.Event()
    with machine as world:
        live(world)
        numbers = iter(range(10**6))

        def write() -> None:
            while not stop.is_set():
                name = f"w{next(numbers)}"

                def work(name: str = name) -> None:
                    Site.create(name=name)
                    Dataset.create(name=name, scope=name)

                world.core.database.write(work)
            if not proxy.is_closed():
                proxy.close()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for turn in range(2):
                # As another process does it: with a database of its own.
                run_elsewhere(machine, file.with_name(f"{turn}.tar.gz"))
        finally:
            stop.set()
            writer.join(30)
    sizes = []
    for turn in range(2):
        backup.restore(machine.url, machine.directory, file.with_name(f"{turn}.tar.gz"), replace=True)
        with machine:
            sites = {row.name for row in Site.select() if row.name != "LOCAL"}
            datasets = {row.name for row in Dataset.select() if row.name.startswith("w")}
            assert sites == datasets
            sizes.append(len(sites))
            if machine.url.startswith("sqlite"):
                assert proxy.execute_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def run_elsewhere(machine: Machine, file: Path) -> None:
    root = Path(__file__).parents[3]
    words = [sys.executable, "-m", "client.cli", "db", "backup", str(file)]
    words += ["--state", str(machine.directory), "--database", machine.url]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- what is refused --------------------------------------------------------------------------------------------------------


@pytest.fixture
def backed_up(machine: Machine, file: Path) -> Iterator[Machine]:
    """A machine with a backup; what a test does to it must change nothing."""
    with machine as world:
        live(world)
        before = world.rows()
    backup.backup(machine.url, machine.directory, file)
    yield machine
    with machine as world:
        assert world.rows() == before


def test_a_database_is_replaced_only_when_that_is_said(backed_up: Machine, file: Path) -> None:
    with refusing("ALREADY_EXISTS"):
        backup.restore(backed_up.url, backed_up.directory, file)


def test_a_backup_takes_the_place_of_no_other_file(backed_up: Machine, file: Path) -> None:
    with refusing("ALREADY_EXISTS"):
        backup.backup(backed_up.url, backed_up.directory, file)
    assert not list(file.parent.glob(".backup*"))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_damaged_backup_is_refused(backed_up: Machine, file: Path, share: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 0x55
    file.write_bytes(content)
    with refusing("BAD_REQUEST", "no backup"):
        backup.restore(backed_up.url, backed_up.directory, file, replace=True)


def test_half_a_backup_is_refused(backed_up: Machine, file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)
    with refusing("BAD_REQUEST", "no backup"):
        backup.restore(backed_up.url, backed_up.directory, file, replace=True)


def changed(file: Path, **facts: object) -> Path:
    """The same backup, but its manifest says something else."""
    other = file.with_name("changed.tar.gz")
    with tarfile.open(file) as source, tarfile.open(other, "w:gz") as target:
        for member in source:
            content = source.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name == backup.MANIFEST:
                data = json.dumps({**json.loads(data), **facts}).encode()
                member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return other


def test_a_backup_of_a_newer_version_is_refused(backed_up: Machine, file: Path) -> None:
    newer = changed(file, migrations=[*backup.known_migrations(), "9999_future"])
    with refusing("WRONG_STATE", "newer version"):
        backup.restore(backed_up.url, backed_up.directory, newer, replace=True)


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "bundles/../x", "bundles/", "other"])
def test_b6_a_member_that_does_not_belong_into_it_is_refused(
    backed_up: Machine, file: Path, name: str
) -> None:
    with tarfile.open(file) as source:
        member = source.extractfile(backup.MANIFEST)
        assert member is not None
        facts = json.loads(member.read())["files"]
    with refusing("BAD_REQUEST", "no backup"):
        backup.restore(
            backed_up.url,
            backed_up.directory,
            changed(file, files={**facts, name: {"size": 1, "sha256": "0"}}),
            replace=True,
        )


def test_a_backup_of_the_other_kind_of_database_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "state", f"sqlite:///{tmp_path}/state/pilotage.db")
    with machine:
        pass
    backup.backup(machine.url, machine.directory, tmp_path / "b.tar.gz")
    with refusing("WRONG_STATE", "pilotage db copy"):
        backup.restore("postgresql://nobody@127.0.0.1:1/x", machine.directory, tmp_path / "b.tar.gz")


def test_a_damaged_database_is_not_backed_up(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "state", f"sqlite:///{tmp_path}/state/pilotage.db")
    with machine as world:
        live(world)
    path = tmp_path / "state" / "pilotage.db"
    content = bytearray(path.read_bytes())
    content[20_000:40_000] = os.urandom(20_000)
    path.write_bytes(content)
    with pytest.raises((PilotageError, sqlite3.DatabaseError)):
        backup.backup(machine.url, machine.directory, tmp_path / "b.tar.gz")
    assert not (tmp_path / "b.tar.gz").exists()


def test_without_pg_dump_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup.shutil, "which", lambda name: None)
    monkeypatch.setattr(backup.Path, "glob", lambda self, pattern: iter(()))
    with refusing("MISSING_EXTRA", "pg_dump"):
        backup.backup("postgresql://nobody@127.0.0.1:1/x", tmp_path, tmp_path / "b.tar.gz")


def test_the_password_of_the_database_is_on_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def run(command: list[str], **options: object) -> object:
        seen.update(command=command, **options)
        return dataclasses.make_dataclass("Done", ["returncode", "stderr"])(1, b"no such host")

    monkeypatch.setattr(backup.subprocess, "run", run)
    monkeypatch.setattr(backup, "_tool", lambda name: name)
    with refusing("PROGRAM_FAILED", "no such host"):
        backup.backup("postgresql://ada:secret@127.0.0.1:1/x", tmp_path, tmp_path / "b.tar.gz")
    assert "secret" not in " ".join(seen["command"])  # type: ignore[arg-type]
    assert seen["env"]["PGPASSWORD"] == "secret"  # type: ignore[index]


@pytest.mark.component("postgres")
def test_a_postgres_that_others_use_is_not_replaced(tmp_path: Path, postgres_url: str) -> None:
    import psycopg

    database = Database(postgres_url)
    database.migrate()
    with (
        psycopg.connect(postgres_url) as other,
        database.reading(),
        refusing("WRONG_STATE", "stop the servers"),
    ):
        assert other
        backup.refuse_while_used(database, "restore")
    database.close()


def test_no_epoch_leaves_the_key_as_it_is(core: Core) -> None:
    """Pilots of the version before go on with their tokens."""
    assert tokens.epoch_key(b"k" * 32) == b"k" * 32
    core.database.write(lambda: backup.Counter.create(name=tokens.KEY_EPOCH, value=5))
    assert tokens.epoch_key(b"k" * 32) != b"k" * 32
