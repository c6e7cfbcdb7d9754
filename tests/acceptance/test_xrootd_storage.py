"""A queue whose storage is a real XRootD server: inputs, outputs and logs lie there, also while it comes and goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.messages.requests import StorageSpec
from protocol.states import JobState
from tests.acceptance.world import QUICK, World
from tests.auditing import assert_clean
from tests.storages import xrootd
from tests.users import place_for_all

pytestmark = pytest.mark.component("xrootd")

N_FILES = 4


@pytest.fixture
def place() -> Iterator[Path]:
    """Named before the world, which looks at the files once more at its end."""
    with place_for_all() as found:
        yield found / "xrootd"


def test_f14_nothing_is_lost_when_the_storage_is_killed_and_comes_back(
    place: Path, world: World, tmp_path: Path
) -> None:
    with xrootd.server(place) as port:
        store, root = place / "data/store", f"root://127.0.0.1:{port}//store"
        world.behind[root] = store
        (store / "in").mkdir()
        for number in range(N_FILES):
            (store / f"in/run {number}.spd").write_bytes(b"%d" % number * 100_000)
        name = world.unique("storage")
        world.session.create_storage(StorageSpec(name, f"{root}/out"))
        queue = world.queue(storage=name)
        dataset = world.dataset(store / "in", url_prefix=f"{root}/in")

        second, gate = tmp_path / "second", tmp_path / "gate"
        script = (
            'cat "$0" > "$1"; test $2 != 2 && exit 0;'
            f" touch {second}; until test -e {gate}; do sleep 0.05; done"
        )
        command = ["sh", "-c", script, "{input}", "{output}", "{job_nr}"]
        task = world.submit(queue, command, input_dataset=dataset, outputs=["{lfn}.out"])
        config = tmp_path / "pilot.ini"
        config.write_text("[copytool:xrdcp]\nconnect_seconds = 1\n")
        patient = {**QUICK, "PILOTAGE_COPYTOOLS__RETRIES": "100"}
        pilot = world.pilot(queue, "--config", str(config), settings=patient)
        world.until(second.exists, "the payload of the second job")
        xrootd.kill(place)
        gate.touch()
        pilot.says("STORAGE_UNREACHABLE", 30)
        xrootd.start(place, port)

        ended = world.ended(task, 60)
        assert ended.counts == {JobState.COMPLETED.value: N_FILES}, ended.errors
        outputs = {file.lfn: file for file in world.session.dataset_files(str(ended.output_dataset))}
        for number in range(N_FILES):
            file = outputs[f"run {number}.spd.out"]
            assert world.place_of(file.url).read_bytes() == b"%d" % number * 100_000
        assert [job.attempt_nr for job in world.jobs(task)] == [1] * N_FILES, "each was done once"
        fetched = world.pilotage("dataset", "get", str(ended.output_dataset), "--to", str(tmp_path / "got"))
        assert "4 files copied and verified" in fetched
        assert len(list((tmp_path / "got").iterdir())) == N_FILES
        stored = [path.name for path in (store / "out").rglob("*.spd.out*")]
        assert len(stored) == N_FILES, "nothing that is half or double"
        assert_clean(world.server.installation)
