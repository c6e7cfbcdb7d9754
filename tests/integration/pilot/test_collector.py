"""Posting reports to a collector: what it gets, and that nothing that it does holds anybody up."""

from __future__ import annotations

import socket
import threading
import time
from typing import Iterator

import pytest

from pilot import collector
from tests.fakes.collector import Collector


@pytest.fixture
def stand() -> Iterator[Collector]:
    with Collector() as made:
        yield made


def test_a_report_is_posted_with_the_token(stand: Collector) -> None:
    assert collector.send({"scores": {"integer": 1.5}}, stand.url, "the-token") == ""
    [(path, headers, body)] = stand.got
    assert path == "/pilotage/_doc?pipeline=x" and body == {"scores": {"integer": 1.5}}
    assert headers["Authorization"] == "Bearer the-token" and headers["Content-Type"] == "application/json"


def test_a_refusal_is_told_and_a_redirection_not_followed(stand: Collector) -> None:
    stand.status = 503
    assert collector.send({}, stand.url) == "it answered 503"
    stand.status, stand.headers = 307, {"Location": stand.url}
    assert collector.send({}, stand.url, "the-token") == "it answered 307"
    assert len(stand.got) == 2


def test_one_that_is_not_there_or_no_address_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in collector.send({}, f"http://127.0.0.1:{port}/")
    for url in ("ftp://127.0.0.1/", "nonsense", "http://127.0.0.1:99999/", "http://[::1/"):
        assert collector.send({}, url) != ""
    assert "KiB" in collector.send({"text": "x" * collector.LARGEST_REPORT}, "http://127.0.0.1:1/")


def test_an_answer_that_comes_byte_by_byte_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"H")
                        time.sleep(0.05)
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        assert collector.send({}, url, timeout_seconds=0.5) != ""
        thread.join(10)
        assert not thread.is_alive()


def test_what_was_offered_before_the_end_is_posted_and_too_much_is_dropped(stand: Collector) -> None:
    mine = collector.Collector(stand.url)
    for number in range(collector.MOST_WAITING + 5):
        mine.offer({"number": number})
    mine.close()
    mine.run()
    assert len(stand.got) == collector.MOST_WAITING
