"""The byte layout of .spd files: a file is frames, a frame is slices, a slice is blocks of hits, one block per source.

The layout is our own (the real format of the SPD detector is not public) and is drawn in docs/spd-format.md. All numbers are
little-endian. Headers and trailers carry their own CRC, payloads one per frame; no length is believed beyond the size of the
file, and a reader never holds more than some megabytes. Four errors are told apart: SPD_FILE_FOREIGN (not such a file at all),
SPD_FILE_TRUNCATED (it ends too early), SPD_FILE_CORRUPT (damaged inside), SPD_WRONG_KIND (raw instead of simulated).
"""

from __future__ import annotations

import enum
import os
import stat
import struct
import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO, Callable, Iterator, NamedTuple, NoReturn, Optional, Sequence, Union

from protocol.errors import PilotageError
from protocol.redaction import one_line

MAGIC = b"\x89SPD\r\n\x1a\n"
"""The first eight bytes. The odd ones are changed by a transfer in text mode or over seven bits, which is so found at once."""
END_MAGIC = b"\x89END\r\n\x1a\n"
FRAME_MAGIC, FRAME_END = b"FRM>", b"<FRM"
BLOCK_MAGIC, BLOCK_END = b"SLC>", b"<SLC"
VERSION = 1
TICK_PS = 100
"""The unit of all times in hits and frame clocks: 100 ps, so 10 ticks are one nanosecond."""
WORD_BYTES = 8
BLOCK_WORDS_MAX = 1 << 20
"""Most words in one block, 8 MiB: what bounds a reader's memory."""
SOURCES_MAX = 4096

_START = struct.Struct("<8sHH")  # the same in every version: magic, version, length of the header
_HEAD = struct.Struct("<8sHHBBHIIIIIIQQQQQI")
_SOURCE = struct.Struct("<IHH")
_TAIL = struct.Struct("<8sQII")
_FRAME = struct.Struct("<4sHHQIIQQQI")
_CLOCK = struct.Struct("<IIQ")
_FRAME_TAIL = struct.Struct("<4sIQII")
_CRC = struct.Struct("<I")
_N_SOURCES = struct.Struct("<H")
BLOCK_HEAD = struct.Struct("<4sIII")
BLOCK_TAIL = struct.Struct("<4sI")
HIT = struct.Struct("<BBHI")

FILE_TRAILER_BYTES = _TAIL.size
FRAME_TRAILER_BYTES = _FRAME_TAIL.size
BLOCK_BYTES = BLOCK_HEAD.size + BLOCK_TAIL.size
"""Bytes of a block without hits."""
_KEEPS_EMPTY = 1
_PIECE = 1 << 20

AnyPath = Union[str, "os.PathLike[str]"]
Bytes = Union[bytes, memoryview]
Progress = Callable[[int], None]
Crc32 = Callable[[Bytes, int], int]


class Kind(enum.Enum):
    """What the hits are: measured by the detector (the DAQ's files), or made by a Monte Carlo simulation."""

    RAW = "raw"
    SIMULATED = "simulated"


_KIND_CODES = {Kind.RAW: 1, Kind.SIMULATED: 2}
_KINDS = {code: kind for kind, code in _KIND_CODES.items()}


class Role(enum.Enum):
    """What a module measures; every module has one source id."""

    FRAME_CLOCK = "frame clock"
    BUNCH_CROSSING = "bunch crossing"
    DETECTOR = "detector"


_ROLE_CODES = {Role.FRAME_CLOCK: 1, Role.BUNCH_CROSSING: 2, Role.DETECTOR: 3}
_ROLES = {code: role for role, code in _ROLE_CODES.items()}


@dataclass(frozen=True)
class Source:
    """One row of the file header's table of modules."""

    source_id: int
    role: Role
    channels: int


@dataclass(frozen=True)
class Clock:
    """When a frame began, as one frame clock module measured it: ticks since the start of the run."""

    source_id: int
    start_ticks: int


class Hit(NamedTuple):
    """One data word. `time_ticks` counts from the start of the slice; `truth` is the simulated particle (0: none, and in raw data)."""

    time_ticks: int
    channel: int
    width_ns: int
    truth: int


class Block(NamedTuple):
    """The hits of one module in one slice; `words` holds 8 bytes per hit, for `hits()`."""

    source_id: int
    slice_number: int
    words: memoryview


@dataclass(frozen=True)
class FileHeader:
    """What a file says of itself. The last four are filled in by `Writer.close()`; size 0 marks a file that was never finished."""

    kind: Kind
    run: int
    chunk: int
    builder: int
    slice_ns: int
    frame_slices: int
    sources: tuple[Source, ...]
    seed: int = 0
    keeps_empty: bool = False
    size: int = 0
    frames: int = 0
    blocks: int = 0
    words: int = 0

    @property
    def length(self) -> int:
        """Bytes of the header itself."""
        return _HEAD.size + _SOURCE.size * len(self.sources) + _CRC.size

    def pack(self) -> bytes:
        head = _HEAD.pack(
            MAGIC, VERSION, self.length,
            _KIND_CODES[self.kind], _KEEPS_EMPTY if self.keeps_empty else 0, len(self.sources),
            self.run, self.chunk, self.builder, self.slice_ns, self.frame_slices, TICK_PS,
            self.seed, self.size, self.frames, self.blocks, self.words, 0,
        )  # fmt: skip
        table = (_SOURCE.pack(each.source_id, _ROLE_CODES[each.role], each.channels) for each in self.sources)
        return _sealed(head + b"".join(table))


@dataclass(frozen=True)
class FrameHeader:
    """One frame, or the part of it that lies in this file: slices `first_slice` … `first_slice + slices - 1` of frame `number`.

    A part that ends before the file header's `frame_slices` goes on in the builder's next chunk, at the next slice.
    """

    number: int
    first_slice: int
    slices: int
    clocks: tuple[Clock, ...]
    payload_bytes: int = 0
    blocks: int = 0
    words: int = 0

    @property
    def length(self) -> int:
        """Bytes of the header itself."""
        return frame_header_bytes(len(self.clocks))

    def pack(self) -> bytes:
        head = _FRAME.pack(
            FRAME_MAGIC, self.length, len(self.clocks), self.number, self.first_slice, self.slices,
            self.payload_bytes, self.blocks, self.words, 0,
        )  # fmt: skip
        clocks = (_CLOCK.pack(each.source_id, 0, each.start_ticks) for each in self.clocks)
        return _sealed(head + b"".join(clocks))


@dataclass(frozen=True)
class Summary:
    """What `check` and `verify` found in a good file; `frames` counts parts of frames too."""

    path: str
    size: int
    kind: Kind
    run: int
    chunk: int
    builder: int
    frames: int
    blocks: int
    words: int
    first_frame: Optional[int]
    last_frame: Optional[int]
    payload_verified: bool


def _shown(path: AnyPath) -> str:
    return one_line(os.fspath(path))


def frame_header_bytes(clocks: int) -> int:
    """Bytes of a frame header with so many frame clocks."""
    return _FRAME.size + _CLOCK.size * clocks + _CRC.size


def _sealed(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _seal(data: bytes) -> int:
    """The checksum at the end of a header. (The checksum over a header *and* its checksum is the same for all.)"""
    return int(_CRC.unpack(data[-_CRC.size :])[0])


def _is_sealed(data: bytes) -> bool:
    return _seal(data) == zlib.crc32(data[: -_CRC.size])


def hits(words: Union[bytes, memoryview]) -> Iterator[Hit]:
    """The data words of a block, decoded."""
    for truth, width, channel, time in HIT.iter_unpack(words):
        yield Hit(time, channel, width, truth)


def pack_block(source_id: int, slice_number: int, found: Sequence[Hit]) -> bytes:
    """One block with its header and trailer."""
    words = b"".join(HIT.pack(hit.truth, hit.width_ns, hit.channel, hit.time_ticks) for hit in found)
    head = BLOCK_HEAD.pack(BLOCK_MAGIC, source_id, slice_number, len(found))
    return head + words + BLOCK_TAIL.pack(BLOCK_END, len(found))


# -- reading --------------------------------------------------------------------------------------------------------------


class _Input:
    """A stream of which every byte wanted must be there; knows where it is and how the file is called."""

    def __init__(self, stream: BinaryIO, offset: int = 0, progress: Optional[Progress] = None) -> None:
        self.stream, self.offset, self.progress = stream, offset, progress
        name = getattr(stream, "name", None)
        self.label = _shown(name) if isinstance(name, (str, os.PathLike)) else "the stream"

    def fail(self, error: str, detail: str) -> NoReturn:
        raise PilotageError(error, f"{self.label}: {detail}")

    def corrupt(self, detail: str, offset: Optional[int] = None) -> NoReturn:
        self.fail("SPD_FILE_CORRUPT", f"{detail} (at byte {self.offset if offset is None else offset})")

    def at_most(self, wanted: int) -> bytes:
        """So many bytes, or all that are left. Callers ask for a bounded number, never for a length read from the file."""
        data = self.stream.read(wanted)
        while len(data) < wanted:
            more = self.stream.read(wanted - len(data))
            if not more:
                break
            data += more
        self._moved(len(data))
        return data

    def exactly(self, wanted: int, what: str) -> bytes:
        """So many bytes, or SPD_FILE_TRUNCATED."""
        data = self.at_most(wanted)
        if len(data) < wanted:
            self.ends_in(what)
        return data

    def ends_in(self, what: str) -> NoReturn:
        self.fail("SPD_FILE_TRUNCATED", f"ends at byte {self.offset}, inside {what}")

    def skip(self, wanted: int, what: str) -> None:
        """Go past bytes that the caller knows to be inside the file; by seeking where that is possible."""
        if self.stream.seekable():
            self.stream.seek(wanted, os.SEEK_CUR)
            self._moved(wanted)
            return
        while wanted:
            wanted -= len(self.exactly(min(wanted, _PIECE), what))

    def _moved(self, by: int) -> None:
        self.offset += by
        if self.progress is not None:
            self.progress(by)

    def size(self) -> Optional[int]:
        """Bytes of the whole file, or None of a pipe."""
        if not self.stream.seekable():
            return None
        here = self.stream.tell()
        end = self.stream.seek(0, os.SEEK_END)
        self.stream.seek(here)
        return self.offset + end - here


def opened(path: AnyPath) -> BinaryIO:
    """The file, open for reading. An OSError (no such file, not readable) passes through.

    What is no plain file is SPD_FILE_FOREIGN and not opened: on a pipe that would wait for its writer.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise PilotageError("SPD_FILE_FOREIGN", f"{_shown(path)}: is not a plain file")
    return open(path, "rb")


def read_header(stream: BinaryIO) -> FileHeader:
    """The file header; the stream stands at the file's first byte and then behind the header."""
    source = _Input(stream)
    data = source.at_most(_HEAD.size)
    _check_magic(source, data)
    if len(data) < _HEAD.size:
        source.ends_in("the file header")
    version, length, n_sources, expected = _first_numbers(data)
    if (
        version == VERSION
        and (length != expected or n_sources > SOURCES_MAX)
        or length < _HEAD.size + _CRC.size
    ):
        source.corrupt(f"the file header is {length} bytes long and names {n_sources} sources", 10)
    data += source.exactly(length - _HEAD.size, "the file header")
    if not _is_sealed(data):
        source.corrupt("the checksum of the file header is wrong", 0)
    if version != VERSION:
        source.fail("SPD_FILE_FOREIGN", f"has format version {version}; this program reads version {VERSION}")
    return _unpack_header(source, data)


def _first_numbers(data: bytes) -> tuple[int, int, int, int]:
    """Version, length of the header, number of sources, and the length that this number of sources gives."""
    _, version, length = _START.unpack_from(data)
    n_sources = int(_N_SOURCES.unpack_from(data, 14)[0])
    return version, length, n_sources, _HEAD.size + _SOURCE.size * n_sources + _CRC.size


def _check_magic(source: _Input, data: bytes) -> None:
    """Tell apart: no .spd file, one that ends within its first bytes, and one whose first bytes were damaged."""
    found = data[: len(MAGIC)]
    if not data:
        source.fail("SPD_FILE_TRUNCATED", "is empty")
    if found == MAGIC:
        return
    if MAGIC.startswith(found):
        source.ends_in("the file header")
    if found[1:4] == MAGIC[1:4]:
        source.corrupt("its first bytes are damaged, as by a transfer in text mode", 0)
    if len(data) == _HEAD.size:
        version, length, _, expected = _first_numbers(data)
        if (version, length) == (VERSION, expected):
            source.corrupt("its first bytes are damaged", 0)
    source.fail("SPD_FILE_FOREIGN", f"does not begin like an .spd file but with {ascii(found)[1:]}")


def _unpack_header(source: _Input, data: bytes) -> FileHeader:
    """Fields to header; the checksum was right, so what is impossible here was written so."""
    (_, _, _, kind, flags, _, run, chunk, builder, slice_ns, frame_slices, tick,
     seed, size, frames, blocks, words, _) = _HEAD.unpack_from(data)  # fmt: skip
    if kind not in _KINDS:
        source.corrupt(f"the file header names the unknown kind of data {kind}", 12)
    if not slice_ns or not frame_slices or tick != TICK_PS:
        source.corrupt(
            f"impossible lengths: slice {slice_ns} ns, frame {frame_slices} slices, tick {tick} ps", 28
        )
    sources = []
    for source_id, role, channels in _SOURCE.iter_unpack(data[_HEAD.size : -_CRC.size]):
        if role not in _ROLES:
            source.corrupt(f"source {source_id} has the unknown role {role}", _HEAD.size)
        sources.append(Source(source_id, _ROLES[role], channels))
    if len({each.source_id for each in sources}) != len(sources):
        source.corrupt("two sources have the same id", _HEAD.size)
    return FileHeader(
        _KINDS[kind], run, chunk, builder, slice_ns, frame_slices, tuple(sources), seed,
        bool(flags & _KEEPS_EMPTY), size, frames, blocks, words,
    )  # fmt: skip


def frames(stream: BinaryIO, header: FileHeader, progress: Optional[Progress] = None) -> Iterator[Frame]:
    """The frames in order; the stream stands behind the file header. Payloads that are not asked for are skipped unread.

    Damage is told where it is met, so a file is known to be good only when the iteration has come to its end.
    """
    source = _Input(stream, header.length, progress)
    _check_size(source, header)
    roles = {each.source_id: each.role for each in header.sources}
    expected: Optional[tuple[int, int]] = None
    blocks = words = 0
    for _ in range(header.frames):
        frame = Frame(source, header, roles)
        expected = _check_sequence(source, frame, header, expected)
        yield frame
        frame.finish()
        blocks += frame.header.blocks
        words += frame.header.words
    if (blocks, words) != (header.blocks, header.words):
        source.corrupt(
            f"frames hold {blocks} blocks, {words} hits; the file header says {header.blocks}, {header.words}"
        )
    _read_trailer(source, header)


def _check_size(source: _Input, header: FileHeader) -> None:
    if header.size == 0:
        source.fail("SPD_FILE_TRUNCATED", "was never finished by its writer")
    actual = source.size()
    if actual is not None and actual < header.size:
        source.fail("SPD_FILE_TRUNCATED", f"has {actual} of {header.size} bytes")
    if actual is not None and actual > header.size:
        source.corrupt(
            f"goes on after its end: it has {actual} bytes, its header says {header.size}", header.size
        )
    smallest = frame_header_bytes(0) + FRAME_TRAILER_BYTES
    if header.length + smallest * header.frames + FILE_TRAILER_BYTES > header.size:
        source.corrupt(f"the file header counts {header.frames} frames, too many for {header.size} bytes", 56)


def _check_sequence(
    source: _Input, frame: Frame, header: FileHeader, expected: Optional[tuple[int, int]]
) -> tuple[int, int]:
    """Frames follow each other without a gap; give back where the next one has to begin: its number and first slice."""
    here = frame.header
    end = here.first_slice + here.slices
    if not here.slices or end > header.frame_slices:
        source.corrupt(f"frame {here.number} has slices {here.first_slice} to {end - 1}", frame.offset)
    if expected is not None and (here.number, here.first_slice) != expected:
        found = f"frame {here.number} slice {here.first_slice}"
        source.corrupt(f"{found} follows where frame {expected[0]} slice {expected[1]} is due", frame.offset)
    return (here.number + 1, 0) if end == header.frame_slices else (here.number, end)


def _read_trailer(source: _Input, header: FileHeader) -> None:
    at = source.offset
    if at + FILE_TRAILER_BYTES != header.size:
        source.corrupt(
            f"the frames end at byte {at}, the file header says {header.size - FILE_TRAILER_BYTES}"
        )
    data = source.exactly(FILE_TRAILER_BYTES, "the file trailer")
    magic, size, head_crc, _ = _TAIL.unpack(data)
    if magic != END_MAGIC or not _is_sealed(data):
        source.corrupt("the file trailer is damaged", at)
    if (size, head_crc) != (header.size, _seal(header.pack())):
        source.corrupt("the file trailer belongs to another file header", at)


class Frame:
    """One frame of a file being read: its header now, its blocks if asked for before the next frame is."""

    def __init__(self, source: _Input, header: FileHeader, roles: dict[int, Role]) -> None:
        self._source, self._roles, self.offset = source, roles, source.offset
        self.header = _read_frame_header(source, header, roles)
        room = header.size - FILE_TRAILER_BYTES - FRAME_TRAILER_BYTES - source.offset
        if self.header.payload_bytes > room:
            claimed = self.header.payload_bytes
            source.corrupt(
                f"frame {self.header.number} claims {claimed} bytes, {max(0, room)} are left", self.offset
            )
        self._left = self.header.payload_bytes
        self._crc = 0
        self.verified = False
        """True once all blocks were read and the checksum was found right."""

    def blocks(self) -> Iterator[Block]:
        """The blocks in order, read piece by piece; to be used once."""
        buffer = memoryview(b"")
        blocks = words = 0
        while True:
            used = 0
            for block, end in self._whole_blocks(buffer):
                used = end
                blocks += 1
                words += len(block.words) // WORD_BYTES
                yield block
            rest = buffer[used:]
            if not self._left:
                break
            buffer = memoryview(bytes(rest) + self._piece())
        if rest:
            self._source.corrupt(
                f"frame {self.header.number} ends with {len(rest)} bytes that are no whole block"
            )
        if (blocks, words) != (self.header.blocks, self.header.words):
            said = f"{self.header.blocks} blocks, {self.header.words} hits"
            self._source.corrupt(
                f"frame {self.header.number} holds {blocks} blocks, {words} hits; it says {said}"
            )
        self.verified = True

    def _piece(self) -> bytes:
        data = self._source.exactly(min(self._left, _PIECE), f"frame {self.header.number}")
        self._left -= len(data)
        self._crc = zlib.crc32(data, self._crc)
        return data

    def _whole_blocks(self, buffer: memoryview) -> Iterator[tuple[Block, int]]:
        """The blocks that lie in the buffer wholly, each with the place behind it."""
        at, end = 0, len(buffer)
        first, last = self.header.first_slice, self.header.first_slice + self.header.slices - 1
        unpack, head = BLOCK_HEAD.unpack_from, BLOCK_HEAD.size
        while end - at >= BLOCK_BYTES:
            magic, source_id, slice_number, count = unpack(buffer, at)
            if magic != BLOCK_MAGIC or count > BLOCK_WORDS_MAX:
                self._bad_block(end - at, "is damaged")
            if source_id not in self._roles:
                self._bad_block(
                    end - at, f"comes from source {source_id}, which the file header does not name"
                )
            if not first <= slice_number <= last:
                self._bad_block(end - at, f"is of slice {slice_number}, outside {first} to {last}")
            stop = at + head + WORD_BYTES * count
            if stop + BLOCK_TAIL.size > end:
                if stop + BLOCK_TAIL.size > end + self._left:
                    self._bad_block(end - at, f"claims {count} hits, more than the frame has room for")
                return
            if BLOCK_TAIL.unpack_from(buffer, stop) != (BLOCK_END, count):
                self._bad_block(end - at, "has a wrong trailer")
            words = buffer[at + head : stop]
            at = stop + BLOCK_TAIL.size
            yield Block(source_id, slice_number, words), at
            first = slice_number

    def _bad_block(self, before: int, what: str) -> NoReturn:
        """`before`: how many bytes before the stream's present place the block begins."""
        self._source.corrupt(f"a block of frame {self.header.number} {what}", self._source.offset - before)

    def finish(self) -> None:
        """Go to the end of the frame and check its trailer; the payload's checksum too if all of it was read."""
        self._source.skip(self._left, f"frame {self.header.number}")
        at = self._source.offset
        data = self._source.exactly(FRAME_TRAILER_BYTES, f"the trailer of frame {self.header.number}")
        magic, payload_crc, number, slices, _ = _FRAME_TAIL.unpack(data)
        if magic != FRAME_END or not _is_sealed(data):
            self._source.corrupt(f"the trailer of frame {self.header.number} is damaged", at)
        if (number, slices) != (self.header.number, self.header.slices):
            self._source.corrupt(f"frame {self.header.number} has the trailer of frame {number}", at)
        if self.verified and payload_crc != self._crc:
            self._source.corrupt(f"the checksum of frame {number} is wrong", self.offset)


def _read_frame_header(source: _Input, header: FileHeader, roles: dict[int, Role]) -> FrameHeader:
    at = source.offset
    room = header.size - FILE_TRAILER_BYTES - FRAME_TRAILER_BYTES - at
    if room < frame_header_bytes(0):
        source.corrupt(f"a frame is due where {max(0, room)} bytes are left", at)
    data = source.exactly(_FRAME.size, "a frame header")
    magic, length, n_clocks, number, first_slice, slices, payload, blocks, words, _ = _FRAME.unpack(data)
    if magic != FRAME_MAGIC or length != frame_header_bytes(n_clocks) or length > room:
        source.corrupt("a frame header is damaged", at)
    data += source.exactly(length - _FRAME.size, "a frame header")
    if not _is_sealed(data):
        source.corrupt("the checksum of a frame header is wrong", at)
    clocks = tuple(
        Clock(source_id, start) for source_id, _, start in _CLOCK.iter_unpack(data[_FRAME.size : -_CRC.size])
    )
    for clock in clocks:
        if roles.get(clock.source_id) is not Role.FRAME_CLOCK:
            source.corrupt(
                f"frame {number} has a time of source {clock.source_id}, which is no frame clock", at
            )
    return FrameHeader(number, first_slice, slices, clocks, payload, blocks, words)


def unfinished(path: AnyPath) -> str:
    """Why a file is known to be still written, or left by a writer that died, in words; "" for a whole one, and for what is no such file.

    Two short reads: the header says the size, which is written last of all, and at that size lies the end mark.
    """
    with opened(path) as stream:
        head = stream.read(_HEAD.size)
        if len(head) < len(MAGIC) and MAGIC.startswith(head):
            return "it has no header yet"
        version = head[len(MAGIC) :][:2]
        if not head.startswith(MAGIC) or not VERSION.to_bytes(2, "little").startswith(version):
            return ""
        size = int(_HEAD.unpack(head)[13]) if len(head) == _HEAD.size else 0
        if not size:
            return "its end mark is missing"
        actual = stream.seek(0, os.SEEK_END)
        if actual < size:
            return f"it has {actual} of {size} bytes"
        stream.seek(size - FILE_TRAILER_BYTES)
        return "" if stream.read(len(END_MAGIC)) == END_MAGIC else "its end mark is missing"


def check(path: AnyPath, kind: Optional[Kind] = None) -> Summary:
    """Quickly: all headers and trailers, the size, the kind. Payloads are not read, so this costs the same for 2 GiB as for 2 MiB."""
    return _examine(path, kind, False, None)


def verify(path: AnyPath, kind: Optional[Kind] = None, progress: Optional[Progress] = None) -> Summary:
    """Every byte: what `check` does, each block, each payload's checksum. `progress` is told the bytes done since it was last told."""
    return _examine(path, kind, True, progress)


def _examine(path: AnyPath, kind: Optional[Kind], payload: bool, progress: Optional[Progress]) -> Summary:
    first: Optional[int] = None
    last: Optional[int] = None
    with opened(path) as stream:
        header = read_header(stream)
        if kind is not None and header.kind is not kind:
            found = f"holds {header.kind.value} data, not {kind.value}"
            raise PilotageError("SPD_WRONG_KIND", f"{_shown(path)}: {found}")
        for frame in frames(stream, header, progress):
            if payload:
                for _ in frame.blocks():
                    pass
            last = frame.header.number
            first = last if first is None else first
    return Summary(
        os.fspath(path), header.size, header.kind, header.run, header.chunk, header.builder,
        header.frames, header.blocks, header.words, first, last, payload,
    )  # fmt: skip


# -- writing --------------------------------------------------------------------------------------------------------------


class Writer:
    """Writes one file into a seekable stream, frame by frame; lengths and counts are put into the headers afterwards.

    Until `close()` the file header says size 0, so that a file whose writer died is known as such. `crc32` sums payloads, for
    writers that know a quicker one than zlib's.
    """

    def __init__(self, stream: BinaryIO, header: FileHeader, crc32: Crc32 = zlib.crc32) -> None:
        self._stream, self._crc32 = stream, crc32
        self._header = replace(header, size=0, frames=0, blocks=0, words=0)
        self._frame: Optional[FrameHeader] = None
        self._crc = 0
        self.size = 0
        """Bytes written so far."""
        self._put(self._header.pack())

    def _put(self, data: Bytes) -> None:
        self._stream.write(data)
        self.size += len(data)

    def _put_at(self, offset: int, data: bytes) -> None:
        self._stream.seek(offset)
        self._stream.write(data)
        self._stream.seek(self.size)

    def begin_frame(self, frame: FrameHeader) -> None:
        """Start a frame; its `payload_bytes`, `blocks` and `words` are counted here."""
        self._frame = replace(frame, payload_bytes=0, blocks=0, words=0)
        self._crc = 0
        self._put(self._frame.pack())

    def write_blocks(self, data: Bytes, blocks: int, words: int) -> None:
        """Whole blocks, as `pack_block` makes them, with their number and that of the hits in them."""
        assert self._frame is not None, "blocks lie in frames"
        self._crc = self._crc32(data, self._crc)
        self._put(data)
        frame = self._frame
        self._frame = replace(
            frame,
            payload_bytes=frame.payload_bytes + len(data),
            blocks=frame.blocks + blocks,
            words=frame.words + words,
        )

    def end_frame(self) -> FrameHeader:
        frame = self._frame
        assert frame is not None, "no frame is open"
        self._put_at(self.size - frame.payload_bytes - frame.length, frame.pack())
        tail = _FRAME_TAIL.pack(FRAME_END, self._crc, frame.number, frame.slices, 0)
        self._put(_sealed(tail[: -_CRC.size]))
        header = self._header
        self._header = replace(
            header,
            frames=header.frames + 1,
            blocks=header.blocks + frame.blocks,
            words=header.words + frame.words,
        )
        self._frame = None
        return frame

    def close(self) -> FileHeader:
        """Write the file trailer and put the true numbers into the file header; the stream stays open."""
        assert self._frame is None, "a frame is open"
        self._header = replace(self._header, size=self.size + FILE_TRAILER_BYTES)
        head = self._header.pack()
        tail = _TAIL.pack(END_MAGIC, self._header.size, _seal(head), 0)
        self._put(_sealed(tail[: -_CRC.size]))
        self._put_at(0, head)
        return self._header
