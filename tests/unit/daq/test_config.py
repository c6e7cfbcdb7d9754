"""The DAQ's configuration file: what is refused names file, line and the right way; the shipped file is the default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daq import config
from daq.config import DaqConfig
from protocol.errors import PilotageError

SHIPPED = Path(__file__).parents[3] / "etc" / "daq.cfg"


def refusal(text: str) -> str:
    with pytest.raises(PilotageError) as caught:
        config.parse(text, "daq.cfg")
    assert caught.value.name == "BAD_SETTINGS"
    return caught.value.detail


def refused(path: Path) -> str:
    with pytest.raises(PilotageError) as caught:
        config.load(path)
    assert caught.value.name == "BAD_SETTINGS"
    assert str(path) in caught.value.detail
    return caught.value.detail


# -- the file itself --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "No such file" in refused(tmp_path / "none.cfg")
    assert "not a plain file" in refused(tmp_path)
    assert "not a plain file" in refused(tmp_path / "pipe")


def test_a_file_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "daq.cfg").write_bytes(b"RandomSeed = 1\nFrameLength = \xff\n")
    assert "line 2: is not UTF-8" in refused(tmp_path / "daq.cfg")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "daq.cfg").open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than 1 MiB" in refused(tmp_path / "daq.cfg")


def test_a_byte_order_mark_and_dos_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "daq.cfg").write_bytes("\ufeffRandomSeed = 7\r\nSliceLength = 20000\r\n".encode())
    assert config.load(tmp_path / "daq.cfg") == DaqConfig(random_seed=7, slice_length=20_000)


# -- lines ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\nSliceLenght = 10000", "daq.cfg line 2: unknown key 'SliceLenght'; did you mean SliceLength?"),
        ("slicelength = 10000", "unknown key 'slicelength'; did you mean SliceLength?"),
        ("Colour = blue", "unknown key 'Colour'; known keys: DataFileNameFormat, RandomSeed"),
        ("[daq]\nRandomSeed = 1", "line 1: the DAQ's configuration has no sections, found '[daq]'"),
        ("DebugMode", "line 1: 'DebugMode' has no value; write DebugMode = VALUE"),
        ("DebugMode =", "'DebugMode' has no value"),
        ("DebugMode = # 0", "'DebugMode' has no value"),
        ("= 5", "'' has no value"),
        ("RandomSeed = 1\n\nRandomSeed = 1", "line 3: RandomSeed was set in line 1 already"),
    ],
)
def test_a_line_that_is_wrong_is_named(text: str, says: str) -> None:
    assert says in refusal(text)


def test_comments_stand_alone_or_behind_a_value() -> None:
    text = "# one\n   # two\nRandomSeed = 5 # inline\nFrameClockID = 1, 2\t# tab\nDataFileNameFormat = a#%u-%u-%u\n"
    found = config.parse(text)
    assert (found.random_seed, found.frame_clock_id) == (5, (1, 2))
    assert found.data_file_name_format == "a#%u-%u-%u"


# -- values -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "RandomSeed = twelve",
            "line 1: RandomSeed must be a whole number from 0 to 18446744073709551615, not 'twelve'",
        ),
        ("RandomSeed = -1", "must be a whole number"),
        ("RandomSeed = 1_000", "must be a whole number"),
        ("RandomSeed = 0x10", "must be a whole number"),
        ("RandomSeed = ١٢", "must be a whole number"),
        ("RandomSeed = 18446744073709551616", "must be a whole number"),
        ("RandomSeed = " + "9" * 5000, "must be a whole number"),
        ("DataFileSizeLimit = 0", "DataFileSizeLimit must be 1 byte to 1 TiB"),
        ("DataFileSizeLimit = 2 TiB", "1 byte to 1 TiB"),
        ("DataFileSizeLimit = 1.5GiB", "must be bytes, as 1048576, 1MiB or 2GiB, not '1.5GiB'"),
        ("DataFileSizeLimit = 5M", "must be bytes"),
        ("DebugMode = yes", "DebugMode must be 0 or 1, not 'yes'"),
        ("FrameClockID = 1000 1001", "FrameClockID must be 1 to 16 source ids with commas between them"),
        ("FrameClockID = 1000,", "source ids"),
        ("FrameClockID = 4294967296", "source ids"),
        ("FrameClockID = 5, 5", "names a source id twice"),
        ("BunchCrossingID = " + ", ".join(map(str, range(17))), "1 to 16 source ids"),
        ("BunchCrossingID = 1001", "source id 1001 is both a FrameClockID and a BunchCrossingID"),
        ("FrameLength = 0", "FrameLength must be a whole number from 1 to 4294967295"),
        ("FrameLength = 4294967296", "FrameLength must be"),
        ("SliceLength = 99", "SliceLength must be a whole number from 100"),
    ],
)
def test_a_value_that_is_wrong_is_refused_with_what_would_be_right(text: str, says: str) -> None:
    assert says in refusal(text)


@pytest.mark.parametrize("length", [4_500_000, 4_500_001, 10**19])
def test_a_slice_as_long_as_the_roll_over_of_the_tdc_is_refused_with_the_reason(length: int) -> None:
    detail = refusal(f"# a comment\nSliceLength = {length}")
    assert "line 2: SliceLength must be less than 4500000 ns" in detail
    assert "4.5 ms" in detail
    assert "RS" in detail
    assert "rolls over" in detail


@pytest.mark.parametrize(
    ("slice_length", "warned"),
    [(9_999, True), (10_000, False), (55_555, False), (100_000, False), (100_001, True), (4_499_999, True)],
)
def test_a_slice_outside_10_to_100_microseconds_is_warned_about(slice_length: int, warned: bool) -> None:
    found = config.warnings(config.parse(f"SliceLength = {slice_length}"))
    assert len(found) == warned
    assert all(f"SliceLength = {slice_length} ns lies outside the 10 to 100 µs" in text for text in found)


@pytest.mark.parametrize(
    ("name_format", "says"),
    [
        ("run.spd", "takes 0"),
        ("run-%06u-%05u.spd", "takes 2"),
        ("%u-%u-%u-%u", "takes 4"),
        ("run-%06u-%05u-%%u.spd", "takes 2"),
        ("run-%s-%u-%u", "takes numbers like %06u only, not '%s-%u-%u'"),
        ("run-%6.2u-%u-%u", "takes numbers like %06u only"),
        ("run-%*u-%u-%u", "takes numbers like %06u only"),
        ("run-%lu-%u-%u", "takes numbers like %06u only"),
        ("run-%(a)u-%u-%u", "takes numbers like %06u only"),
        ("run-%u-%u-%", "takes numbers like %06u only"),
        ("run-%999999999u-%u-%u", "takes numbers like %06u only"),
        ("data/run-%u-%u-%u", "no usable file name"),
        ("../%u-%u-%u", "no usable file name"),
        ("-%u-%u-%u", "no usable file name"),
        ("a\x07%u-%u-%u", "no usable file name"),
        ("x" * 300 + "%u-%u-%u", "no usable file name"),
    ],
)
def test_a_name_format_must_take_three_numbers_and_make_a_file_name(name_format: str, says: str) -> None:
    assert says in refusal(f"DataFileNameFormat = {name_format}")


def test_a_name_format_works_as_in_c() -> None:
    assert DaqConfig().file_name(7, 123_456, 3) == "run-000007-123456-03.spd"
    assert config.parse("DataFileNameFormat = 100%%-%3d-%u-%02u").file_name(7, 8, 9) == "100%-  7-8-09"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("1MiB", 1 << 20),
        ("64 MiB", 64 << 20),
        ("2GiB", 2 << 30),
        ("1kB", 1000),
        ("7B", 7),
    ],
)
def test_a_size_may_have_a_unit(text: str, size: int) -> None:
    assert config.parse_size(text) == size
    assert config.parse(f"DataFileSizeLimit = {text}").data_file_size_limit == size


# -- overriding and defaults ------------------------------------------------------------------------------------------------


def test_an_override_is_checked_like_the_file_and_names_its_origin() -> None:
    with pytest.raises(PilotageError) as caught:
        config.override(DaqConfig(), [("SliceLength", "4500000", "--slice-length")])
    assert "--slice-length (SliceLength) must be less than 4500000" in caught.value.detail
    swapped = [("FrameClockID", "1004", "--a"), ("BunchCrossingID", "1000,1001", "--b")]
    assert config.override(DaqConfig(), swapped).frame_clock_id == (1004,)


def test_the_shipped_file_holds_every_key_with_the_values_of_the_spd_daq() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert settings == [
        "DataFileNameFormat = run-%06u-%05u-%02u.spd",
        "RandomSeed = 12345",
        "DataFileSizeLimit = 2147483648",
        "DebugMode = 0",
        "FrameClockID = 1000, 1001",
        "BunchCrossingID = 1004",
        "SliceLength = 10000",
        "FrameLength = 100000",
    ]
    assert config.load(SHIPPED) == config.parse("") == DaqConfig()
    assert not config.warnings(DaqConfig())
