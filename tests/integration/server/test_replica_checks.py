"""`storage check`: each replica is held against the catalogue, storage by storage, and what is known of it changes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, FileSpec, ReplicaFinding, StorageSpec
from server import catalogue, computing, replicas
from server.audit import in_silence
from server.auditing import replica_checks, storage_checks
from server.auditing.replica_checks import BY_ADDRESS, Report
from server.auditing.snapshot import Snapshot
from server.auditing.storage_checks import Options
from server.commands.storages import findings_of
from server.models import AdminEvent, File, Replica
from server.upkeep import reconcile
from tests.auditing import look as audit
from tests.integration.server.world import World

CONTENT = b"the bytes of a file"
MD5 = hashlib.md5(CONTENT).hexdigest()
SPOILT = b"The bytes of a file"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_checks, "sleep", lambda seconds: None)


@pytest.fixture
def two(world: World, storage: Path, tmp_path: Path) -> World:
    """Files a, b, c on storage LOCAL, each with a second replica on storage NEW, and file d at an address in no storage."""

    def set_up() -> None:
        computing.create_storage(world.core, StorageSpec("NEW", f"file://{tmp_path}/new"))
        files = [FileSpec(lfn, len(CONTENT), f"file://{place}", {"md5": MD5}) for lfn, place in paths.items()]
        catalogue.create(world.core, DatasetSpec("in", files=files, close=True), "ada")
        for lfn in "abc":
            url = f"file://{tmp_path}/new/in/{lfn}.1"
            Replica.create(file=File.get(File.lfn == lfn), storage="NEW", url=url)

    paths = {lfn: storage / "in" / f"{lfn}.0" for lfn in "abc"} | {"d": tmp_path / "elsewhere" / "d"}
    for path in (*paths.values(), *(tmp_path / "new" / "in" / f"{lfn}.1" for lfn in "abc")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    world.core.database.write(set_up)
    return world


def check(url: str, *names: str, checksums: int | None = None) -> Report:
    options = Options(checksums, all_if_few=False)
    with Snapshot(url) as snapshot:
        return replica_checks.look(snapshot, names, options, in_silence)


def repair(world: World, report: Report) -> int:
    return replicas.mark(world.core, findings_of(report), "root")


def state_of(lfn: str, storage: str | None) -> str:
    of_file = Replica.select().join(File).where(File.lfn == lfn)
    return str(next(each.state for each in of_file if each.storage_id == storage))


def test_nothing_is_found_where_all_is_as_registered(two: World, url: str) -> None:
    report = check(url)
    assert {name: (each.n_replicas, each.n_compared) for name, each in report.tallies.items()} == {
        "LOCAL": (3, 3),
        "NEW": (3, 3),
        BY_ADDRESS: (1, 1),
    }
    assert not report.faults and not report.right_again and not report.not_looked_at


def test_each_kind_of_damage_is_told_with_what_is_left_of_the_file_elsewhere(
    two: World, url: str, storage: Path, tmp_path: Path
) -> None:
    (storage / "in" / "a.0").unlink()
    (storage / "in" / "b.0").write_bytes(CONTENT[:-1])
    (tmp_path / "new" / "in" / "c.1").write_bytes(SPOILT)
    (tmp_path / "elsewhere" / "d").write_bytes(SPOILT)
    with two.unchanged():
        report = check(url)
    told = {(fault.storage, fault.lfn): (fault.check, fault.n_good) for fault in report.faults}
    assert told == {
        ("LOCAL", "a"): ("lost-file", 1),
        ("LOCAL", "b"): ("wrong-size", 1),
        ("NEW", "c"): ("wrong-checksum", 1),
        (BY_ADDRESS, "d"): ("wrong-checksum", 0),
    }
    assert [fault.lfn for fault in check(url, "NEW").faults] == ["c"]
    assert report.faults[1].reason.endswith("b.0 has 18 bytes, 19 are registered")


def test_repair_lets_jobs_read_the_other_replica_until_a_look_finds_the_first_one_right_again(
    two: World, url: str, storage: Path, tmp_path: Path
) -> None:
    place = storage / "in" / "a.0"
    place.write_bytes(SPOILT)
    assert repair(two, check(url)) == 1
    two.task()
    two.form()
    two.pilot()
    [job] = two.claim()
    assert (state_of("a", None), job.inputs[0].url) == ("bad", f"file://{tmp_path}/new/in/a.1")
    event = AdminEvent.select().order_by(AdminEvent.id.desc()).get()
    assert (event.who, event.action, event.detail) == ("root", "storage check", "1 bad; 1 changed")
    assert repair(two, check(url)) == 0, "it is known already"
    place.write_bytes(CONTENT)
    report = check(url, checksums=0)
    assert [each for _, each in report.right_again] == [f"file://{place}"], "what was bad is always read"
    assert repair(two, report) == 1
    replica = Replica.get(Replica.url == f"file://{place}")
    assert (replica.state, replica.reason) == ("good", "")


def test_a_storage_that_is_not_mounted_or_not_file_is_told_and_none_of_its_files_is_lost(
    two: World, url: str, tmp_path: Path
) -> None:
    computing.create_storage(two.core, StorageSpec("FAR", "root://eos.example//spd"))
    shutil.rmtree(tmp_path / "new" / "in")
    report = check(url)
    assert "is it mounted here?" in report.tallies["NEW"].unseen, "an empty mount point"
    assert "this host cannot look into root: addresses" in report.tallies["FAR"].unseen
    (tmp_path / "new").rmdir()
    assert "is it mounted here?" in check(url).tallies["NEW"].unseen
    shutil.rmtree(tmp_path / "elsewhere")
    report = check(url)
    assert not report.faults
    [reason] = report.not_looked_at
    assert "there is no such directory here" in reason
    with pytest.raises(PilotageError, match="no storage OLD"):
        check(url, "OLD")


def test_a_damage_that_is_gone_at_the_second_look_is_none(
    two: World, url: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = storage / "in" / "a.0"
    place.unlink()
    monkeypatch.setattr(storage_checks, "sleep", lambda seconds: place.write_bytes(CONTENT))
    assert not check(url).faults


def test_only_so_many_files_are_read_as_wanted(two: World, url: str) -> None:
    report = check(url, checksums=2)
    assert 2 <= sum(tally.n_compared for tally in report.tallies.values()) <= 4
    assert not sum(tally.n_compared for tally in check(url, checksums=0).tallies.values())


@pytest.mark.parametrize(
    ("change", "n"), [({}, 1), ({"url": "file:///another"}, 0), ({"replica_id": 4711}, 0)]
)
def test_only_the_replica_that_was_looked_at_is_marked(two: World, change: dict[str, object], n: int) -> None:
    """Another number or address: after a restore, say, it is another one."""
    replica = Replica.get(Replica.storage == "NEW")
    facts = {"replica_id": replica.id, "url": replica.url, "state": "bad", "reason": "lost\x1b[2J", **change}
    assert replicas.mark(two.core, [ReplicaFinding(**facts)], "root") == n  # type: ignore[arg-type]
    assert "\x1b" not in Replica.get_by_id(replica.id).reason


def test_a_look_finds_good_or_bad_and_nothing_else(two: World) -> None:
    with two.refused("BAD_REQUEST", r"findings\[0\].state"):
        replicas.mark(two.core, [ReplicaFinding(1, "file:///x", "suspect")], "root")


def test_dark_files_of_the_chosen_storages_alone_are_told_and_moved(
    two: World, url: str, storage: Path, tmp_path: Path
) -> None:
    for root in (storage, tmp_path / "new"):
        (root / "who-knows").write_text("dark")
    found = reconcile.look(url, storages=["NEW"])
    # The second replicas were made by no attempt, but they are in the catalogue.
    assert [stray.path for stray in found.strays] == [tmp_path / "new" / "who-knows"]
    moved = reconcile.look(url, quarantine=tmp_path / "dark", storages=["NEW"])
    assert moved.moved == 1 and (tmp_path / "dark" / "NEW" / "who-knows").exists()
    assert (storage / "who-knows").exists()


def test_the_audit_has_nothing_against_several_replicas(two: World, url: str) -> None:
    assert not [each for each in audit(url).findings if not each.is_note]
