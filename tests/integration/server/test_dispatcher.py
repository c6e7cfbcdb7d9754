"""The listening socket: a port that is taken, and addresses that are none."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from protocol.errors import PilotageError
from server import dispatcher, settings


def listen(host: str, port: int) -> socket.socket:
    loaded: Any = settings.load({"server__host": host, "server__port": str(port)}, environ={})
    return dispatcher._listen(loaded, "port")


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PilotageError, match=f"127.0.0.1:{port} is in use by another program") as caught:
            listen("127.0.0.1", port)
    assert caught.value.name == "PORT_TAKEN"


def test_port_0_is_a_free_one() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host.invalid", "::1::"])
def test_an_address_that_is_not_of_this_machine_is_told(host: str) -> None:
    with pytest.raises(PilotageError, match="cannot listen on") as caught:
        listen(host, 0)
    assert caught.value.name == "BAD_SETTINGS"
