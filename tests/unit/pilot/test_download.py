"""Downloads: where they may not lead. What servers do with them is tested with real pilots (tests/integration/pilot/test_software.py)."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path

import pytest

from pilot import download
from pilot.download import Bounds
from protocol import addresses
from protocol.errors import PilotageError

BOUNDS = Bounds(largest=10, seconds=1, connect_seconds=1, silent_seconds=1)


CLOSED = (
    *("169.254.169.254", "fe80::1%eth0", "::ffff:169.254.1.1", "fd00:ec2::254"),
    *("64:ff9b::169.254.169.254", "192.0.0.192", "100.100.100.200"),
)


class Reached:
    """A connection to some address, on which nothing may be sent."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.closed = False

    def getpeername(self) -> tuple[str, int]:
        return self._host, 80

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("host", CLOSED)
def test_b25_a_name_that_leads_to_an_address_for_machines_own_use_is_not_followed(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = Reached(host)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: reached)
    with pytest.raises(PilotageError, match="machines' own use") as caught:
        download.fetch("http://innocent.example/x", tmp_path / "x", BOUNDS)
    assert caught.value.name == "BAD_PATH"
    assert reached.closed and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "url", ["http://[::1/x", "http://host:99999/x", "http:///x", "gopher://host/x", "x", ""]
)
def test_what_is_no_address_of_the_web_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(PilotageError) as caught:
        download.fetch(url, tmp_path / "x", BOUNDS)
    assert caught.value.name == "BAD_PATH"


def test_a_name_that_nobody_has_is_told(tmp_path: Path) -> None:
    for host in ("nobody.invalid", "x" * 70 + ".example"):
        with pytest.raises(PilotageError) as caught:
            download.fetch(f"http://{host}/x", tmp_path / "x", BOUNDS)
        assert caught.value.name == "SOFTWARE_NOT_FETCHED"


def test_ordinary_addresses_are_open() -> None:
    for host in ("127.0.0.1", "10.1.2.3", "192.0.2.1", "2001:db8::1", "::1", "64:ff9b::192.0.2.1"):
        assert not addresses.is_closed(ipaddress.ip_address(host))


def test_a_server_that_hangs_up_at_once_is_not_the_nodes_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HungUp(Reached):
        def getpeername(self) -> tuple[str, int]:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    reached = HungUp("")
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: reached)
    with pytest.raises(PilotageError) as caught:
        download.fetch("http://127.0.0.1:1/a", tmp_path / "a", BOUNDS)
    assert caught.value.name == "SOFTWARE_NOT_FETCHED" and reached.closed
