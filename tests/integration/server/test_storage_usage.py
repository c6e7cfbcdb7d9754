"""`storage usage`: files and bytes of each storage, dataset and task, by the catalogue and by the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import PilotageError
from protocol.messages.requests import DatasetSpec, FileSpec, StorageSpec
from server import catalogue, computing
from server.audit import in_silence
from server.auditing import storage_usage
from server.auditing.snapshot import Snapshot
from server.models import File, Replica
from tests.integration.server.world import World

HUGE = 2**62


@pytest.fixture
def used(world: World, storage: Path, tmp_path: Path) -> World:
    """Two outputs on LOCAL, one of them on NEW too; a registered file in the directory of NEW; two huge ones in no storage."""
    computing.create_storage(world.core, StorageSpec("NEW", f"file://{tmp_path}/new"))
    world.dataset(2)
    world.task(outputs=["{stem}.o"])
    world.form()
    world.pilot()
    for job in world.claim(n_jobs=2):
        world.complete(job)
    output = File.get(File.lfn == "f00000.o")
    world.core.database.write(
        lambda: Replica.create(file=output, storage="NEW", url=f"file://{tmp_path}/new/t.out/f00000.o.9")
    )
    files = [
        FileSpec("here", 100, f"file://{tmp_path}/new/raw/here"),
        *(FileSpec(f"huge-{n}", HUGE, f"file:///tape/huge-{n}") for n in range(2)),
    ]
    catalogue.create(world.core, DatasetSpec("raw", files=files), "ada")
    return world


def lines(url: str, *names: str, by: str = "storage") -> dict[tuple[str, str], tuple[int, int]]:
    with Snapshot(url) as snapshot:
        found = storage_usage.by_catalogue(snapshot, names, by, in_silence)
    assert [line.size for line in found] == sorted((line.size for line in found), reverse=True)
    return {(line.storage, line.of): (line.n_files, line.size) for line in found}


def test_files_and_bytes_are_counted_by_storage_dataset_and_task(used: World, url: str) -> None:
    """A file counts on each storage where it has a replica; the sum may be more than 64 bits hold."""
    assert lines(url) == {("", ""): (4, 2 * HUGE + 20), ("NEW", ""): (2, 103), ("LOCAL", ""): (2, 6)}
    assert lines(url, "NEW", by="dataset") == {("NEW", "raw"): (1, 100), ("NEW", "t.out"): (1, 3)}
    assert lines(url, "NEW", "LOCAL", by="task") == {
        ("NEW", ""): (1, 100),
        ("LOCAL", "t"): (2, 6),
        ("NEW", "t"): (1, 3),
    }
    with pytest.raises(PilotageError, match="no storage OLD"):
        lines(url, "OLD")


def test_the_disk_tells_of_what_lies_there_and_what_of_it_are_logs(
    used: World, url: str, storage: Path, tmp_path: Path
) -> None:
    computing.create_storage(used.core, StorageSpec("INNER", f"file://{storage}/inner"))
    computing.create_storage(used.core, StorageSpec("FAR", "root://eos.example//spd"))
    (tmp_path / "new").rmdir()
    for name in ("t.out/f00000.o.1", "nobody's", "log/task-1/job-1.1.tar.gz", "inner/x"):
        (storage / name).parent.mkdir(parents=True, exist_ok=True)
        (storage / name).write_bytes(b"12345")
    with Snapshot(url) as snapshot:
        found = {each.storage: each for each in storage_usage.by_disk(snapshot, (), "")}
    local = found["LOCAL"]
    assert (local.n_files, local.size, local.n_logs, local.logs_size) == (3, 15, 1, 5)
    assert (found["INNER"].n_files, local.unseen) == (1, "")
    assert "sees no directory at root:" in found["FAR"].unseen and "sees no directory" in found["NEW"].unseen
