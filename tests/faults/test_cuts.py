"""F10: real pilots that are cut off from the server for longer than their leases, and come back all at once."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler

from tests.acceptance.proxy import Proxy, running
from tests.acceptance.world import QUICK, World
from tests.faults.history import History
from tests.faults.installation import SHORT_LEASE, Installation

CUT_SECONDS = 3.0 * SHORT_LEASE["lease_seconds"]
STEADY_SECONDS = 60.0
LONGEST_WAIT = 1.0
"""Between two tries of a pilot that gets no answer."""


class Link(Proxy):
    """A network that can be cut; `at` are the times of all requests that anybody tried over it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_cut = threading.Event()
        self.at: list[float] = []

    def _hand_on(self, request: BaseHTTPRequestHandler) -> None:
        self.at.append(time.monotonic())
        if self.is_cut.is_set():
            request.close_connection = True
            return
        super()._hand_on(request)

    def tried(self, since: float, until: float) -> int:
        return sum(since <= at < until for at in self.at)


def test_f10_pilots_that_were_cut_off_for_three_leases_lose_no_job_and_do_not_come_back_as_a_herd(
    world: World, where: Installation
) -> None:
    """Half of them; the other half does their jobs meanwhile. What they bring late changes nothing."""
    queue = world.queue(**SHORT_LEASE)
    n_pilots, n_jobs = 6, 90
    task = world.submit_shell(
        queue, "sleep 0.4; echo {job_nr} > {output}", n_jobs=n_jobs, outputs=["out-{job_nr}"], max_losses=100
    )
    slow = {**QUICK, "PILOTAGE_CONNECTION__BACKOFF_MAX_SECONDS": str(LONGEST_WAIT)}
    with running(Link(world.server.url)) as link:
        for number in range(n_pilots):
            own = ("--url", link.url) if number % 2 else ()
            world.pilot(queue, *own, work=f"work-{number}", settings=slow)
        world.until(
            lambda: world.session.task(task.task_id).counts.get("COMPLETED", 0) >= 8, "first jobs", 60
        )
        link.is_cut.set()
        cut = time.monotonic()
        world.until(lambda: time.monotonic() >= cut + CUT_SECONDS, "three leases", CUT_SECONDS + 5)
        link.is_cut.clear()
        healed = time.monotonic()
        done = world.ended(task, STEADY_SECONDS)
        assert done.counts == {"COMPLETED": n_jobs}
        world.until(lambda: link.tried(healed, time.monotonic()) > 0, "the other half", LONGEST_WAIT + 5)
    in_vain = link.tried(cut, healed) / (n_pilots // 2) / CUT_SECONDS
    assert in_vain < 12, f"{in_vain:.1f} tries in a second of each pilot that gets no answer"
    at_once = max(link.tried(at, at + 0.1) for at in link.at if at >= healed)
    assert at_once <= 5 * n_pilots, f"{at_once} requests in a tenth of a second"
    _, attempts = where.rows([task])
    assert {row["error"] for row in attempts} <= {None, "LOST_HEARTBEAT", "NOT_ACKNOWLEDGED"}
    where.judge("F10 cut off", [task], History(), losses=len(attempts) - n_jobs, tries=round(in_vain, 1))
