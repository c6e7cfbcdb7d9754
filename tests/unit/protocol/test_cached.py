"""What a node's cache holds, in a word for the server."""

from __future__ import annotations

import pytest

from protocol import cached

MD5 = "0123456789abcdef" * 2
BLAKE3 = "fedcba9876543210" * 4


def test_a_file_is_known_by_any_of_its_checksums() -> None:
    for algorithm, digest in (("md5", MD5), ("blake3", BLAKE3), ("adler32", "0a0b0c0d")):
        told = cached.marks_in(cached.summary([cached.name_of(algorithm, digest, 7, "a.spd")]))
        checksums = {"md5": MD5, "blake3": BLAKE3, "adler32": "0a0b0c0d", "sha1": "not ours"}
        assert len(told) == 1
        assert told < cached.marks_of(checksums, 7, "a.spd")
        assert not told & cached.marks_of(checksums, 8, "a.spd")


def test_content_makes_the_name_but_for_a_checksum_that_many_files_share() -> None:
    assert cached.name_of("md5", MD5.upper(), 7, "a") == cached.name_of("md5", MD5, 7, "b") == f"md5-{MD5}-7"
    assert cached.name_of("adler32", "0a0b0c0d", 7, "a") != cached.name_of("adler32", "0a0b0c0d", 7, "b")


@pytest.mark.parametrize("n", [0, 1, cached.MOST, cached.MOST + 1])
def test_a_summary_is_bounded_and_tells_of_the_first_ones(n: int) -> None:
    told = cached.summary(f"name-{number}" for number in range(n))
    assert len(told) == 4 * min(n, cached.MOST) <= cached.LONGEST
    assert told.startswith(cached.summary(["name-0"][:n]))
