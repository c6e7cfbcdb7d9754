"""The numbers of running attempts over time: some points of each, gathered in memory, written together now and then.

A heartbeat so costs no transaction of its own but every tenth second. What was gathered may be lost with the process: the last
numbers of an attempt are in its own row, and come with its end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from protocol.messages.views import AttemptMetrics, JobMetrics, MetricPoint
from server.database import Chain, Part, Rows
from server.models import Attempt
from server.models import MetricPoint as Point
from server.paging import iso

MOST_POINTS = 120
"""Of one attempt; when there are more, every second one goes."""
WRITE_SECONDS = 10.0
LOOK_AFTER = 30
"""Points of an attempt after which its number is looked at again."""
FEWER_WITH_AGE = 60
"""An attempt that is watched for so many periods gets fewer points: an hour, at one a minute."""


class _Known:
    """What is remembered of an attempt between two points."""

    __slots__ = ("since", "next_at", "n_points")

    def __init__(self, since: float, next_at: float) -> None:
        self.since = since
        self.next_at = next_at
        self.n_points = 0


class Gathering:
    """Points that this process has not written yet, and when the next one of each attempt is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[int, _Known] = {}
        self._points: list[tuple[int, int, str]] = []
        self._many: set[int] = set()
        self._write_at = 0.0

    def offer(self, attempt_id: int, metrics: Mapping[str, float], period: float) -> None:
        """The numbers of a heartbeat. Most are passed over: the first point comes after a period, so short jobs have none."""
        now = time.monotonic()
        with self._lock:
            known = self._known.get(attempt_id)
            if known is None:
                self._known[attempt_id] = _Known(now, now + period)
                return
            if now < known.next_at:
                return
            known.next_at = now + max(period, (now - known.since) / FEWER_WITH_AGE)
            known.n_points += 1
            if known.n_points % LOOK_AFTER == 0:
                self._many.add(attempt_id)
            self._points.append((attempt_id, int(time.time()), json.dumps(metrics, separators=(",", ":"))))

    def take(self) -> tuple[list[tuple[int, int, str]], list[int]]:
        """The points to be written now, and attempts that may have too many; nothing, most of the time."""
        now = time.monotonic()
        if not self._points or now < self._write_at:
            return [], []
        with self._lock:
            self._write_at = now + WRITE_SECONDS
            points, self._points = self._points, []
            many, self._many = sorted(self._many), set()
            # Silent for long after its next point was due: it has ended.
            self._known = {
                attempt_id: known
                for attempt_id, known in self._known.items()
                if now < known.next_at + 2 * (known.next_at - known.since) + 600
            }
        return points, many


KEEP = Chain(
    Rows("given", {"id": "bigint", "at": "bigint", "metrics": "text"}),
    Part(
        "kept",
        """INSERT INTO metric_point (attempt_id, at, metrics)
           SELECT attempt.id, given.at, given.metrics FROM given JOIN attempt ON attempt.id = given.id
           WHERE attempt.ended_at IS NULL
           ON CONFLICT (attempt_id, at) DO NOTHING
           RETURNING attempt_id""",
        {"id": "bigint"},
    ),
    result="kept",
)

THIN = Chain(
    Rows("given", {"id": "bigint"}),
    Part(
        "thinned",
        f"""DELETE FROM metric_point WHERE (attempt_id, at) IN (
               SELECT attempt_id, at FROM (
                   SELECT attempt_id, at, row_number() OVER (PARTITION BY attempt_id ORDER BY at) AS number,
                       count(*) OVER (PARTITION BY attempt_id) AS n_points
                   FROM metric_point WHERE attempt_id IN (SELECT id FROM given)
               ) AS numbered WHERE n_points > {MOST_POINTS} AND number % 2 = 0)
           RETURNING attempt_id""",
        {"id": "bigint"},
    ),
    result="thinned",
)


def keep(database: Any, gathering: Gathering) -> None:
    """Write what is due; called with each heartbeat."""
    points, many = gathering.take()
    if not points:
        return

    def work() -> None:
        database.run(KEEP, given=sorted(points))
        if many:
            database.run(THIN, given=[(attempt_id,) for attempt_id in many])

    database.write(work)


def forget(job_ids: Iterable[int]) -> None:
    """Inside `Database.write`: jobs leave the hot tables. The archive keeps the last numbers of each attempt alone."""
    attempts = Attempt.select(Attempt.id).where(Attempt.job.in_(list(job_ids)))
    Point.delete().where(Point.attempt_id.in_(attempts)).execute()


def of_job(job_id: int, attempts: Iterable[Any]) -> JobMetrics:
    """`attempts` as a job is shown with them: those in the archive have no points any more."""
    views = [AttemptMetrics(each.attempt_id, each.attempt_nr, each.state, each.metrics) for each in attempts]
    rows = Point.select().where(Point.attempt_id.in_([view.attempt_id for view in views]))
    by_attempt = {view.attempt_id: view for view in views}
    for row in rows.order_by(Point.attempt_id, Point.at):
        by_attempt[row.attempt_id].points.append(MetricPoint(iso(row.at), json.loads(row.metrics)))
    return JobMetrics(job_id, views)
