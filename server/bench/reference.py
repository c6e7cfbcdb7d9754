"""The reference: the same statements by raw cursor, behind the same gunicorn and Flask with JSON in and out, and nothing else.

It looks the bearer's token up, hands out jobs with an attempt row each, and takes updates with a time per state, lease and
mirrored job, durably. It does none of what makes a dispatcher: no validation, no brokerage, no repeats, no fencing by a
key, no retries, no daemons. It works on a database that the server has made, and shares no code with the server's own layers.

`python -m server.bench.reference` reads its orders as JSON from standard input and serves until SIGTERM.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication

from protocol.states import HELD, JobState

READY, EXTRACTED, COMPLETED = JobState.READY.value, JobState.EXTRACTED.value, JobState.COMPLETED.value
LEASE_SECONDS = 60
TIMES = {state.value: state.name.lower() + "_at" for state in HELD[1:]}
"""The column of `attempt` for each state that a pilot reports."""
ALLOWED = {
    state.value: [each.value for each in HELD[: index + 1]] for index, state in enumerate(HELD) if index
} | {COMPLETED: [each.value for each in HELD]}
"""From which states a pilot may move to each."""
TOKEN_SECONDS = 1.0
"""How long a token that was looked up is believed."""

CLOCK = "(SELECT value / 1000 FROM counter WHERE name = 'lease_clock')"
ATTEMPT = (
    "job_id, attempt_nr, pilot_id, node, queue, request_id, request_nr, nonce, state, seq, lease_until, "
    "lease_seconds, left_out, cores, ready_at, extracted_at, storage_id"
)

Row = Sequence[Any]


class OnPostgres:
    """A connection per thread; each call is one statement, which commits by itself."""

    CLAIM = f"""
        WITH seen AS (
            UPDATE pilot SET last_seen = %(now)s, lease_until = {CLOCK} + {LEASE_SECONDS} WHERE pilot_id = %(pilot)s
        ), picked AS (
            SELECT id, task_id, job_nr, attempt_nr, changed, ready_nr FROM job
            WHERE job_class_id = %(class)s AND priority = 0 AND ready_nr > 0 AND state = '{READY}'
            ORDER BY ready_nr LIMIT %(n)s FOR UPDATE SKIP LOCKED
        ), made AS (
            INSERT INTO attempt ({ATTEMPT})
            SELECT id, attempt_nr + 1, %(pilot)s, %(node)s, %(queue)s, %(request)s, row_number() OVER (ORDER BY ready_nr) - 1,
                %(nonce)s, '{EXTRACTED}', 0, {CLOCK} + {LEASE_SECONDS}, {LEASE_SECONDS}, 0, 1, changed, %(now)s, 'LOCAL'
            FROM picked RETURNING id, job_id, attempt_nr
        ), bound AS (
            UPDATE job SET state = '{EXTRACTED}', ready_nr = NULL, attempt_nr = made.attempt_nr, attempt_id = made.id,
                changed = %(now)s
            FROM made WHERE job.id = made.job_id
        )
        SELECT made.id, made.attempt_nr, picked.id, picked.job_nr, picked.task_id
        FROM made JOIN picked ON picked.id = made.job_id"""

    def __init__(self, url: str) -> None:
        self._url = url
        self._local = threading.local()
        self._statements: dict[tuple[str, ...], str] = {}

    def _cursor(self) -> Any:
        cursor = getattr(self._local, "cursor", None)
        if cursor is None:
            import psycopg

            cursor = self._local.cursor = psycopg.connect(self._url, autocommit=True).cursor()
        return cursor

    def one(self, statement: str, value: Any) -> Row | None:
        found: Row | None = self._cursor().execute(statement.replace("?", "%s"), (value,)).fetchone()
        return found

    def claim(self, values: dict[str, Any]) -> list[Row]:
        rows: list[Row] = self._cursor().execute(self.CLAIM, values).fetchall()
        return rows

    def update(self, states: tuple[str, ...], words: list[dict[str, Any]]) -> set[int]:
        statement = self._statements.get(states)
        if statement is None:
            statement = self._statements[states] = _update_on_postgres(states)
        columns = [[word["attemptId"] for word in words], [word["attemptToken"] for word in words]]
        columns.append([word["seq"] for word in words])
        timed = [index for index, state in enumerate(states) if state in TIMES]
        columns += [[word["moves"][index]["at"] for word in words] for index in timed]
        values = {f"c{index}": column for index, column in enumerate(columns)} | {"now": time.time()}
        return {row[0] for row in self._cursor().execute(statement, values)}


def _update_on_postgres(states: tuple[str, ...]) -> str:
    timed = [TIMES[state] for state in states if state in TIMES]
    kinds = ["bigint", "text", "bigint", *["float8"] * len(timed)]
    given = ", ".join(f"%(c{index})s::{kind}[]" for index, kind in enumerate(kinds))
    names = ", ".join(["id", "nonce", "seq", *timed])
    times = "".join(f", {name} = words.{name}" for name in timed)
    is_end = states[-1] == COMPLETED
    ended = ", ended_at = %(now)s" if is_end else ""
    allowed = ", ".join(f"'{state}'" for state in ALLOWED[states[-1]])
    done = """, done AS (
            UPDATE pilot SET n_done = n_done + finished.n
            FROM (SELECT pilot_id, count(*) AS n FROM moved GROUP BY pilot_id) AS finished
            WHERE pilot.pilot_id = finished.pilot_id)"""
    return f"""
        WITH words AS (SELECT * FROM unnest({given}) AS given({names})), moved AS (
            UPDATE attempt SET state = '{states[-1]}', seq = words.seq, lease_until = {CLOCK} + attempt.lease_seconds,
                left_out = 0{times}{ended}
            FROM words
            WHERE attempt.id = words.id AND attempt.nonce = words.nonce AND attempt.ended_at IS NULL
                AND attempt.seq < words.seq AND attempt.state IN ({allowed})
            RETURNING attempt.id, attempt.job_id, attempt.pilot_id
        ), mirrored AS (
            UPDATE job SET state = '{states[-1]}', changed = %(now)s, ready_nr = NULL{ended}
            FROM moved WHERE job.id = moved.job_id AND job.attempt_id = moved.id
        ){done if is_end else ""}
        SELECT id FROM moved"""


class OnSqlite:
    """A connection per thread; whoever writes holds a lock, since the file has one writer and would make others sleep."""

    SEEN = f"UPDATE pilot SET last_seen = ?, lease_until = {CLOCK} + {LEASE_SECONDS} WHERE pilot_id = ?"
    PICK = f"""
        SELECT id, task_id, job_nr, attempt_nr, changed FROM job
        WHERE job_class_id = ? AND priority = 0 AND ready_nr > 0 AND state = '{READY}' ORDER BY ready_nr LIMIT ?"""
    MAKE = f"""
        INSERT INTO attempt ({ATTEMPT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '{EXTRACTED}', 0,
            {CLOCK} + {LEASE_SECONDS}, {LEASE_SECONDS}, 0, 1, ?, ?, 'LOCAL')"""
    BIND = f"""
        UPDATE job SET state = '{EXTRACTED}', ready_nr = NULL, attempt_nr = ?, attempt_id = ?, changed = ? WHERE id = ?"""
    DONE = "UPDATE pilot SET n_done = n_done + 1 WHERE pilot_id = ?"

    def __init__(self, url: str) -> None:
        self._path = url[len("sqlite:///") :]
        self._local = threading.local()
        self._writing = threading.Lock()
        self._statements: dict[tuple[str, ...], tuple[str, str]] = {}

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = sqlite3.connect(
                self._path, isolation_level=None, timeout=30
            )
            for pragma in ("journal_mode=wal", "synchronous=full", "cache_size=-64000", "temp_store=memory"):
                connection.execute(f"PRAGMA {pragma}")
        return connection

    def one(self, statement: str, value: Any) -> Row | None:
        found: Row | None = self._connection().execute(statement, (value,)).fetchone()
        return found

    def claim(self, values: dict[str, Any]) -> list[Row]:
        connection, now = self._connection(), values["now"]
        rows: list[Row] = []
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(self.SEEN, (now, values["pilot"]))
            picked = connection.execute(self.PICK, (values["class"], values["n"])).fetchall()
            for nr, (job, task, job_nr, attempt_nr, changed) in enumerate(picked):
                who = [
                    values["pilot"],
                    values["node"],
                    values["queue"],
                    values["request"],
                    nr,
                    values["nonce"],
                ]
                attempt = connection.execute(self.MAKE, [job, attempt_nr + 1, *who, changed, now]).lastrowid
                connection.execute(self.BIND, (attempt_nr + 1, attempt, now, job))
                rows.append((attempt, attempt_nr + 1, job, job_nr, task))
            connection.execute("COMMIT")
        return rows

    def update(self, states: tuple[str, ...], words: list[dict[str, Any]]) -> set[int]:
        statements = self._statements.get(states)
        if statements is None:
            statements = self._statements[states] = _update_on_sqlite(states)
        move, mirror = statements
        connection, now, moved = self._connection(), time.time(), set()
        timed = [index for index, state in enumerate(states) if state in TIMES]
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            for word in words:
                values = {f"t{index}": word["moves"][index]["at"] for index in timed} | {"now": now}
                values |= {"id": word["attemptId"], "nonce": word["attemptToken"], "seq": word["seq"]}
                rows = connection.execute(move, values).fetchall()
                if rows:
                    connection.execute(mirror, {"now": now, "job": rows[0][0], "attempt": word["attemptId"]})
                    moved.add(word["attemptId"])
                    if states[-1] == COMPLETED:
                        connection.execute(self.DONE, (rows[0][1],))
            connection.execute("COMMIT")
        return moved


def _update_on_sqlite(states: tuple[str, ...]) -> tuple[str, str]:
    times = "".join(f", {TIMES[state]} = :t{index}" for index, state in enumerate(states) if state in TIMES)
    ended = ", ended_at = :now" if states[-1] == COMPLETED else ""
    allowed = ", ".join(f"'{state}'" for state in ALLOWED[states[-1]])
    return (
        f"""UPDATE attempt SET state = '{states[-1]}', seq = :seq, lease_until = {CLOCK} + lease_seconds, left_out = 0
                {times}{ended}
            WHERE id = :id AND nonce = :nonce AND ended_at IS NULL AND seq < :seq AND state IN ({allowed})
            RETURNING job_id, pilot_id""",
        f"""UPDATE job SET state = '{states[-1]}', changed = :now, ready_nr = NULL{ended}
            WHERE id = :job AND attempt_id = :attempt""",
    )


class Dispatcher:
    """What the three routes do."""

    def __init__(self, url: str) -> None:
        self.store = OnSqlite(url) if url.startswith("sqlite:") else OnPostgres(url)
        self._known: dict[str, float] = {}
        row = self.store.one(
            "SELECT id, spec, job_class_id FROM task WHERE id > ? ORDER BY id DESC LIMIT 1", 0
        )
        assert row is not None
        spec = json.loads(row[1])
        self._job_class = row[2]
        self._spec = {"command": spec["command"], "environment": {}, "inputs": [], "outputs": [], "cores": 1}

    def may(self, header: str) -> bool:
        token = header.partition(" ")[2]
        digest = hashlib.sha256(token.encode()).hexdigest()
        now = time.monotonic()
        if now - self._known.get(digest, -TOKEN_SECONDS) < TOKEN_SECONDS:
            return True
        found = self.store.one("SELECT role, expires, revoked FROM token WHERE hash = ?", digest)
        if found is not None:
            self._known[digest] = now
        return found is not None

    def get_job(self, word: dict[str, Any]) -> dict[str, Any]:
        nonce = secrets.token_hex(16)
        values = {"class": self._job_class, "n": word.get("nJobs", 1), "now": time.time(), "nonce": nonce}
        values |= {"pilot": word["pilotId"], "node": "node", "queue": word["queue"]}
        rows = self.store.claim({**values, "request": word["requestId"]})
        jobs = [
            {
                "attemptId": attempt,
                "attemptNr": attempt_nr,
                "attemptToken": nonce,
                "jobId": job,
                "jobNr": job_nr,
                "taskId": task,
                "logUrl": f"file:///log/task-{task}/job-{job}.{attempt}.tar.gz",
                **self._spec,
            }
            for attempt, attempt_nr, job, job_nr, task in rows
        ]
        return {"jobs": jobs, "waitSeconds": 0.0 if jobs else 1.0}

    def update(self, words: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for word in words:
            grouped.setdefault(tuple(move["state"] for move in word["moves"]), []).append(word)
        for states, some in grouped.items():
            moved = self.store.update(states, some)
            for word in some:
                attempt = word["attemptId"]
                answers[attempt] = {"attemptId": attempt, "state": states[-1], "command": "continue"}
                if attempt not in moved:
                    answers[attempt] |= {"command": "stop", "error": "STALE_ATTEMPT"}
        return [answers[word["attemptId"]] for word in words]


def application(url: str) -> Flask:
    app = Flask("reference", static_folder=None)
    dispatcher = Dispatcher(url)

    def route(path: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        def view() -> Response:
            if not dispatcher.may(request.headers.get("Authorization", "")):
                return Response('{"error":"UNAUTHENTICATED"}\n', 401, mimetype="application/json")
            body = json.dumps(answer(json.loads(request.get_data(cache=False))), separators=(",", ":"))
            return Response(body + "\n", 200, mimetype="application/json")

        app.add_url_rule(path, path, view, methods=["POST"])

    def with_next(answer: dict[str, Any], word: dict[str, Any]) -> dict[str, Any]:
        return answer | {"next": dispatcher.get_job(word["next"])} if "next" in word else answer

    route("/v1/getJob", dispatcher.get_job)
    route("/v1/updateJob", lambda word: with_next(dispatcher.update([word])[0], word))
    route("/v1/updateJobs", lambda word: with_next({"answers": dispatcher.update(word["updates"])}, word))
    return app


class _Gunicorn(BaseApplication):
    """gunicorn set up as the server sets it up, and held to the same processors."""

    def __init__(self, orders: dict[str, Any], listener: socket.socket) -> None:
        self._orders = orders
        self._listener = listener
        self._turn = itertools.cycle(orders["affinity"])
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": f"fd://{self._listener.detach()}",
            "worker_class": "server.http.worker.Worker",
            "workers": self._orders["workers"],
            "threads": self._orders["threads"],
            "keepalive": 75,
            "timeout": 60,
            "loglevel": "warning",
            "control_socket_disable": True,
            "when_ready": self._ready,
            "pre_fork": self._before_fork,
            "post_fork": self._forked,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        return application(self._orders["database"])

    def _ready(self, arbiter: Any) -> None:
        port = arbiter.LISTENERS[0].sock.getsockname()[1]
        Path(self._orders["ready"]).write_text(str(port))

    def _before_fork(self, arbiter: Any, worker: Any) -> None:
        worker.processors = next(self._turn)

    def _forked(self, arbiter: Any, worker: Any) -> None:
        os.sched_setaffinity(0, worker.processors)


def main() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    orders = json.loads(sys.stdin.readline())
    sys.argv = sys.argv[:1]  # gunicorn would read what is left
    _Gunicorn(orders, listener).run()


if __name__ == "__main__":
    main()
