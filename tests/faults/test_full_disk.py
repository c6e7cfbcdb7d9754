"""F12: the server's disk is full. Reads work, writes are refused and said again; with room again it goes on by itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.installation import installed
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


@pytest.mark.component("mount")
@pytest.mark.slow
def test_f12_a_server_whose_disk_is_full_refuses_what_is_written_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with mounted("size=24m") as disk:
        ballast = disk / "ballast"
        with installed(disk / "server") as where:
            where.session.create_storage({"name": "elsewhere", "url": f"file://{tmp_path}/storage"})  # type: ignore[arg-type]
            queue = where.queue(storage="elsewhere")
            task = where.submit(queue, 300)
            with where.crew(queue) as crew:
                where.completed(crew.history, 30, crew)
                fill(ballast)

                def refused() -> bool:
                    with pytest.raises(Refused) as caught:
                        where.submit(queue, 1, outputs=[], environment={"X": "y" * 200_000})
                        where.server.request("POST", "/v1/datasets", {"name": "d" + "x" * 100})
                    return caught.value.status in (503, 507)

                where.until(lambda: _is_refused(where), "a write that is refused", crew=crew)
                assert where.session.task(task.task_id).n_jobs == 300, "reads work"
                assert where.server.request("GET", "/healthz")["status"] == "ok"
                ballast.unlink()
                where.ended(task, crew)
            tally = where.judge("F12 disk full on the server", [task], crew.history, rounds=1)
            assert tally.more["repeated"], "words that were refused were said again"
        assert not (disk / "server" / "pilotage.db-journal").exists()
