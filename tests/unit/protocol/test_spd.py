"""The .spd layout: what was written is read back, and every way for a file to be bad has its own clear error."""

from __future__ import annotations

import io
import os
import re
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest

from protocol import spd
from protocol.errors import PilotageError
from protocol.spd import Clock, FileHeader, FrameHeader, Hit, Kind, Role, Source

FORMAT = Path(__file__).parents[3] / "docs" / "spd-format.md"
SOURCES = (
    Source(1000, Role.FRAME_CLOCK, 1),
    Source(1004, Role.BUNCH_CROSSING, 1),
    Source(2000, Role.DETECTOR, 64),
)
HEADER = FileHeader(Kind.RAW, 7, 3, 1, 10_000, 10, SOURCES, seed=12345)
CLOCKS = (Clock(1000, 3_000_006),)
FIRST_FRAME = 88 + 8 * len(SOURCES)
FRAME_HEADER = 56 + 16
Parts = List[Tuple[FrameHeader, List[Tuple[int, int, List[Hit]]]]]

HITS = [Hit(5, 63, 17, 0), Hit(99_999, 0, 255, 0)]
GOOD: Parts = [
    # The last three slices of a frame that a chunk before began, then a whole frame.
    (FrameHeader(3, 7, 3, CLOCKS), [(1004, 7, HITS), (2000, 9, HITS[:1])]),
    (FrameHeader(4, 0, 10, CLOCKS), [(1004, 0, []), (2000, 0, HITS), (2000, 5, HITS)]),
]


def written(header: FileHeader = HEADER, parts: Optional[Parts] = None) -> bytes:
    stream = io.BytesIO()
    writer = spd.Writer(stream, header)
    for frame, blocks in GOOD if parts is None else parts:
        writer.begin_frame(frame)
        for source, slice_number, hits in blocks:
            writer.write_blocks(spd.pack_block(source, slice_number, hits), 1, len(hits))
        writer.end_frame()
    writer.close()
    return stream.getvalue()


def reseal(data: bytes, begin: int, end: int) -> bytes:
    """The same with a right checksum at the end of the header or trailer that lies there."""
    return data[: end - 4] + struct.pack("<I", zlib.crc32(data[begin : end - 4])) + data[end:]


def put(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    packed = struct.pack(layout, *values)
    return data[:offset] + packed + data[offset + len(packed) :]


class Place:
    """A file that tests fill and look at."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, data: bytes, quick: bool = False, kind: Optional[Kind] = None) -> PilotageError:
        self.path.write_bytes(data)
        with pytest.raises(PilotageError) as caught:
            (spd.check if quick else spd.verify)(self.path, kind)
        assert str(self.path) in caught.value.detail
        return caught.value

    def summary(self, data: bytes) -> spd.Summary:
        self.path.write_bytes(data)
        return spd.verify(self.path)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "run-000007-00003-01.spd")


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives three bytes at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 3))


def read_all(stream: Any) -> List[Any]:
    header = spd.read_header(stream)
    return [
        (frame.header.number, [(block.source_id, list(spd.hits(block.words))) for block in frame.blocks()])
        for frame in spd.frames(stream, header)
    ]


# -- cut off --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_a_file_cut_off_at_any_byte_is_truncated(place: Place, quick: bool) -> None:
    data = written()
    for length in range(len(data)):
        assert place.error(data[:length], quick).name == "SPD_FILE_TRUNCATED", length


def test_a_stream_that_ends_at_any_byte_is_truncated() -> None:
    data = written()
    for length in range(len(data)):
        with pytest.raises(PilotageError) as caught:
            read_all(Pipe(data[:length]))
        assert caught.value.name == "SPD_FILE_TRUNCATED", length


def test_an_empty_file_is_called_empty(place: Place) -> None:
    error = place.error(b"")
    assert (error.name, error.detail) == ("SPD_FILE_TRUNCATED", f"{place.path}: is empty")


def test_a_truncated_file_tells_how_much_of_it_is_there(place: Place) -> None:
    data = written()
    assert f"has 300 of {len(data)} bytes" in place.error(data[:300]).detail


def test_a_file_whose_writer_died_is_truncated(place: Place) -> None:
    stream = io.BytesIO()
    writer = spd.Writer(stream, HEADER)
    writer.begin_frame(GOOD[0][0])
    writer.write_blocks(spd.pack_block(1004, 7, HITS), 1, 2)
    assert "never finished" in place.error(stream.getvalue()).detail


# -- damaged --------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(place: Place) -> None:
    data = written()
    for offset in range(len(data)):
        for bit in range(8):
            damaged = put(data, offset, "B", data[offset] ^ 1 << bit)
            assert place.error(damaged).name == "SPD_FILE_CORRUPT", (offset, bit)


def test_the_quick_check_finds_every_flipped_bit_outside_the_payloads(place: Place) -> None:
    data = written()
    payloads = set()
    at = FIRST_FRAME
    for frame, blocks in GOOD:
        size = sum(len(spd.pack_block(*block)) for block in blocks)
        payloads |= set(range(at + frame.length, at + frame.length + size))
        at += frame.length + size + spd.FRAME_TRAILER_BYTES
    for offset in set(range(len(data))) - payloads:
        damaged = put(data, offset, "B", data[offset] ^ 0x10)
        assert place.error(damaged, quick=True).name == "SPD_FILE_CORRUPT", offset
    inside = min(payloads)
    place.path.write_bytes(put(data, inside, "B", data[inside] ^ 0x10))
    assert not spd.check(place.path).payload_verified


def test_bytes_behind_the_end_are_found(place: Place) -> None:
    error = place.error(written() + b"\n", quick=True)
    assert error.name == "SPD_FILE_CORRUPT"
    assert "goes on after its end" in error.detail


def test_a_transfer_in_text_mode_is_recognised(place: Place) -> None:
    error = place.error(written().replace(b"\r\n", b"\n"))
    assert error.name == "SPD_FILE_CORRUPT"
    assert "text mode" in error.detail


def test_the_end_of_another_file_of_the_same_size_is_found(place: Place) -> None:
    other = written(replace(HEADER, run=8))
    error = place.error(written()[:-24] + other[-24:], quick=True)
    assert "belongs to another file header" in error.detail


def test_a_damaged_place_is_named(place: Place) -> None:
    data = written()
    assert f"(at byte {FIRST_FRAME})" in place.error(put(data, FIRST_FRAME, "4s", b"XXX>")).detail
    block = FIRST_FRAME + FRAME_HEADER
    assert f"(at byte {block})" in place.error(put(data, block, "4s", b"SLIC")).detail


# -- absurd lengths, written with right checksums ---------------------------------------------------------------------------


def frame_with(offset: int, layout: str, value: int) -> bytes:
    """A file with one field of its first frame header changed."""
    data = put(written(), FIRST_FRAME + offset, layout, value)
    return reseal(data, FIRST_FRAME, FIRST_FRAME + FRAME_HEADER)


def header_with(offset: int, layout: str, value: int) -> bytes:
    return reseal(put(written(), offset, layout, value), 0, FIRST_FRAME)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame_with(24, "<Q", 1 << 63), "claims 9223372036854775808 bytes"),
        (frame_with(6, "<H", 65535), "frame header is damaged"),
        (frame_with(4, "<H", 8), "frame header is damaged"),
        (frame_with(20, "<I", 0), "has slices 7 to 6"),
        (frame_with(20, "<I", 1 << 31), "has slices 7 to"),
        (header_with(56, "<Q", 1 << 60), "too many"),
        (header_with(56, "<Q", 1), "frames hold 2 blocks, 3 hits"),
        (header_with(56, "<Q", 3), "a frame is due where 0 bytes are left"),
        (header_with(64, "<Q", 1 << 60), "5 blocks, 7 hits"),
        (header_with(10, "<H", 65535), "65535 bytes long and names 3 sources"),
        (header_with(10, "<H", 0), "0 bytes long"),
        (header_with(14, "<H", 65535), "names 65535 sources"),
        (header_with(28, "<I", 0), "impossible lengths"),
        (header_with(32, "<I", 0), "impossible lengths"),
        (header_with(36, "<I", 25), "impossible lengths"),
        (header_with(12, "B", 9), "unknown kind of data 9"),
        (header_with(88, "<H", 9), "unknown role 9"),
        (header_with(92, "<I", 1000), "two sources have the same id"),
    ],
)
def test_impossible_numbers_are_not_believed(place: Place, data: bytes, says: str, quick: bool) -> None:
    error = place.error(data, quick)
    assert says in error.detail
    assert error.name == "SPD_FILE_CORRUPT"


@pytest.mark.parametrize("size", [1, 100, 1 << 40])
def test_another_size_in_the_header_is_a_length_that_is_not_believed(place: Place, size: int) -> None:
    error = place.error(header_with(48, "<Q", size))
    assert error.name == ("SPD_FILE_TRUNCATED" if size > 100 else "SPD_FILE_CORRUPT")


@pytest.mark.parametrize("count", [3, 1 << 20, 1 << 21, (1 << 32) - 1])
def test_a_block_that_claims_more_hits_than_its_frame_holds_costs_no_memory(place: Place, count: int) -> None:
    data = put(written(parts=[GOOD[0]]), FIRST_FRAME + FRAME_HEADER + 12, "<I", count)
    tracemalloc.start()
    try:
        assert place.error(data).name == "SPD_FILE_CORRUPT"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_block_too_large_for_a_reader_s_memory_is_refused(place: Place) -> None:
    with place.path.open("wb") as stream:
        writer = spd.Writer(stream, HEADER)
        writer.begin_frame(FrameHeader(0, 0, 10, CLOCKS))
        count = spd.BLOCK_WORDS_MAX + 1
        head = spd.BLOCK_HEAD.pack(spd.BLOCK_MAGIC, 2000, 0, count)
        writer.write_blocks(head + bytes(8 * count) + spd.BLOCK_TAIL.pack(spd.BLOCK_END, count), 1, count)
        writer.end_frame()
        writer.close()
    with pytest.raises(PilotageError, match="a block of frame 0 is damaged"):
        spd.verify(place.path)


def test_a_large_frame_is_read_in_pieces(place: Place) -> None:
    block = spd.pack_block(2000, 0, [Hit(1, 2, 3, 0)] * 1000)
    with place.path.open("wb") as stream:
        writer = spd.Writer(stream, HEADER)
        writer.begin_frame(FrameHeader(0, 0, 10, CLOCKS))
        for _ in range(2000):
            writer.write_blocks(block, 1, 1000)
        writer.end_frame()
        writer.close()
    told: List[int] = []
    tracemalloc.start()
    try:
        assert spd.verify(place.path, progress=told.append).words == 2_000_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert sum(told) == place.path.stat().st_size - FIRST_FRAME


def test_the_quick_check_reads_no_payload(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: Parts = [(FrameHeader(n, 0, 10, CLOCKS), [(2000, 0, HITS * 10_000)]) for n in range(5)]
    place.path.write_bytes(written(parts=frames))
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal read
            got = super().readinto(buffer) or 0
            read += got
            return got

    monkeypatch.setattr(spd, "opened", lambda path: io.BufferedReader(Counting(path)))
    assert spd.check(place.path).words == 100_000
    assert read < 100_000 < place.path.stat().st_size // 8


# -- what does not fit together ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([GOOD[1], GOOD[0]], "frame 3 slice 7 follows where frame 5 slice 0 is due"),
        (
            [GOOD[0], (FrameHeader(6, 0, 10, CLOCKS), [])],
            "frame 6 slice 0 follows where frame 4 slice 0 is due",
        ),
        ([(FrameHeader(0, 0, 4, CLOCKS), []), (FrameHeader(0, 5, 5, CLOCKS), [])], "slice 4 is due"),
        ([(FrameHeader(0, 0, 11, CLOCKS), [])], "has slices 0 to 10"),
        ([(FrameHeader(0, 0, 10, (Clock(2000, 0),)), [])], "source 2000, which is no frame clock"),
        ([(FrameHeader(0, 0, 10, (Clock(77, 0),)), [])], "source 77, which is no frame clock"),
        ([(FrameHeader(0, 0, 10, CLOCKS), [(77, 0, HITS)])], "comes from source 77"),
        ([(FrameHeader(0, 0, 4, CLOCKS), [(2000, 4, HITS)])], "is of slice 4, outside 0 to 3"),
        (
            [(FrameHeader(0, 0, 4, CLOCKS), [(2000, 3, HITS), (2000, 2, HITS)])],
            "is of slice 2, outside 3 to 3",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_corrupt(place: Place, parts: Parts, says: str) -> None:
    error = place.error(written(parts=parts))
    assert error.name == "SPD_FILE_CORRUPT"
    assert says in error.detail


def test_the_trailer_of_another_frame_is_found(place: Place) -> None:
    data = written(parts=[GOOD[0]])
    begin = len(data) - spd.FILE_TRAILER_BYTES - spd.FRAME_TRAILER_BYTES
    data = reseal(put(data, begin + 8, "<Q", 9), begin, begin + spd.FRAME_TRAILER_BYTES)
    assert "frame 3 has the trailer of frame 9" in place.error(data, quick=True).detail


def test_counts_that_differ_from_what_is_there_are_found(place: Place) -> None:
    stream = io.BytesIO()
    writer = spd.Writer(stream, HEADER)
    writer.begin_frame(FrameHeader(0, 0, 10, CLOCKS))
    writer.write_blocks(spd.pack_block(2000, 0, HITS), 1, 3)
    writer.end_frame()
    writer.close()
    assert "holds 1 blocks, 2 hits; it says 1 blocks, 3 hits" in place.error(stream.getvalue()).detail


def test_bytes_between_blocks_are_found(place: Place) -> None:
    stream = io.BytesIO()
    writer = spd.Writer(stream, HEADER)
    writer.begin_frame(FrameHeader(0, 0, 10, CLOCKS))
    writer.write_blocks(spd.pack_block(2000, 0, HITS) + bytes(8), 1, 2)
    writer.end_frame()
    writer.close()
    assert "8 bytes that are no whole block" in place.error(stream.getvalue()).detail


# -- other files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"root:x:0:0\n", bytes(500), b"\n", b"SPD", b"\xff" * 2000]
)
def test_a_foreign_file_is_called_foreign(place: Place, data: bytes) -> None:
    assert place.error(data).name == place.error(data, quick=True).name == "SPD_FILE_FOREIGN"


def test_a_foreign_file_is_shown_without_its_control_characters(place: Place) -> None:
    assert place.error(b"\x1b[2Jx'\nhello").detail.endswith('with "\\x1b[2Jx\'\\nh"')


def test_a_later_version_is_named_with_the_one_that_can_be_read(place: Place) -> None:
    error = place.error(header_with(8, "<H", 2))
    assert error.name == "SPD_FILE_FOREIGN"
    assert "format version 2; this program reads version 1" in error.detail


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(PilotageError) as caught:
            spd.check(path)
        assert caught.value.name == "SPD_FILE_FOREIGN"


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spd.check(tmp_path / "none.spd")


@pytest.mark.parametrize("quick", [False, True])
def test_the_other_kind_of_data_is_refused(place: Place, quick: bool) -> None:
    error = place.error(written(), quick, Kind.SIMULATED)
    assert (error.name, error.detail) == ("SPD_WRONG_KIND", f"{place.path}: holds raw data, not simulated")
    error = place.error(written(replace(HEADER, kind=Kind.SIMULATED)), quick, Kind.RAW)
    assert error.name == "SPD_WRONG_KIND"


def test_a_file_name_cannot_forge_a_line_of_a_message(tmp_path: Path) -> None:
    path = tmp_path / "a\nError: b.spd"
    path.write_bytes(b"x")
    with pytest.raises(PilotageError) as caught:
        spd.check(path)
    assert "\n" not in caught.value.detail


# -- good files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_what_was_written_is_read_back(place: Place, kind: Kind) -> None:
    header = replace(HEADER, kind=kind, keeps_empty=True)
    data = written(header)
    with io.BytesIO(data) as stream:
        found = spd.read_header(stream)
        assert found == replace(header, size=len(data), frames=2, blocks=5, words=7)
        frames = []
        for frame in spd.frames(stream, found):
            blocks = [
                (block.source_id, block.slice_number, list(spd.hits(block.words))) for block in frame.blocks()
            ]
            frames.append((replace(frame.header, payload_bytes=0, blocks=0, words=0), blocks))
    assert frames == GOOD


def test_the_summary_tells_what_is_in_a_file(place: Place) -> None:
    data = written()
    full = place.summary(data)
    assert full == spd.Summary(str(place.path), len(data), Kind.RAW, 7, 3, 1, 2, 5, 7, 3, 4, True)
    assert spd.check(place.path, Kind.RAW) == replace(full, payload_verified=False)


def test_a_file_without_frames_is_good(place: Place) -> None:
    summary = place.summary(written(parts=[]))
    assert (summary.frames, summary.first_frame) == (0, None)


def test_a_pipe_can_be_read_too() -> None:
    assert read_all(Pipe(written())) == read_all(io.BytesIO(written()))


@pytest.mark.parametrize("stream", [io.BytesIO(written()), Pipe(written())])
def test_frames_can_be_passed_over_half_read(stream: Any) -> None:
    header = spd.read_header(stream)
    numbers = []
    for frame in spd.frames(stream, header):
        next(frame.blocks())
        assert not frame.verified
        numbers.append(frame.header.number)
    assert numbers == [3, 4]


def test_the_writer_knows_the_size_while_it_writes() -> None:
    stream = io.BytesIO()
    writer = spd.Writer(stream, HEADER)
    assert writer.size == HEADER.length == FIRST_FRAME
    writer.begin_frame(GOOD[0][0])
    writer.end_frame()
    assert writer.size == FIRST_FRAME + FRAME_HEADER + spd.FRAME_TRAILER_BYTES
    assert writer.close().size == len(stream.getvalue())


# -- the documentation ------------------------------------------------------------------------------------------------------

TYPES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "4 bytes": 4, "8 bytes": 8}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("file header", spd._HEAD),
        ("source", spd._SOURCE),
        ("frame header", spd._FRAME),
        ("frame clock", spd._CLOCK),
        ("block header", spd.BLOCK_HEAD),
        ("data word", spd.HIT),
        ("block trailer", spd.BLOCK_TAIL),
        ("frame trailer", spd._FRAME_TAIL),
        ("file trailer", spd._TAIL),
    ],
)
def test_the_documented_fields_are_those_of_the_code(name: str, layout: struct.Struct) -> None:
    text = FORMAT.read_text(encoding="utf-8").split(f"<!-- layout: {name} -->")[1].split("<!-- end -->")[0]
    rows = re.findall(r"^\| (\d+) \| ([a-z0-9 ]+) \|", text, re.MULTILINE)
    at = 0
    codes = []
    for offset, kind in rows:
        assert int(offset) == at
        at += TYPES[kind]
        codes.append({"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}.get(kind) or f"{kind[0]}s")
    assert at == layout.size
    assert "<" + "".join(codes) == layout.format
