"""F12: the server's disk is full. Reads work, writes are refused and said again; with room again it goes on by itself."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from protocol.messages.requests import StorageSpec
from tests.faults.installation import Installation, installed
from tests.filesystems import mounted
from tests.running_server import Refused


def fill(path: Path) -> None:
    """Leave no byte of the file system free."""
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    assert os.statvfs(path).f_bavail == 0


def is_refused(where: Installation) -> bool:
    """Whether a new dataset is: what is small may still fit into the database's log."""
    try:
        where.server.request("POST", "/v1/datasets", {"name": f"d{time.monotonic_ns()}"})
    except Refused as refused:
        assert refused.status in (503, 507), refused
        return True
    return False


@pytest.mark.component("mount")
@pytest.mark.slow
def test_f12_a_server_whose_disk_is_full_refuses_what_is_written_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    with mounted("size=24m") as disk:
        ballast = disk / "ballast"
        with installed(disk / "server") as where:
            where.session.create_storage(StorageSpec("elsewhere", f"file://{tmp_path}/storage"))
            queue = where.queue(storage="elsewhere")
            task = where.submit(queue, 300)
            with where.crew(queue) as crew:
                where.completed(crew.history, 30, crew)
                fill(ballast)
                where.until(lambda: is_refused(where), "a write that is refused", crew=crew)
                assert where.session.task(task.task_id).n_jobs == 300, "reads work"
                assert where.server.request("GET", "/healthz")["status"] == "ok"
                ballast.unlink()
                where.ended(task, crew)
            tally = where.judge("F12 disk full on the server", [task], crew.history, rounds=1)
            assert tally.more["repeated"], "words that were refused were said again"
