"""What is done for every job, in SQL: claim jobs, move attempts, renew leases; each one `Chain`, compiled once.

The states in the guards come from the one table of legal moves. An attempt that has not ended holds its job, so the
attempt's own row decides whether a word is taken; the job's row mirrors its state for whoever asks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from protocol.states import FINAL, HELD, Actor, JobState, sources
from server.database import Chain, Part, Rows
from server.models import STATE_TIMES

CLOCK = "(SELECT value / 1000 FROM counter WHERE name = 'lease_clock')"
"""The lease clock in seconds; only the reaper advances it."""


def listed(states: Iterable[JobState]) -> str:
    """States as SQL lists them. They are words of ours, never anybody's input."""
    return ", ".join(f"'{state.value}'" for state in states)


PAYLOAD_STATES = HELD[HELD.index(JobState.RUNNING) : HELD.index(JobState.FINISHED)]
"""A pilot that falls silent in these may have been killed by the payload."""

# -- claim ------------------------------------------------------------------------------------------------------------------

_PICKED = {
    "id": "bigint",
    "task_id": "bigint",
    "job_nr": "integer",
    "old_attempt_id": "bigint",
    "attempt_nr": "integer",
    "ready_at": "double precision",
    "loss": "text",
    "more": "integer",
    "ready_nr": "bigint",
}
_READY = f"state IN ({listed(sources(JobState.EXTRACTED, Actor.DISPATCHER))})"
_MORE = f"copies > CASE WHEN {_READY} THEN 0 ELSE 1 END"
"""Whether a further copy may be handed out after this claim; the first one of all is not counted."""
_PICK = f"""SELECT job.id, task_id, job_nr, attempt_id AS old_attempt_id, attempt_nr, changed AS ready_at, loss,
                CASE WHEN {_MORE} THEN 1 ELSE 0 END AS more"""
_MAY_GO_TO_NODE = f"""((avoid_node IS NULL OR avoid_node <> :node) AND (avoid_queue IS NULL OR avoid_queue <> :queue)
                OR avoid_until <= {CLOCK})"""
_NODE = "CAST(:node AS text) || '\n'"
_THIS_NODE = f"'\n' || {_NODE}"
_CLAIMABLE = f"""({_READY} OR copies > 0 AND state IN ({listed(HELD)})
                AND replace(copy_nodes, {_THIS_NODE}, '') = copy_nodes)"""
"""A job that nobody holds, or one of which a further copy may be handed out, if this node has not been given one."""
_PLACES = "ready_nr = CASE WHEN copies > 0 THEN ready_nr END, ready_after = CASE WHEN copies > 0 THEN ready_after END"
"""A job that is held is in no queue, but for its further copies."""
_BIND = (
    Part(
        "made",
        f"""INSERT INTO attempt (job_id, attempt_nr, pilot_id, node, queue, request_id, request_nr, nonce, state, seq,
                lease_until, lease_seconds, left_out, cores, ready_at, extracted_at, storage_id)
            SELECT id, attempt_nr + 1, :pilot_id, :node, :queue, :request_id,
                :first_nr - 1 + row_number() OVER (ORDER BY ready_nr),
                CAST(:nonce AS text) || '-' || (:first_nr - 1 + row_number() OVER (ORDER BY ready_nr)),
                '{JobState.EXTRACTED.value}', 0, {CLOCK} + :acknowledge_seconds, :lease_seconds, 0, :cores,
                ready_at, CAST(:now AS double precision), :storage
            FROM picked
            RETURNING id, job_id, attempt_nr, nonce, request_nr""",
        {
            "id": "bigint",
            "job_id": "bigint",
            "attempt_nr": "integer",
            "nonce": "text",
            "request_nr": "integer",
        },
    ),
    Part(
        "bound",
        # Of one that is held already it is a further copy: the attempt that leads goes on leading.
        f"""UPDATE job SET state = CASE WHEN {_READY} THEN '{JobState.EXTRACTED.value}' ELSE state END,
                ready_nr = CASE WHEN {_MORE} THEN ready_nr END, loss = NULL, attempt_nr = made.attempt_nr,
                attempt_id = CASE WHEN {_READY} THEN made.id ELSE attempt_id END,
                copies = CASE WHEN {_READY} THEN copies ELSE copies - 1 END, changed = :now,
                copy_nodes = CASE WHEN copies IS NULL THEN NULL WHEN {_READY} THEN {_THIS_NODE}
                    ELSE copy_nodes || {_NODE} END,
                losses = losses + CASE WHEN loss = 'LOST_HEARTBEAT' THEN 1 ELSE 0 END,
                unacknowledged = unacknowledged + CASE WHEN loss = 'NOT_ACKNOWLEDGED' THEN 1 ELSE 0 END,
                kills = kills + CASE WHEN loss = 'LOST_HEARTBEAT' AND EXISTS (
                    SELECT 1 FROM attempt WHERE attempt.id = job.attempt_id
                        AND attempt.state IN ({listed(PAYLOAD_STATES)})) THEN 1 ELSE 0 END
            FROM made WHERE job.id = made.job_id
            RETURNING job.id""",
        {},
    ),
    Part(
        "ended",
        f"""UPDATE attempt SET state = '{JobState.FAILED.value}', ended_at = :now, error = picked.loss,
                error_detail = 'silent since ' || attempt.state || '; the job was claimed by another pilot'
            FROM picked
            WHERE attempt.id = picked.old_attempt_id AND picked.loss IS NOT NULL AND attempt.ended_at IS NULL
            RETURNING attempt.id""",
        {},
    ),
    Part(
        "started",
        """UPDATE task SET started = :now FROM picked WHERE task.id = picked.task_id AND task.started IS NULL
           RETURNING task.id""",
        {},
    ),
    Part(
        "claimed",
        """SELECT made.id, made.attempt_nr, made.nonce, picked.id AS job_id, picked.job_nr, picked.task_id,
               picked.ready_nr, picked.more
           FROM made JOIN picked ON picked.id = made.job_id ORDER BY made.request_nr""",
        {},
    ),
)

CLAIM = Chain(
    Part(
        "picked",
        f"""{_PICK}, ready_nr FROM job
            WHERE job_class_id = :job_class AND priority = :priority AND ready_nr > :place
                AND {_CLAIMABLE} AND {_MAY_GO_TO_NODE}
            ORDER BY ready_nr LIMIT :n {{skip_locked}}""",
        _PICKED,
    ),
    *_BIND,
    result="claimed",
)
"""Bind the first `n` READY jobs of a class and priority behind `place` to a pilot, each in a new attempt."""

CLAIM_THESE = Chain(
    Rows("wanted", {"id": "bigint", "rank": "integer"}),
    Part(
        "picked",
        f"""{_PICK}, wanted.rank AS ready_nr FROM wanted JOIN job ON job.id = wanted.id
            WHERE ready_nr IS NOT NULL AND {_CLAIMABLE}
            ORDER BY wanted.rank LIMIT :n {{skip_locked}}""",
        _PICKED,
    ),
    *_BIND,
    result="claimed",
)
"""The same for the first `n` of jobs that were chosen, by their rank; those that somebody else has taken meanwhile are passed over."""

SPARE = 20
"""So many pilots may choose among the same jobs at the same time, and each gets one."""

WINDOW = Chain(
    Part(
        "best",
        f"""SELECT id, CASE WHEN task_id = :task_id THEN 0 ELSE 1 END AS of_others FROM (
                SELECT id, task_id, site, ready_nr FROM job
                WHERE job_class_id = :job_class AND priority = :priority AND ready_nr > :place
                    AND {_CLAIMABLE} AND {_MAY_GO_TO_NODE}
                ORDER BY ready_nr LIMIT :window
            ) AS first
            ORDER BY of_others, CASE WHEN site = :site THEN 0 ELSE 1 END, ready_nr
            LIMIT :best""",
        {},
    ),
    result="best",
)
"""Of the first jobs of a class and priority, those that suit this pilot best: of its task, then with their input at its site.

Some more than are wanted (SPARE): what suits one pilot best suits others too, and each job goes to one of them.
"""

MOST_INPUTS = 1000
"""So many inputs of the jobs in a window are looked at, whichever these are: it is a preference."""

READ = Chain(
    Rows("wanted", {"id": "bigint"}),
    Part(
        "inputs",
        f"""SELECT job_input.job_id, file.lfn, file.size, file.checksums
            FROM wanted JOIN job_input ON job_input.job_id = wanted.id JOIN file ON file.id = job_input.file_id
            LIMIT {MOST_INPUTS}""",
        {},
    ),
    result="inputs",
    bulk=True,
)
"""What jobs read, as far as a node's cache could know it."""

WAITING = Chain(
    Part(
        "waiting",
        """SELECT id FROM job WHERE job_class_id = :job_class AND priority = :priority AND ready_nr > :place LIMIT 1""",
        {},
    ),
    result="waiting",
)
"""Whether any job of a class and priority waits behind `place`."""

AGAIN = Chain(
    Part(
        "again",
        """SELECT attempt.id, attempt.attempt_nr, nonce, job_id, job_nr, task_id, storage_id, queue, key
           FROM attempt JOIN job ON job.id = job_id JOIN job_class ON job_class.id = job_class_id
           WHERE request_id = :request_id AND pilot_id = :pilot_id AND attempt.ended_at IS NULL ORDER BY request_nr""",
        {},
    ),
    result="again",
)
"""What a request was given before and what has not ended."""

INPUTS = Chain(
    Rows("wanted", {"id": "bigint"}),
    Part(
        "inputs",
        """SELECT job_input.job_id, file.id, file.lfn, file.scope, dataset.name, file.size, file.checksums,
               replica.url, replica.state, replica.storage_id
           FROM wanted JOIN job_input ON job_input.job_id = wanted.id JOIN file ON file.id = job_input.file_id
           JOIN dataset ON dataset.id = file.dataset_id LEFT JOIN replica ON replica.file_id = file.id
           ORDER BY file.id, replica.id""",
        {},
    ),
    result="inputs",
    bulk=True,
)
"""The inputs of jobs with all replicas: asked for the first one of each, Postgres may walk through the table."""

DECLARED = Chain(
    Rows("wanted", {"id": "bigint"}),
    Part(
        "declared",
        """SELECT file.job_id, file.lfn, file.id, dataset.name
           FROM wanted JOIN file ON file.job_id = wanted.id JOIN dataset ON dataset.id = file.dataset_id
           ORDER BY file.id""",
        {},
    ),
    result="declared",
    bulk=True,
)
"""The outputs that jobs declare, and the datasets that they will belong to."""

# -- words of pilots --------------------------------------------------------------------------------------------------------

_BRIEF = {"id": "bigint", "nonce": "text", "seq": "bigint"}
_FULL = {
    "exit_code": "integer",
    "error": "text",
    "error_detail": "text",
    "metrics": "text",
    "log_size": "bigint",
    "log_checksums": "text",
}
MOVED = {
    "id": "bigint",
    "job_id": "bigint",
    "attempt_nr": "integer",
    "state": "text",
    "pilot_id": "text",
    "node": "text",
    "queue": "text",
    "storage_id": "text",
    "extracted_at": "double precision",
}
_RETURNING = "RETURNING " + ", ".join(f"attempt.{name}" for name in MOVED)


@functools.cache
def move(states: tuple[JobState, ...], *, full: bool, outputs: bool, copy: bool = False) -> Chain:
    """Take words about attempts whose moves are these `states`, which may be none.

    Rows `words`: id, nonce, seq, a time per state that has one, and if they are `full` what else a word brings. Result: the
    attempts that were moved; a word that is missing there was a repeat, is not its sender's any more, or does not follow. A
    move to FAILED leaves the job to the caller; one to COMPLETED is taken without `outputs` only where none are declared.
    The end of an attempt whose job may have copies is taken only from a caller who knows that (`copy`), and sees to the job.
    """
    timed = [STATE_TIMES[state].name for state in states if state in STATE_TIMES]
    target = states[-1] if states else None
    changes = [
        "seq = words.seq",
        f"lease_until = {CLOCK} + attempt.lease_seconds",
        "left_out = 0",
        *(f"{name} = words.{name}" for name in timed),
    ]
    if full:
        changes += [f"{name} = coalesce(words.{name}, attempt.{name})" for name in _FULL]
    if target is None:
        # The first word acknowledges, whatever it says.
        changes += [
            f"state = CASE WHEN attempt.state = '{JobState.EXTRACTED.value}' THEN '{JobState.OBTAINED.value}'"
            " ELSE attempt.state END",
            "obtained_at = coalesce(attempt.obtained_at, :now)",
        ]
        guard = listed(HELD)
    else:
        changes.append(f"state = '{target.value}'")
        # A heartbeat may have acknowledged the attempt before: the state it is in already is no move and no error.
        guard = listed({*(set(sources(target, Actor.PILOT)) & set(HELD)), target})
    if target in FINAL:
        changes.append("ended_at = :now")
    if target in FINAL and not copy:
        guard += ") AND ((SELECT copies FROM job WHERE job.id = attempt.job_id) IS NULL"
    if target is JobState.COMPLETED and not outputs:
        guard += ") AND NOT EXISTS (SELECT 1 FROM file WHERE file.job_id = attempt.job_id AND file.state = 'declared'"
    columns = {**_BRIEF, **dict.fromkeys(timed, "double precision"), **(_FULL if full else {})}
    moved = Part(
        "moved",
        f"""UPDATE attempt SET {", ".join(changes)} FROM words
            WHERE attempt.id = words.id AND attempt.nonce = words.nonce AND attempt.ended_at IS NULL
                AND attempt.seq < words.seq AND attempt.state IN ({guard}) {_RETURNING}""",
        MOVED,
    )
    parts: list[Rows | Part] = [Rows("words", columns), moved]
    if target is not JobState.FAILED and not copy:
        parts.append(_mirror(target))
    if target in FINAL:
        parts.append(_DONE)
    return Chain(*parts, result="moved")


def _mirror(target: JobState | None) -> Part:
    """The jobs of the attempts that were moved; one whose lease had run out is its pilot's again.

    Whether one of several copies leads is for the job's row to say, when it is this statement's: it may just have changed.
    Of two copies in one statement only the older can lead: a row is joined once, and it leads who is the oldest that lives.
    """
    ended = ", ended_at = :now, error = NULL, error_detail = NULL" if target is JobState.COMPLETED else ""
    return Part(
        "mirrored",
        f"""UPDATE job SET state = CASE WHEN job.attempt_id = moved.id THEN moved.state ELSE job.state END,
                changed = :now, loss = NULL, {_PLACES}{ended}
            FROM (SELECT *, row_number() OVER (PARTITION BY job_id ORDER BY id) AS age FROM moved) AS moved
            WHERE job.id = moved.job_id AND age = 1 AND (job.attempt_id = moved.id OR copies IS NOT NULL) AND job.ended_at IS NULL
            RETURNING job.id""",
        {},
    )


_DONE = Part(
    "done",
    """UPDATE pilot SET n_done = n_done + finished.n
       FROM (SELECT pilot_id, count(*) AS n FROM moved GROUP BY pilot_id) AS finished
       WHERE pilot.pilot_id = finished.pilot_id
       RETURNING pilot.pilot_id""",
    {},
)

PUBLISH = Chain(
    Rows(
        "outputs",
        {"file_id": "bigint", "size": "bigint", "checksums": "text", "storage_id": "text", "url": "text"},
    ),
    Part(
        "published",
        """UPDATE file SET state = 'available', size = outputs.size, checksums = outputs.checksums, created = :now
           FROM outputs WHERE file.id = outputs.file_id AND file.state = 'declared'
           RETURNING file.id""",
        {"id": "bigint"},
    ),
    Part(
        "replicated",
        """INSERT INTO replica (file_id, storage_id, url, created)
           SELECT published.id, outputs.storage_id, outputs.url, CAST(:now AS double precision)
           FROM published JOIN outputs ON outputs.file_id = published.id
           RETURNING file_id""",
        {},
    ),
    result="replicated",
)
"""Declared outputs become available where an attempt has written them."""

# -- leases -----------------------------------------------------------------------------------------------------------------

RENEW = Chain(
    Rows("words", {"id": "bigint", "nonce": "text", "metrics": "text"}),
    Part(
        "renewed",
        f"""UPDATE attempt SET lease_until = {CLOCK} + attempt.lease_seconds, left_out = 0,
                metrics = coalesce(words.metrics, attempt.metrics),
                state = CASE WHEN attempt.state = '{JobState.EXTRACTED.value}' THEN '{JobState.OBTAINED.value}'
                    ELSE attempt.state END,
                obtained_at = coalesce(attempt.obtained_at, :now)
            FROM words
            WHERE attempt.id = words.id AND attempt.nonce = words.nonce AND attempt.ended_at IS NULL
            RETURNING attempt.id, attempt.job_id, attempt.state""",
        {"id": "bigint", "job_id": "bigint", "state": "text"},
    ),
    Part(
        "kept",
        f"""UPDATE job SET state = renewed.state, changed = :now, loss = NULL, {_PLACES}
           FROM renewed
           WHERE job.id = renewed.job_id AND job.attempt_id = renewed.id AND job.state <> renewed.state
               AND job.ended_at IS NULL
           RETURNING job.id""",
        {},
    ),
    Part(
        "forgotten",
        f"""UPDATE attempt SET left_out = left_out + 1,
                lease_until = CASE WHEN left_out >= 1 THEN {CLOCK} - 1 ELSE lease_until END
            WHERE pilot_id = :pilot_id AND ended_at IS NULL AND state <> '{JobState.EXTRACTED.value}'
                AND id NOT IN (SELECT id FROM words)
            RETURNING id""",
        {"id": "bigint"},
    ),
    Part(
        "seen",
        # After the attempts, as in a pilot's last word about one: or on Postgres the two may wait for each other.
        f"""UPDATE pilot SET last_seen = :now, lease_until = {CLOCK} + :lease_seconds
            WHERE pilot_id = :pilot_id AND (SELECT count(*) FROM forgotten) >= 0
            RETURNING pilot_id""",
        {},
    ),
    result="renewed",
)
"""A heartbeat: renew the leases of the attempts it names; one that it leaves out twice in a row has no lease any more.

An attempt that is EXTRACTED may be left out: the answer that hands it over can be on its way.
"""

SEEN = Chain(
    Part(
        "seen",
        f"""UPDATE pilot SET last_seen = :now, lease_until = {CLOCK} + :lease_seconds WHERE pilot_id = :pilot_id
            RETURNING pilot_id""",
        {},
    ),
    result="seen",
)
"""Any call of a pilot is a sign of life."""
