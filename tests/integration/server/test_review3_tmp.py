import time, json
from server import statements, brokerage
from server.database import Database
from tests.integration.server.world import World
import pytest
@pytest.mark.parametrize("n", [1, 10, 100, 300, 1000])
def test_big_claim(world, core, n, monkeypatch):
    if not core.database.is_sqlite: return
    world.task(n_jobs=1000)
    while world.form(): pass
    world.pilot()
    real = core.database.run
    def run(chain, **v):
        b = time.perf_counter(); r = real(chain, **v); print(chain.result, "ms", round((time.perf_counter()-b)*1e3, 1)); return r
    monkeypatch.setattr(core.database, "run", run)
    b = time.perf_counter(); jobs = world.claim(n_jobs=n); print("claimed", n, round((time.perf_counter()-b)*1e3, 1))
    from protocol.states import JobState
    from server import job_executor
    b = time.perf_counter(); job_executor.update_all(core, [world.word(j, JobState.RUNNING) for j in jobs]); print("words", n, round((time.perf_counter()-b)*1e3, 1))
    b = time.perf_counter(); world.beat(*jobs); print("beat", n, round((time.perf_counter()-b)*1e3, 1))
    assert 0
