"""Strays after a restore: what a storage holds and the database does not know is told, and moved only where that is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from protocol.errors import PilotageError
from protocol.messages.pilots import OutputReport
from server import job_executor
from server.core import Core, Limits
from server.models import Counter, Garbage, Replica, Storage
from server.paging import iso
from server.upkeep import archive, garbage, reconcile
from tests.auditing import assert_clean, look
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
    (output,) = done.outputs
    proof = {"md5": hashlib.md5(b"bytes").hexdigest()}
    job_executor.update(core, world.completed(done, outputs=[OutputReport(output.lfn, 5, proof)]))
    for job in (done, held):
        put(storage, f"t.out/{job.outputs[0].lfn}.{job.attempt_id}")
    world.done, world.held = done, held  # type: ignore[attr-defined]
    return world


def test_a_file_of_an_unknown_attempt_is_told_with_its_job_and_what_speaks_for_it(
    world: World, url: str, storage: Path
) -> None:
    stray = put(storage, "t.out/f00002.o.999")
    log = put(storage, "log/task-1/job-3.999.tar.gz")
    findings = reconcile.look(url)
    by_path = {each.path: each for each in findings.strays}
    assert findings.n_files == 4
    assert set(by_path) == {stray, log, storage / f"t.out/f00001.o.{world.held.attempt_id}"}  # type: ignore[attr-defined]
    found = by_path[stray]
    assert (found.attempt_id, found.job_id, found.rerun, found.open) == (999, 3, True, False)
    assert "999 is not known" in found.why
    assert "log of its attempt" in found.proof
    assert (by_path[log].attempt_id, by_path[log].job_id, by_path[log].proof) == (999, 3, "")
    assert "999 is not known" in by_path[log].why
    assert findings.reruns == {"t.out": [2, 3]}
    assert reconcile.open_tasks(["t.out"]) == {"t.out": "t"}


def test_nothing_is_moved_unless_asked_for_and_never_what_is_being_written(
    world: World, url: str, storage: Path, tmp_path: Path
) -> None:
    stray = put(storage, "t.out/f00002.o.999")
    before = sorted(storage.rglob("*"))
    with world.unchanged():
        assert reconcile.look(url).moved == 0
        assert sorted(storage.rglob("*")) == before
        assert reconcile.look(url, quarantine=tmp_path / "strays").moved == 1
    assert not stray.exists()
    (name,) = Storage.select()
    assert (tmp_path / "strays" / name.name / "t.out" / "f00002.o.999").read_text() == "bytes"
    assert sorted(storage.rglob("*")) == [path for path in before if path != stray]


def test_outputs_of_archived_jobs_are_known(world: World, url: str, storage: Path) -> None:
    world.complete(world.held)  # type: ignore[attr-defined]
    (last,) = world.claim()
    put(storage, f"t.out/{last.outputs[0].lfn}.{last.attempt_id}")
    world.complete(last)
    world.close_tasks()
    assert archive.run_once(world.core, 60) == 3
    findings = reconcile.look(url)
    assert (findings.n_files, findings.strays) == (3, [])


def test_files_that_the_sweeper_removes_are_told_with_the_time(world: World, url: str, storage: Path) -> None:
    """Those that lost attempts of archived jobs left; but not if another installation may have published them."""
    job = world.held  # type: ignore[attr-defined]
    job_executor.cancel(world.core, [job.job_id], "ada", "a test says so")
    world.complete(world.claim()[0])
    world.close_tasks()

    def found() -> reconcile.Stray:
        (stray,) = [each for each in reconcile.look(url).strays if each.attempt_id == job.attempt_id]
        return stray

    assert found().removed_after is None, "its job is in the hot tables"
    assert archive.run_once(world.core, 60) == 3
    assert found().removed_after == iso(Garbage.get(attempt_id=job.attempt_id).due)
    last = {"name": garbage.FOREIGN_ATTEMPT, "value": job.attempt_id}
    world.core.database.write(lambda: Counter.create(**last))
    assert found().removed_after is None


def test_a_second_file_beside_the_registered_one_is_told(world: World, url: str, storage: Path) -> None:
    put(storage, "t.out/f00000.o.998")
    (found,) = [each for each in reconcile.look(url).strays if each.attempt_id == 998]
    assert "not the one whose output was registered" in found.why
    assert not found.rerun


def test_a_dataset_that_was_made_in_the_lost_time_is_told(world: World, url: str, storage: Path) -> None:
    put(storage, "new.out/b.o.997")
    put(storage, "new.out/.b.o.997.0123456789ab.part")
    unfinished, found = [each for each in reconcile.look(url).strays if each.place.parts[0] == "new.out"]
    assert (found.dataset, found.lfn, found.attempt_id, found.job_id) == ("new.out", "b.o", 997, None)
    assert "neither its dataset and name" in found.why
    assert (unfinished.attempt_id, unfinished.why) == (997, "attempt 997 is not known")


STRAYS = (
    "log/task-2/job-61.61.tar.gz",  # of a task that the restored database does not know
    "log/task-1/job-1.999.tar.gz",
    "log/task-7/job-1.2.tar.gz",
    "t.out/f00002.o.999",
    "t.out/deeper/f00002.o.999",
    "t.out/.f00002.o.999.0123456789ab.part",
    "stray.txt",
    "else/where/no-number",
    ".hidden",
)


@pytest.mark.parametrize("name", STRAYS)
def test_what_the_audit_calls_an_orphan_is_told_and_moved_and_then_the_audit_is_clean(
    world: World, url: str, storage: Path, tmp_path: Path, name: str
) -> None:
    put(storage, "log/task-1/job-1.1.tar.gz")
    stray = put(storage, name)
    os.utime(stray, (1.0, 1.0))  # long ago: no garbage that might still go by itself
    assert [each.subject["path"] for each in look(url).findings] == [str(stray)]
    (told,) = [each for each in reconcile.look(url).strays if not each.open]
    assert (told.path, told.place) == (stray, Path(name))
    findings = reconcile.look(url, quarantine=tmp_path / "strays")
    assert (findings.moved, findings.not_moved) == (1, {})
    assert (tmp_path / "strays" / "LOCAL" / name).read_text() == "bytes"
    assert_clean(url)
    assert (storage / "log/task-1/job-1.1.tar.gz").is_file(), "the log of an attempt that is known"


def test_links_and_names_that_are_no_text_are_moved_too(
    world: World, url: str, storage: Path, tmp_path: Path
) -> None:
    (storage / "link.5").symlink_to("nowhere")
    put(storage, os.fsdecode(b"t.out/\xff.4711"))
    findings = reconcile.look(url, quarantine=tmp_path / "strays")
    assert (findings.moved, findings.not_moved) == (2, {})
    assert (tmp_path / "strays" / "LOCAL" / "link.5").is_symlink()
    assert_clean(url)


@pytest.mark.parametrize("place", ["raw/run 1.spd", "raw/run1.spd.17"])
@pytest.mark.parametrize("spell", [str, quote])
def test_a_file_that_a_user_registered_is_no_stray_wherever_it_lies(
    world: World, url: str, storage: Path, place: str, spell: Callable[[str], str]
) -> None:
    path = put(storage, place)
    assert len([each for each in reconcile.look(url).strays if not each.open]) == 1
    address = f"file://{spell(str(path))}"
    world.core.database.write(lambda: Replica.update(url=address).where(Replica.id == 1).execute())
    assert [each for each in reconcile.look(url).strays if not each.open] == []
    assert_clean(url)


def test_what_was_published_while_the_others_were_looked_at_is_not_moved(
    world: World, url: str, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, stray = put(storage, "late.dat"), put(storage, "stray.dat")

    def published(*words: object) -> dict[int, int]:
        """Called in the walk, after that batch was looked up."""
        address = Replica.update(url=f"file://{late}").where(Replica.id == 1)
        world.core.database.write(address.execute)
        return {}

    monkeypatch.setattr(reconcile, "_logs", published)
    assert reconcile.look(url, quarantine=tmp_path / "strays").moved == 1
    assert late.exists() and not stray.exists()


def test_what_was_changed_within_the_grace_time_is_not_moved(
    world: World, url: str, storage: Path, tmp_path: Path
) -> None:
    fresh, old = put(storage, "fresh.dat"), put(storage, "old.dat")
    os.utime(old, (1.0, 1.0))
    findings = reconcile.look(url, quarantine=tmp_path / "strays", grace_seconds=3600)
    assert (findings.moved, list(findings.not_moved)) == (1, [str(fresh)])
    assert fresh.exists() and not old.exists()


def test_what_is_in_the_way_stays_and_is_said(world: World, url: str, storage: Path, tmp_path: Path) -> None:
    stray = put(storage, "stray.txt")
    put(tmp_path, "strays/LOCAL/stray.txt")
    findings = reconcile.look(url, quarantine=tmp_path / "strays")
    assert (findings.moved, list(findings.not_moved)) == (0, [str(stray)])
    assert stray.is_file()


def test_a_quarantine_within_a_storage_is_refused(world: World, url: str, storage: Path) -> None:
    put(storage, "stray.txt")
    with pytest.raises(PilotageError, match="within storage LOCAL"):
        reconcile.look(url, quarantine=storage / "strays")
    assert (storage / "stray.txt").is_file()


def test_storages_that_this_machine_does_not_reach_are_named(
    world: World, url: str, storage: Path, tmp_path: Path
) -> None:
    def others() -> None:
        for name, url in (
            ("far", "root://far//data"),
            ("gone", f"file://{tmp_path}/gone"),
            ("nodes", "file:data"),
        ):
            Storage.create(name=name, url=url)

    world.core.database.write(others)
    assert set(reconcile.look(url).not_reached) == {"far", "gone", "nodes"}
    put(tmp_path, "data/t.out/f00002.o.999")
    findings = reconcile.look(url, data_root=str(tmp_path))
    assert set(findings.not_reached) == {"far", "gone"}
    assert {each.storage for each in findings.strays} >= {"nodes"}
