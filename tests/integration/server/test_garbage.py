"""The sweeper: what attempts left behind goes after the grace time, and nothing else ever does."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from protocol.files import local_path
from protocol.messages.pilots import JobSpec, OutputReport
from protocol.messages.requests import DatasetSpec, FileSpec, RetrySpec
from protocol.states import JobState
from server import catalogue, daemons
from server.auditing import storage_checks
from server.core import Core, Limits
from server.jobs import operations
from server.models import Attempt, Counter, Garbage, Replica
from server.upkeep import archive, garbage
from tests.auditing import assert_clean
from tests.integration.server.world import MD5, World

GRACE = 50_000.0
LOST, KEPT = b"what a lost attempt wrote", b"what the next one wrote"


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0, garbage_seconds=GRACE)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens between the audit's two looks at a disk."""
    monkeypatch.setattr(storage_checks, "sleep", lambda seconds: None)


def put(url: str, content: bytes) -> Path:
    path = Path(local_path(url))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write(job: JobSpec, content: bytes) -> list[Path]:
    """An attempt's outputs and its log."""
    put(job.log_url, b"log")
    return [put(output.url, content) for output in job.outputs]


@dataclasses.dataclass
class Scene:
    """Two jobs whose first attempts have written and were lost, and whose second ones completed."""

    world: World
    lost: list[Path]
    kept: list[Path]
    parts: list[Path]

    @property
    def core(self) -> Core:
        return self.world.core

    def later(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """So much time goes by."""
        moment = garbage.now() + seconds
        monkeypatch.setattr(garbage, "now", lambda: moment)


@pytest.fixture
def scene(world: World, storage: Path) -> Scene:
    world.dataset(2)
    world.task(outputs=["{stem}.out", "größe {job_nr}"], max_attempts=3)
    world.form()
    world.pilot()
    first = world.claim(n_jobs=2)
    lost = [path for job in first for path in write(job, LOST)]
    for job in first:
        world.say(job, JobState.OBTAINED, JobState.RUNNING, JobState.STAGE_OUT)
    parts = [lost[0].with_name(f".{lost[0].name}.0123456789ab.part")]
    parts[0].write_bytes(b"half")
    world.pass_seconds(100_000)
    kept = []
    for job in world.claim(n_jobs=2):
        kept += write(job, KEPT)
        md5 = {"md5": hashlib.md5(KEPT).hexdigest()}
        world.say(
            job,
            JobState.RUNNING,
            JobState.COMPLETED,
            outputs=[OutputReport(output.lfn, len(KEPT), md5) for output in job.outputs],
        )
    world.close_tasks()
    return Scene(world, lost, kept, parts)


def archived(scene: Scene) -> Scene:
    assert archive.run_once(scene.core, 60) == 2
    return scene


def exist(paths: list[Path]) -> set[bool]:
    return {os.path.lexists(path) for path in paths}


def sweep(core: Core) -> int:
    return garbage.run_once(core, 60)


def change(scene: Scene, work: Callable[[], Any]) -> None:
    scene.core.database.write(work)


# -- what goes --------------------------------------------------------------------------------------------------------------


def test_f15_files_of_lost_attempts_are_garbage_and_go_after_the_grace_time(
    scene: Scene, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_garbage() -> int:
        # Without a grace time of its own: whatever their age.
        return assert_clean(url, grace_seconds=0).tallies["garbage"].n_findings

    assert n_garbage() == 5, "the attempts are in the hot tables"
    archived(scene)
    assert n_garbage() == 5, "their job is in the archive"
    scene.later(GRACE - 60, monkeypatch)
    assert sweep(scene.core) == 0
    assert exist(scene.lost + scene.parts) == {True}
    scene.later(120, monkeypatch)
    assert sweep(scene.core) == 5
    assert exist(scene.lost + scene.parts) == {False}
    assert [path.read_bytes() for path in scene.kept] == [KEPT] * 4
    assert not Garbage.select().exists()
    assert n_garbage() == 0


def test_every_attempt_but_the_one_that_completed_is_noted(scene: Scene) -> None:
    assert not Garbage.select().exists()
    completed = {row.id for row in Attempt.select().where(Attempt.state == JobState.COMPLETED.value)}
    archived(scene)
    rows = list(Garbage.select())
    assert {Path(local_path(row.url)) for row in rows} == set(scene.lost)
    assert {row.attempt_id for row in rows} == {1, 2}
    assert not {row.attempt_id for row in rows} & completed


def test_a_job_that_failed_for_good_and_was_tried_again_leaves_all_its_attempts(
    world: World, storage: Path
) -> None:
    world.dataset(1)
    world.task(outputs=["{stem}.out"], max_attempts=1)
    world.form()
    world.pilot()
    for _ in range(2):
        world.fail(world.claim()[0])
        world.close_tasks()
        assert archive.run_once(world.core, 60) == 1
        operations.retry(world.core, "t", RetrySpec(), "ada")
    urls = [row.url for row in Garbage.select().order_by(Garbage.id)]
    assert urls == [f"file://{storage}/t.out/f00000.out.{number}" for number in (1, 2)]


def test_a_task_without_outputs_leaves_nothing(world: World) -> None:
    world.ready(max_attempts=1)
    world.fail(world.claim()[0])
    world.close_tasks()
    assert archive.run_once(world.core, 60) == 1
    assert not Garbage.select().exists()


def test_a_file_that_was_never_written_costs_its_row_alone(scene: Scene, due: None) -> None:
    for path in scene.lost:
        path.unlink()
    scene.parts[0].unlink()
    assert sweep(scene.core) == 0
    assert not Garbage.select().exists()


def test_a_pass_that_is_killed_before_its_rows_are_gone_is_made_good_by_the_next(
    scene: Scene, due: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(swept: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(garbage, "_settle", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(scene.core)
    assert exist(scene.lost) == {False}
    assert Garbage.select().count() == 4
    assert sweep(scene.core) == 0
    assert not Garbage.select().exists()
    assert exist(scene.kept) == {True}


def test_a_pass_ends_in_time_and_the_next_one_goes_on(
    scene: Scene, due: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "CHUNK", 1)
    assert garbage.run_once(scene.core, 0) == 0
    assert sweep(scene.core) == 5
    assert not Garbage.select().exists()


def test_how_many_were_removed_is_logged(scene: Scene, due: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, garbage.__name__):
        sweep(scene.core)
        sweep(scene.core)
    assert [record.__dict__["files"] for record in caplog.records] == [5]


def test_the_sweeper_is_one_of_the_daemons(scene: Scene, due: None) -> None:
    (sweeper,) = [each for each in daemons.Daemons(scene.core).all if each.name == "sweeper"]
    sweeper.run_once(0.0)
    assert exist(scene.lost) == {False}


# -- what stays -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def due(scene: Scene) -> None:
    """The jobs are in the archive, and the grace time is over."""
    archived(scene)
    change(scene, lambda: Garbage.update(due=1.0).execute())


def waits(scene: Scene) -> int:
    """Rows that are kept, and not looked at in each pass."""
    assert not Garbage.select().where(Garbage.due <= garbage.now() + 60).exists()
    return int(Garbage.select().count())


def test_a_link_in_the_place_of_the_directory_is_not_followed(
    scene: Scene, due: None, storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = (storage / "t.out").rename(tmp_path / "elsewhere")
    (storage / "t.out").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    assert sweep(scene.core) == 0
    assert sorted(elsewhere.iterdir()) == before
    assert waits(scene) == 4
    assert "cannot remove" in caplog.text


def test_of_a_link_in_the_place_of_a_file_the_link_goes(scene: Scene, due: None, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(KEPT)
    scene.lost[0].unlink()
    scene.lost[0].symlink_to(precious)
    sweep(scene.core)
    assert exist(scene.lost) == {False}
    assert precious.read_bytes() == KEPT


def test_a_directory_in_the_place_of_a_file_stays_and_the_others_go(scene: Scene, due: None) -> None:
    scene.lost[0].unlink()
    scene.lost[0].mkdir()
    assert sweep(scene.core) == 4
    assert scene.lost[0].is_dir()
    assert waits(scene) == 1


@pytest.mark.parametrize(
    "spelled",
    [
        "file://{}",
        "file://localhost{}",
        "file:///mnt/other/name/of{}",
        "root://eos.example/{}",
        "davs://dav.example:443/of{}",
    ],
)
def test_a_file_that_a_user_has_registered_is_never_removed(scene: Scene, due: None, spelled: str) -> None:
    mine = scene.lost[1]
    file = FileSpec("mine", len(LOST), spelled.format(quote(str(mine))), MD5)
    catalogue.create(scene.core, DatasetSpec("others", files=[file]), "eve")
    sweep(scene.core)
    assert mine.read_bytes() == LOST
    assert exist([scene.lost[0], *scene.lost[2:]]) == {False}
    assert not Garbage.select().exists(), "it is garbage no more"


def test_a_file_that_a_row_of_the_output_dataset_publishes_is_never_removed(scene: Scene, due: None) -> None:
    stem, _, attempt_id = str(scene.lost[0]).rpartition(".")
    [replica] = Replica.select().where(Replica.url.contains(f"{stem}."))
    moved = replica.url.rpartition(".")[0] + f".{attempt_id}"
    change(scene, lambda: Replica.update(url=moved).where(Replica.id == replica.id).execute())
    assert Path(local_path(moved)) == scene.lost[0]
    sweep(scene.core)
    assert scene.lost[0].read_bytes() == LOST
    assert exist(scene.lost[1:]) == {False}


def test_a_name_without_the_attempts_number_is_never_removed(scene: Scene, due: None) -> None:
    change(scene, lambda: Garbage.update(url=f"file://{scene.kept[0]}").execute())
    assert sweep(scene.core) == 0
    assert exist(scene.kept + scene.lost) == {True}


def test_what_only_looks_like_an_unfinished_copy_stays(scene: Scene, due: None) -> None:
    name = scene.lost[0].name
    others = [f".{name}.part", f".{name}.0123456789a.part", f".{name}1.0123456789ab.part", f"{name}.old"]
    paths = [scene.lost[0].with_name(other) for other in others]
    for path in paths:
        path.write_bytes(KEPT)
    assert sweep(scene.core) == 5
    assert exist(paths) == {True}


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_where_the_storage_is_not_mounted_the_rows_wait(
    scene: Scene, due: None, storage: Path, is_mount_point: bool, caplog: pytest.LogCaptureFixture
) -> None:
    away = storage.rename(storage.with_name("away"))
    if is_mount_point:
        storage.mkdir()
    assert sweep(scene.core) == 0
    assert waits(scene) == 4
    assert not caplog.records, "nothing is wrong with that"
    if is_mount_point:
        storage.rmdir()
    away.rename(storage)
    change(scene, lambda: Garbage.update(due=1.0).execute())
    assert sweep(scene.core) == 5
    assert not Garbage.select().exists()


def test_a_dataset_that_the_storage_never_had_costs_the_rows_alone(
    scene: Scene, due: None, storage: Path
) -> None:
    (storage / "t.out").rename(storage.parent / "gone")
    assert sweep(scene.core) == 0
    assert not Garbage.select().exists(), "the storage is there: it has the logs"


def test_what_an_attempt_from_before_a_restore_wrote_is_not_ours_to_remove(scene: Scene, due: None) -> None:
    """It may have completed in the installation that the backup was taken of, and that published the file."""
    first, last = (int(path.name.rpartition(".")[2]) for path in (scene.lost[0], scene.lost[-1]))
    assert first < last
    change(scene, lambda: Counter.create(name=garbage.FOREIGN_ATTEMPT, value=first))
    assert sweep(scene.core) > 0, "those of the later attempt"
    mine = [path for path in scene.lost if path.name.endswith(f".{last}")]
    assert exist(mine) == {False}
    assert exist([path for path in scene.lost if path not in mine] + scene.parts) == {True}
    assert not Garbage.select().exists(), "they are not looked at again"


@pytest.mark.parametrize(
    "url", ["root://far.example//data/t.out/f.1", "file:data/t.out/f.1", "file://host/d/f.1"]
)
def test_what_lies_elsewhere_is_not_noted(scene: Scene, url: str) -> None:
    noted = Garbage.select().count()
    change(scene, lambda: garbage.note(scene.core, [(1, url), (2, "file:///data/t.out/f.2")]))
    assert Garbage.select().count() == noted + 1


def test_users_addresses_that_end_with_numbers_are_found_by_an_index(scene: Scene) -> None:
    """Or each pass would read all replicas."""
    condition = garbage._PUBLISHED.sqlite[0][1].partition("FROM replica WHERE")[2].partition("IN (")[0]
    sql = f"SELECT url FROM replica WHERE {condition} IN ('17')"
    database = Replica._meta.database
    if scene.core.database.is_sqlite:
        plan = database.execute_sql(f"EXPLAIN QUERY PLAN {sql}").fetchall()
    else:
        with database.atomic():
            database.execute_sql("SET LOCAL enable_seqscan = off")
            plan = database.execute_sql(f"EXPLAIN {sql}").fetchall()
    assert "replica_ends_with_number" in str(plan)
