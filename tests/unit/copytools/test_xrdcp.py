"""What xrdcp and xrdfs say, and what it means; recorded from 5.5.3."""

from __future__ import annotations

import errno

import pytest

from copytools import xrdcp
from copytools.commands import Done
from copytools.failures import CORRUPTED, DIED, OVERLOADED, REFUSED, UNREACHABLE
from protocol.errors import PilotageError


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (54, "[ERROR] Server responded with an error: [3011] Unable to open /store/missing; no such file or directory  (source)", errno.ENOENT),
        (54, "[ERROR] Server responded with an error: [3010] Opening path '/etc/passwd' is disallowed.", REFUSED),
        (50, "Run: [ERROR] Invalid operation: file exists", errno.EEXIST),
        (53, "Run: [ERROR] CheckSum error", CORRUPTED),
        (51, "Run: [FATAL] Connection error:", UNREACHABLE),
        (51, "Run: [FATAL] Socket timeout:", UNREACHABLE),
        (52, "Run: [FATAL] Auth failed: No protocols left to try (destination)", REFUSED),
        (54, "[ERROR] Server responded with an error: [3024] Server is overloaded", OVERLOADED),
        (54, "Run: [ERROR] Local error: no space left on device:  (destination)", errno.ENOSPC),
        (53, "", CORRUPTED),
        (51, "", UNREACHABLE),
        (52, "", REFUSED),
        (99, "something new", errno.EIO),
        (-11, "", DIED),
    ],
)  # fmt: skip
def test_its_words_are_surer_than_its_exit_code(code: int, text: str, expected: int) -> None:
    error = xrdcp._error(Done(code, text))
    assert error.errno == expected
    assert (text or "no word") in str(error)


def test_what_is_quoted_in_an_address_is_not_quoted_for_the_command() -> None:
    assert xrdcp._written("root://h:1//s/two%20w%2541%23?svc=x") == "root://h:1//s/two w%41#?svc=x"
    assert xrdcp._taken_apart("root://h:1//s/two%20w") == ("root://h:1", "/s/two w")


@pytest.mark.parametrize(
    "url", ["root://", "root://h", "root://h//", "root:///x", "root://h//a%3Fb", "root://h//%2e%2e/x", "root://[//a"]
)  # fmt: skip
def test_b25_addresses_that_xrootd_cannot_have_are_refused(url: str) -> None:
    with pytest.raises(PilotageError) as caught:
        xrdcp._written(url)
    assert caught.value.name == "BAD_PATH"
