"""Seeds 18: two unequal queues work on one task, and finish it together: each does its part by its speed, and none idles."""

from __future__ import annotations

from datetime import datetime

import pytest

from tests.acceptance.world import World
from tests.faults.installation import Installation

SECONDS = 0.5
JOBS = 48


@pytest.mark.slow
def test_two_unequal_queues_finish_one_task_together(world: World, shared: Installation) -> None:
    """One has three times the slots of the other; neither is idle while the other has work left."""
    small, large = world.queue(), world.queue()
    world.pilot(small, work="small")
    world.pilot(large, "--slots", "3", work="large")
    world.until(lambda: len(list(world.session.pilots(queue=small))) == 1, "the small queue's pilot")
    world.until(lambda: len(list(world.session.pilots(queue=large))) == 1, "the large queue's pilot")
    task = world.session.submit_task(
        {"name": world.unique("task"), "command": ["sleep", str(SECONDS)], "nJobs": JOBS}
    )
    assert world.ended(task, 60).state == "COMPLETED"
    attempts = [attempt for job in world.jobs(task) for attempt in job.attempts or ()]
    did = {queue: [each for each in attempts if each.queue == queue] for queue in (small, large)}
    share = len(did[small]) / JOBS
    print(f"two unequal queues on {shared.database}: {len(did[small])} and {len(did[large])} of {JOBS} jobs")
    assert 0.25 - 0.1 <= share <= 0.25 + 0.1
    last = max(moment(each.started) for each in attempts)
    waited = {queue: last - max(moment(each.ended) for each in mine) for queue, mine in did.items()}
    assert max(waited.values()) < SECONDS, f"one was idle before the last job was taken: {waited}"
    ends = sorted(max(moment(each.ended) for each in mine) for mine in did.values())
    began = min(moment(each.started) for each in attempts)
    assert ends[1] - ends[0] <= 0.1 * (ends[1] - began) + SECONDS, "one finished long before the other"


def moment(iso: str | None) -> float:
    """Seconds since 1970."""
    assert iso is not None
    return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()
