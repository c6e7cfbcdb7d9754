"""Names of files and paths: what is let pass, and every trick that is not (bad inputs B1 to B4 and B25)."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from typing import Dict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import PilotageError
from protocol.files import (
    ALGORITHMS,
    LFN_BYTES,
    check_checksums,
    check_lfn,
    check_name,
    local_path,
    parse_checksum,
)

same_each_time = settings(derandomize=True, database=None, max_examples=50)

GOOD = [
    "run-000001-00001-01.spd",
    "a",
    "a.b.c",
    "a b",
    "with:colon,comma;and=more",
    "Größe.txt",
    "файл",
    "文件.spd",
    "..a",
    "a..",
    "...a",
    "%2e%2e",
    "x" * LFN_BYTES,
    "ü" * (LFN_BYTES // 2),
    "$(reboot)",
    "'; DROP TABLE file; --",
    "<script>",
    "{{7*7}}",
]

BAD = {
    "b1 climbs out": "../../etc/cron.d/x",
    "b2 absolute": "/abs/path",
    "b3 climbs inside": "a/../../b",
    "b3 percent": "..%2f..%2f/x",
    "b3 backslashes": "..\\",
    "b3 a directory": "a/b",
    "b4 nul": "a\0b",
    "b4 newline": "a\nb",
    "b4 carriage return": "a\rb",
    "b4 tab": "a\tb",
    "b4 escape": "\x1b[2J",
    "b4 delete": "a\x7f",
    "b4 c1 control": "a\x9b2J",
    "b4 line separator": "a\u2028b",
    "b4 paragraph separator": "a\u2029b",
    "b4 right-to-left mark": "a\u200fb",
    "b4 right-to-left override": "a\u202egpj.exe",
    "b4 isolate": "a\u2066b",
    "b4 5000 characters": "x" * 5000,
    "b4 256 bytes": "x" * 256,
    "b4 one byte too many": "x" * (LFN_BYTES + 1),
    "b4 too many bytes though few characters": "文" * (LFN_BYTES // 3 + 1),
    "b4 dot": ".",
    "b4 dots": "..",
    "b4 more dots": "....",
    "b4 blanks": "   ",
    "b4 dots and blanks": ". .",
    "b4 empty": "",
    "b4 decomposed twin": unicodedata.normalize("NFD", "Größe"),
    "b4 lone surrogate": "a\ud800",
    "b24 option": "-rf",
    "b24 long option": "--help",
}


@pytest.mark.parametrize("lfn", GOOD, ids=ascii)
def test_a_plain_name_is_a_logical_name(lfn: str) -> None:
    assert check_lfn(lfn) == lfn


@pytest.mark.parametrize("lfn", BAD.values(), ids=BAD.keys())
def test_a_name_that_could_do_harm_is_refused(lfn: str) -> None:
    with pytest.raises(PilotageError) as caught:
        check_lfn(lfn)
    assert caught.value.name == "BAD_LFN"
    assert caught.value.detail.isascii(), "what the detail shows of the name may go to any terminal and log"
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 500


@same_each_time
@given(st.text(max_size=300))
@example("a\u0301")
def test_whatever_is_let_pass_is_one_component_of_a_path(lfn: str) -> None:
    try:
        check_lfn(lfn)
    except PilotageError as error:
        assert error.name == "BAD_LFN"
        return
    path = PurePosixPath("/storage") / lfn
    assert path.parent == PurePosixPath("/storage")
    assert path.name == lfn
    assert len(lfn.encode()) <= LFN_BYTES
    assert unicodedata.normalize("NFC", lfn) == lfn


@pytest.mark.parametrize("name", ["a", "A.b-c_d:e+f", "0", "x" * 200])
def test_a_name_of_letters_digits_and_some_signs_is_taken(name: str) -> None:
    assert check_name(name, "dataset") == name


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "-a", ".a", "a b", "a/b", "a\n", "ä", "a%00", "1 OR 1=1", "a'", "../a"]
)
def test_any_other_name_is_refused_with_what_it_is_for(name: str) -> None:
    with pytest.raises(PilotageError, match="dataset") as caught:
        check_name(name, "dataset")
    assert caught.value.name == "BAD_REQUEST"


# -- checksums --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_checksum_of_a_known_algorithm_is_kept_in_lower_case(algorithm: str) -> None:
    digits = ("0123456789ABCDEF" * 4)[: ALGORITHMS[algorithm]]
    assert check_checksums({algorithm: digits}) == {algorithm: digits.lower()}
    assert parse_checksum(f"{algorithm}:{digits}") == (algorithm, digits.lower())


@pytest.mark.parametrize(
    ("checksums", "error"),
    [
        ({"sha1": "0" * 40}, "CHECKSUM_NOT_SUPPORTED"),
        ({"MD5": "0" * 32}, "CHECKSUM_NOT_SUPPORTED"),
        ({"md5": "0" * 31}, "BAD_REQUEST"),
        ({"md5": "0" * 33}, "BAD_REQUEST"),
        ({"md5": ""}, "BAD_REQUEST"),
        ({"md5": "g" * 32}, "BAD_REQUEST"),
        ({"md5": "0" * 32 + "\n"}, "BAD_REQUEST"),
        ({"md5": "٠" * 32}, "BAD_REQUEST"),
        ({"adler32": "0" * 32}, "BAD_REQUEST"),
        ({"blake3": "0" * 32}, "BAD_REQUEST"),
        ({"adler32": "0" * 8, "md5": "x"}, "BAD_REQUEST"),
    ],
)
def test_a_checksum_of_wrong_length_or_algorithm_is_refused(checksums: Dict[str, str], error: str) -> None:
    with pytest.raises(PilotageError) as caught:
        check_checksums(checksums)
    assert caught.value.name == error


def test_a_text_without_a_colon_is_no_checksum() -> None:
    with pytest.raises(PilotageError, match="ALGORITHM:HEX"):
        parse_checksum("0" * 32)


# -- paths ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///srv/data/a", "/srv/data/a"),
        ("file://localhost/srv/a", "/srv/a"),
        ("file:/srv/a", "/srv/a"),
        ("file:data/a", "/root/data/a"),
        ("file:///srv/a%20b%23", "/srv/a b#"),
        ("file:///srv/%C3%A4", "/srv/ä"),
    ],
)
def test_a_file_url_names_a_path(url: str, path: str) -> None:
    assert local_path(url, data_root="/root") == PurePosixPath(path)


@pytest.mark.parametrize(
    "url",
    [
        *("http://169.254.169.254/", "root://evil//a", "s3://bucket/a", "/srv/a", "", "FILE"),
        *(
            "file://other.host/srv/a",
            "file:///srv/../etc/shadow",
            "file:///srv/%2e%2e/etc/shadow",
            "file:../a",
        ),
        *("file:///srv/a%00b", "file:a/%2e%2e/%2e%2e/b"),
    ],
)
def test_a_url_that_leaves_its_place_is_no_path(url: str) -> None:
    with pytest.raises(PilotageError) as caught:
        local_path(url, data_root="/root")
    assert caught.value.name == "BAD_PATH"


def test_a_relative_url_without_a_data_root_names_the_setting() -> None:
    with pytest.raises(PilotageError, match="SCRIPT_PREFIX"):
        local_path("file:data/a")
