"""The clients of a benchmark, against a server of a few lines."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.bench import load


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    jobs = 0
    """How many jobs there are still."""
    words: list[tuple[str, Any]] = []
    drop = 0
    """So many requests are not answered: the connection is closed."""
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            if Answers.drop:
                Answers.drop -= 1
                self.close_connection = True
                return
            Answers.words.append((self.path, body))
            answer = json.dumps(self._answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _answer(self, body: Any) -> Any:
        if self.path == "/v1/getJob":
            return self._jobs(body)
        return {"next": self._jobs(body["next"])} if "next" in body else {"answers": []}

    def _jobs(self, request: Any) -> Any:
        taken = min(request["nJobs"], Answers.jobs)
        Answers.jobs -= taken
        return {"jobs": [{"attemptId": 1, "attemptToken": "t"}] * taken}

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def order() -> Iterator[dict[str, Any]]:
    Answers.jobs, Answers.words, Answers.drop = 1000, [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {
            "host": "127.0.0.1",
            "port": server.server_port,
            "token": "secret",
            "pilots": "p",
            "queue": "CPU",
            "resource": "cpu",
            "label": "",
            "clients": 2,
            "steps": "life cycle",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def paths() -> list[str]:
    return [path for path, _ in Answers.words]


def test_a_life_cycle_is_one_request_for_a_job_and_three_updates(order: dict[str, Any]) -> None:
    done = load.obey({**order, "script": "single", "count": 6})
    assert done["cycles"] == 6
    assert (paths().count("/v1/getJob"), paths().count("/v1/updateJob")) == (6, 18)
    assert done["latency"]["getJob"]["p50"] > 0
    assert not done["dry"]


def test_the_last_word_about_a_job_asks_for_the_next_one(order: dict[str, Any]) -> None:
    done = load.obey({**order, "script": "chained", "count": 6})
    assert paths().count("/v1/getJob") == 2  # one a client
    assert paths().count("/v1/updateJob") == 2 * done["cycles"]


def test_in_bulk_there_is_one_request_for_each_step(order: dict[str, Any]) -> None:
    done = load.obey({**order, "script": "bulk", "count": 40, "n": 10})
    assert done["cycles"] == 40
    assert (paths().count("/v1/getJob"), paths().count("/v1/updateJobs")) == (4, 12)


def test_a_run_that_finds_no_job_says_so(order: dict[str, Any]) -> None:
    Answers.jobs = 3
    done = load.obey({**order, "script": "single", "count": 100})
    assert (done["cycles"], done["dry"]) == (3, True)


def test_a_request_whose_connection_breaks_is_sent_again(order: dict[str, Any]) -> None:
    Answers.drop = 2
    assert load.obey({**order, "script": "single", "count": 4})["cycles"] == 4


def test_an_answer_that_is_a_refusal_ends_the_run(order: dict[str, Any]) -> None:
    with pytest.raises(load.BadAnswer, match="501"):
        load.Loop(order).run([iter_get(order)])


def iter_get(order: dict[str, Any]) -> load.Script:
    yield load.Request("get", "/v1/getJob")  # this server knows no GET
