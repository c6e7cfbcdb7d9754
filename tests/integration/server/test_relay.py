"""News of jobs between the hosts of one Postgres: told to others when too few pilots wait here, and told once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.waiting import wake
from server.waiting.relay import CHANNEL, Relay
from server.waiting.wake import News
from tests.integration.server.waiting_process import ANY, LARGE, Process, running
from tests.parked import Parked
from tests.waiting import wait_until

pytestmark = pytest.mark.component("postgres")


def listens(process: Process) -> bool:
    """Whether news for other hosts is taken."""
    return wake.send(process.directory / wake.RELAY, News({}))


@contextlib.contextmanager
def relaying(url: str, *processes: Process) -> Iterator[None]:
    """Two workers of each host; one of them does it."""
    relays = [Relay(url, process.directory) for process in processes for _ in range(2)]
    for relay in relays:
        relay.start()
    try:
        wait_until(lambda: all(map(listens, processes)), 20, "all hosts to listen")
        yield
    finally:
        for relay in relays:
            relay.stop()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with running(tmp_path / "here", True) as here, running(tmp_path / "there", True) as there:
        yield here, there


def tickets(process: Process, n: int) -> list[str]:
    return [process.ticket(f"p{number}", 8) for number in range(n)]


def test_news_goes_to_other_hosts_as_far_as_too_few_pilots_wait_here(
    postgres_core_url: str, hosts: tuple[Process, Process]
) -> None:
    here, there = hosts
    with (
        relaying(postgres_core_url, *hosts),
        Parked(f"{here.url}/v1/wait", tickets(here, 3)) as near,
        Parked(f"{there.url}/v1/wait", tickets(there, 30)) as far,
    ):
        wait_until(lambda: (here.parked(), there.parked()) == (3, 30), 10, "33 that wait")
        here.tell({ANY: 2})
        near.listen(5, lambda: len(near.woken) == 2)
        far.listen(0.5)
        assert (len(near.woken), len(far.woken)) == (2, 0)
        here.tell({ANY: 6, LARGE: 4})
        near.listen(5)
        far.listen(5, lambda: len(far.woken) >= 9)
        far.listen(0.5)
        assert (len(near.woken), len(far.woken)) == (3, 9)


def test_news_of_many_classes_is_passed_on_in_pieces(
    postgres_core_url: str, hosts: tuple[Process, Process]
) -> None:
    here, there = hosts
    classes = {ANY.replace('"label": ""', f'"label": "{"x" * 100}{n}"'): 1 for n in range(200)}
    with relaying(postgres_core_url, *hosts), Parked(f"{there.url}/v1/wait", tickets(there, 220)) as far:
        wait_until(lambda: there.parked() == 220, 10, "220 that wait")
        for piece in wake.pieces(News(classes), wake.LARGEST):
            wake.send(here.directory / wake.SOCKET, piece)
        far.listen(10, lambda: len(far.woken) >= 200)
        far.listen(0.3)
        assert len(far.woken) == 200


def test_a_lost_connection_to_the_database_is_made_again(
    postgres_core_url: str, hosts: tuple[Process, Process]
) -> None:
    here, there = hosts
    with relaying(postgres_core_url, *hosts), psycopg.connect(postgres_core_url, autocommit=True) as admin:
        ended = admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'LISTEN'"
            " AND pid <> pg_backend_pid()"
        ).fetchall()
        assert len(ended) == 2
        with Parked(f"{there.url}/v1/wait", tickets(there, 100)) as far:

            def is_told() -> bool:
                here.tell({ANY: 1})
                far.listen(0.2)
                return bool(far.woken)

            wait_until(is_told, 20, "news to come through again")


def test_a_notification_that_is_no_news_harms_nobody(
    postgres_core_url: str, hosts: tuple[Process, Process]
) -> None:
    here, there = hosts
    with relaying(postgres_core_url, *hosts), psycopg.connect(postgres_core_url, autocommit=True) as admin:
        for payload in ("", "x", "[1]", '[{"no class": 1}, "", false]'):
            admin.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
        with Parked(f"{there.url}/v1/wait", tickets(there, 1)) as far:
            wait_until(lambda: there.parked() == 1, 10, "one that waits")
            here.tell({ANY: 1})
            far.listen(5)
            assert far.woken == [0]
