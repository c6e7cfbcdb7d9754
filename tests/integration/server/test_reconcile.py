"""Strays after a restore: what a storage holds and the database does not know is told, and moved only where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import job_executor
from server.core import Core, Limits
from server.models import Counter, Garbage, Storage
from server.paging import iso
from server.upkeep import archive, garbage, reconcile
from tests.integration.server.world import World


@pytest.fixture
def limits() -> Limits:
    return Limits(archive_after_seconds=0)


def put(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("bytes")
    return path


@pytest.fixture
def world(core: Core, storage: Path) -> World:
    """One job is done and one is held; a third waits, and what it wrote in the time that was lost lies in the storage."""
    world = World(core)
    world.dataset(3)
    world.task("t", outputs=["{stem}.o"])
    world.form()
    world.pilot()
    done, held = world.claim(n_jobs=2)
    world.complete(done)
    for job in (done, held):
        put(storage, f"t.out/{job.outputs[0].lfn}.{job.attempt_id}")
    world.done, world.held = done, held  # type: ignore[attr-defined]
    return world


def test_a_file_of_an_unknown_attempt_is_told_with_its_job_and_what_speaks_for_it(
    world: World, storage: Path
) -> None:
    stray = put(storage, "t.out/f00002.o.999")
    put(storage, "log/task-1/job-3.999.tar.gz")
    findings = reconcile.look()
    by_path = {each.path: each for each in findings.strays}
    assert findings.n_files == 3
    assert set(by_path) == {stray, storage / f"t.out/f00001.o.{world.held.attempt_id}"}  # type: ignore[attr-defined]
    found = by_path[stray]
    assert (found.attempt_id, found.job_id, found.rerun, found.open) == (999, 3, True, False)
    assert "999 is not known" in found.why
    assert "log of its attempt" in found.proof
    assert findings.reruns == {"t.out": [2, 3]}
    assert reconcile.open_tasks(["t.out"]) == {"t.out": "t"}


def test_nothing_is_moved_unless_asked_for_and_never_what_is_being_written(
    world: World, storage: Path, tmp_path: Path
) -> None:
    stray = put(storage, "t.out/f00002.o.999")
    before = sorted(storage.rglob("*"))
    with world.unchanged():
        assert reconcile.look().moved == 0
        assert sorted(storage.rglob("*")) == before
        assert reconcile.look(quarantine=tmp_path / "strays").moved == 1
    assert not stray.exists()
    (name,) = Storage.select()
    assert (tmp_path / "strays" / name.name / "t.out" / "f00002.o.999").read_text() == "bytes"
    assert sorted(storage.rglob("*")) == [path for path in before if path != stray]


def test_outputs_of_archived_jobs_are_known(world: World, storage: Path) -> None:
    world.complete(world.held)  # type: ignore[attr-defined]
    (last,) = world.claim()
    put(storage, f"t.out/{last.outputs[0].lfn}.{last.attempt_id}")
    world.complete(last)
    world.close_tasks()
    assert archive.run_once(world.core, 60) == 3
    findings = reconcile.look()
    assert (findings.n_files, findings.strays) == (3, [])


def test_files_that_the_sweeper_removes_are_told_with_the_time(world: World, storage: Path) -> None:
    """Those that lost attempts of archived jobs left; but not if another installation may have published them."""
    job = world.held  # type: ignore[attr-defined]
    job_executor.cancel(world.core, [job.job_id], "ada", "a test says so")
    world.complete(world.claim()[0])
    world.close_tasks()

    def found() -> reconcile.Stray:
        (stray,) = [each for each in reconcile.look().strays if each.attempt_id == job.attempt_id]
        return stray

    assert found().removed_after is None, "its job is in the hot tables"
    assert archive.run_once(world.core, 60) == 3
    assert found().removed_after == iso(Garbage.get(attempt_id=job.attempt_id).due)
    last = {"name": garbage.FOREIGN_ATTEMPT, "value": job.attempt_id}
    world.core.database.write(lambda: Counter.create(**last))
    assert found().removed_after is None


def test_a_second_file_beside_the_registered_one_is_told(world: World, storage: Path) -> None:
    put(storage, "t.out/f00000.o.998")
    (found,) = [each for each in reconcile.look().strays if each.attempt_id == 998]
    assert "not the one whose output was registered" in found.why
    assert not found.rerun


def test_a_dataset_that_was_made_in_the_lost_time_is_told(world: World, storage: Path) -> None:
    put(storage, "new.out/a/b.o.997")
    put(storage, "new.out/.b.o.0123456789ab.part")
    put(storage, "new.out/no-number")
    (found,) = [each for each in reconcile.look().strays if each.dataset == "new.out"]
    assert (found.lfn, found.attempt_id, found.job_id) == ("a/b.o", 997, None)


def test_storages_that_this_machine_does_not_reach_are_named(
    world: World, storage: Path, tmp_path: Path
) -> None:
    def others() -> None:
        for name, url in (
            ("far", "root://far//data"),
            ("gone", f"file://{tmp_path}/gone"),
            ("nodes", "file:data"),
        ):
            Storage.create(name=name, url=url)

    world.core.database.write(others)
    assert set(reconcile.look().not_reached) == {"far", "gone", "nodes"}
    put(tmp_path, "data/t.out/f00002.o.999")
    findings = reconcile.look(data_root=str(tmp_path))
    assert set(findings.not_reached) == {"far", "gone"}
    assert {each.storage for each in findings.strays} >= {"nodes"}
