"""What stands in headers and addresses."""

from __future__ import annotations

from typing import Dict

import pytest

from copytools import http, web
from protocol.errors import PilotageError

MD5 = "d5816f35916d1d9482fb0f1ec201101d"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("adler32=7e2a25ba", {"adler32": "7e2a25ba"}),
        ("adler32=7E2A25BA,md5=1YFvNZFtHZSC+w8ewgEQHQ==", {"adler32": "7e2a25ba", "md5": MD5}),
        ("adler=:fiolug==:, md5=:1YFvNZFtHZSC+w8ewgEQHQ==:", {"adler32": "7e2a25ba", "md5": MD5}),
        (f"md5={MD5}", {"md5": MD5}),
        ("sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:", {}),
        ("adler32=", {}),
        ("adler32=zzz, md5=!!", {}),
        ("", {}),
    ],
)
def test_checksums_as_servers_write_them(told: str, expected: Dict[str, str]) -> None:
    assert http._checksums(told) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("davs://h/s/a", "https://h/s/a"),
        ("dav://h:8080/s/a", "http://h:8080/s/a"),
        ("https://h:443/a%2541?authz=x%20y&z", "https://h/a%2541?authz=x%20y&z"),
        ("http://[::1]:80/two words", "http://[::1]/two%20words"),
        ("http://h/Zürich", "http://h/Z%C3%BCrich"),
    ],
)
def test_addresses_are_written_as_the_web_wants_them(url: str, expected: str) -> None:
    assert web.taken_apart(url).url == expected


@pytest.mark.parametrize(
    "url",
    ["http://", "http://h", "http://h/", "http:///a", "http://h:x/a", "http://[/a", "ftp://h/a",
     "http://h/%2e%2e/a", "http://h/a%0d%0aHost:x", "http://h/a?b\x01c", "http://user:geheim@h/a"],
)  # fmt: skip
def test_b25_what_is_no_address_of_a_file_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(PilotageError) as caught:
        web.taken_apart(url)
    assert caught.value.name == "BAD_PATH"
    assert "geheim" not in str(caught.value)
