"""What tools across the network share, by itself."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import List

import pytest

from copytools.base import Deadline
from copytools.remote import Watched, in_bucket, within
from protocol.errors import PilotageError


@pytest.mark.parametrize(
    "url", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3://key:geheim@bucket/a", "s3://b/a", "s3://bucket/a/../b",
            "s3://bucket/a%00", "s3://bucket:80/a", "s3://[/a"]
)  # fmt: skip
def test_b25_what_is_no_address_of_an_object_is_refused(url: str) -> None:
    with pytest.raises(PilotageError) as caught:
        in_bucket(url)
    assert caught.value.name == "BAD_PATH" and "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a", ("bucket", "a")),
        ("gs://my-bucket.example/run%201/a%2541", ("my-bucket.example", "run 1/a%41")),
        ("s3://bucket//a", ("bucket", "/a")),
    ],
)
def test_what_is_quoted_in_an_address_is_not_quoted_in_the_name(url: str, expected: tuple[str, str]) -> None:
    assert in_bucket(url) == expected


def test_a_call_that_does_not_end_is_left_alone_when_its_time_is_over() -> None:
    over = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        within(Deadline(0.2), lambda: over.wait(60))
    assert time.monotonic() - began < 30
    over.set()


def test_a_call_that_nobody_waits_for_any_more_is_left_alone() -> None:
    over, stop = threading.Event(), threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(OSError, match="nobody waits") as caught:
        within(Deadline(60, stop.is_set), lambda: over.wait(60))
    assert caught.value.errno == errno.ECANCELED
    over.set()


def test_what_a_call_answers_or_raises_comes_through() -> None:
    assert within(Deadline(60), lambda: 7) == 7

    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "not here")

    with pytest.raises(FileNotFoundError, match="not here"):
        within(Deadline(60), fail)


def test_nothing_is_begun_when_the_time_is_over() -> None:
    begun: List[bool] = []
    with pytest.raises(TimeoutError):
        within(Deadline(0), lambda: begun.append(True))
    assert begun == []


def test_a_library_that_reads_or_writes_on_ends_with_the_time(tmp_path: Path) -> None:
    with Watched(tmp_path / "a", "xb", Deadline(60)) as file:
        file.write(os.urandom(1000))
    with Watched(tmp_path / "a", "rb", Deadline(60)) as file:
        assert len(file.read(600)) == 600 and len(file.read()) == 400 and file.read(5) == b""
    with Watched(tmp_path / "a", "rb", Deadline(0)) as late, pytest.raises(TimeoutError):
        late.read(1)
    with Watched(tmp_path / "b", "xb", Deadline(0)) as late, pytest.raises(TimeoutError):
        late.write(b"x")
