"""Who used how much: core-hours and bytes by owner, group and queue, each attempt counted once wherever it lies.

An attempt counts when it has ended, on the day (UTC) of its end: the cores that it was given, times from its hand-over to its
end by the server's clock, in whole milliseconds. Bytes in are the inputs of each attempt whose payload began, bytes out the
outputs that were registered. The archive adds the attempts that it takes out of the hot tables to `Usage` in the same
transaction, and a report reads both in one statement: so nothing is missed or counted twice at that moment.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from protocol.messages.views import UsageView
from protocol.states import JobState
from server.core import Core
from server.database import Chain, Part, Rows

DAY_SECONDS = 86_400
LARGEST_FILE = 2**46
"""A file counts as no more: sizes are what users say, and a sum must fit."""

BY = {
    "owner": ("task.owner", "owner"),
    "group": ("task.working_group", "working_group"),
    "queue": ("attempt.queue", "queue"),
}
"""What a report may be divided by: the column of a hot attempt, and of Usage."""

_WHOLE = "CAST(attempt.ended_at AS bigint)"
_DAY = f"({_WHOLE} - CASE WHEN {_WHOLE} > attempt.ended_at THEN 1 ELSE 0 END) / {DAY_SECONDS}"
"""The number of the day since 1970. Postgres rounds where SQLite cuts."""
_SIZE = f"CASE WHEN file.size > {LARGEST_FILE} THEN {LARGEST_FILE} ELSE file.size END"
_USED = f"""
    count(*) AS n_attempts,
    CAST(sum(CASE WHEN attempt.state = '{JobState.COMPLETED.value}' THEN 1 ELSE 0 END) AS bigint) AS n_completed,
    CAST(sum(CASE WHEN attempt.ended_at > attempt.extracted_at
        THEN CAST(round(attempt.cores * (attempt.ended_at - attempt.extracted_at) * 1000) AS bigint) ELSE 0 END)
        AS bigint) AS core_ms,
    CAST(coalesce(sum(CASE WHEN attempt.running_at IS NOT NULL THEN (SELECT sum({_SIZE}) FROM job_input
        JOIN file ON file.id = job_input.file_id WHERE job_input.job_id = attempt.job_id) END), 0) AS bigint)
        AS input_bytes,
    CAST(coalesce(sum(CASE WHEN attempt.state = '{JobState.COMPLETED.value}' THEN (SELECT sum({_SIZE}) FROM file
        WHERE file.job_id = attempt.job_id) END), 0) AS bigint) AS output_bytes
    FROM attempt JOIN job ON job.id = attempt.job_id JOIN task ON task.id = job.task_id
"""

_OF_JOBS = Chain(
    Rows("these", {"id": "bigint"}),
    Part(
        "used",
        f"""SELECT {_DAY} AS day, task.owner, task.working_group, attempt.queue, {_USED}
            WHERE attempt.job_id IN (SELECT id FROM these) AND attempt.ended_at IS NOT NULL
            GROUP BY 1, task.owner, task.working_group, attempt.queue""",
        {},
    ),
    result="used",
)

_ADD = Chain(
    Rows(
        "added",
        {
            **dict.fromkeys(("day", "owner", "working_group", "queue"), "text"),
            **dict.fromkeys(
                ("n_attempts", "n_completed", "core_ms", "input_bytes", "output_bytes"), "bigint"
            ),
        },
    ),
    Part(
        "kept",
        # Core-seconds are kept as a fraction, and are whole milliseconds all the same.
        """INSERT INTO usage
            (day, owner, working_group, queue, n_attempts, n_completed, core_seconds, input_bytes, output_bytes)
            SELECT day, owner, working_group, queue, n_attempts, n_completed, core_ms / 1000.0, input_bytes, output_bytes
            FROM added WHERE 1 = 1
            ON CONFLICT (day, owner, working_group, queue) DO UPDATE SET
                n_attempts = usage.n_attempts + excluded.n_attempts,
                n_completed = usage.n_completed + excluded.n_completed,
                core_seconds = (round(usage.core_seconds * 1000) + round(excluded.core_seconds * 1000)) / 1000.0,
                input_bytes = usage.input_bytes + excluded.input_bytes,
                output_bytes = usage.output_bytes + excluded.output_bytes
            RETURNING day""",
        {},
    ),
    result="kept",
)


def _report(by: str) -> Chain:
    hot, kept = BY[by]
    return Chain(
        Part(
            "report",
            f"""SELECT name, CAST(sum(n_attempts) AS bigint), CAST(sum(n_completed) AS bigint),
                    CAST(sum(core_ms) AS bigint), CAST(sum(input_bytes) AS bigint), CAST(sum(output_bytes) AS bigint)
                FROM (
                    SELECT {hot} AS name, {_USED}
                    WHERE attempt.ended_at >= :start AND attempt.ended_at < :stop GROUP BY {hot}
                    UNION ALL
                    SELECT {kept} AS name, n_attempts, n_completed, CAST(round(core_seconds * 1000) AS bigint) AS core_ms,
                        input_bytes, output_bytes
                    FROM usage WHERE day >= :first AND day <= :last
                ) AS used GROUP BY name ORDER BY name""",
            {},
        ),
        result="report",
    )


_REPORTS = {by: _report(by) for by in BY}


def add(core: Core, job_ids: Iterable[int]) -> None:
    """Sum up the attempts of these jobs, which are about to leave the hot tables; inside `Database.write`."""
    used = core.database.run(_OF_JOBS, these=[(job_id,) for job_id in job_ids])
    if used:
        core.database.run(_ADD, added=[(_day_name(day), *rest) for day, *rest in used])


def _day_name(day: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()


def report(core: Core, by: str, since: datetime.date, until: datetime.date) -> list[UsageView]:
    """What was used from the first to the last of these days, both included, by `owner`, `group` or `queue`."""
    epoch = datetime.date(1970, 1, 1)
    rows = core.database.run(
        _REPORTS[by],
        start=float((since - epoch).days * DAY_SECONDS),
        stop=float(((until - epoch).days + 1) * DAY_SECONDS),
        first=since.isoformat(),
        last=until.isoformat(),
    )
    return [
        UsageView(name, n_attempts, n_completed, core_ms / 3_600_000, input_bytes, output_bytes)
        for name, n_attempts, n_completed, core_ms, input_bytes, output_bytes in rows
    ]
