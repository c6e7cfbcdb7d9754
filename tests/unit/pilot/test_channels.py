"""Channels between threads."""

from __future__ import annotations

import threading
from typing import List

from pilot.channels import Channel, make


def test_what_was_put_before_the_close_is_still_read_in_order() -> None:
    channel: Channel[int] = Channel("test")
    for number in (1, 2, 3):
        channel.put(number)
    channel.close()
    assert list(channel) == [1, 2, 3]


def test_a_close_ends_the_loops_of_all_readers() -> None:
    channel: Channel[int] = Channel("test")
    seen: List[int] = []
    readers = [threading.Thread(target=lambda: seen.extend(channel)) for _ in range(3)]
    for reader in readers:
        reader.start()
    channel.put(1)
    channel.close()
    for reader in readers:
        reader.join(5)
    assert not any(reader.is_alive() for reader in readers)
    assert seen == [1]


def test_new_channels_have_all_slots_free_and_names() -> None:
    channels = make(3)
    channels.close()
    assert list(channels.free) == [1, 2, 3]
    assert channels.staged_in.of[1].name == "staged in for slot 1"
