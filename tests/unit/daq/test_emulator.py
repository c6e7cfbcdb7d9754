"""The emulator's files: the same for the same seed, never too large, whole or not there, and such that the reader likes them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from daq import emulator
from daq.config import DaqConfig
from daq.emulator import FilePlan, Written, plan, write_file
from daq.layout import BUNCH_SPACING_TICKS, CHANNELS, Layout
from protocol import spd
from protocol.errors import PilotageError
from protocol.spd import Kind

FORMAT = Path(__file__).parents[3] / "docs" / "spd-format.md"
SMALL = DaqConfig(data_file_size_limit=64 << 10)


class Found(NamedTuple):
    """A file read wholly."""

    header: spd.FileHeader
    frames: list[spd.FrameHeader]
    blocks: list[tuple[int, int, int, list[spd.Hit]]]
    """Frame, slice, source, hits."""


def read(path: str | Path) -> Found:
    spd.verify(path)
    frames, blocks = [], []
    with spd.opened(path) as stream:
        header = spd.read_header(stream)
        for frame in spd.frames(stream, header):
            frames.append(frame.header)
            for block in frame.blocks():
                hits = list(spd.hits(block.words))
                blocks.append((frame.header.number, block.slice_number, block.source_id, hits))
    return Found(header, frames, blocks)


def make(out: Path, config: DaqConfig = SMALL, **how: object) -> Written:
    return write_file(plan(config, out, 1, **how)[0])  # type: ignore[arg-type]


def content(out: Path, config: DaqConfig = SMALL, **how: object) -> bytes:
    return Path(make(out, config, force=True, **how).path).read_bytes()


def refusal(config: DaqConfig = SMALL, out: Path = Path("x"), files: int = 1, **how: object) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        plan(config, out, files, **how)  # type: ignore[arg-type]
    return caught.value


# -- what is refused --------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "run-000001-00001-00.spd").write_text("mine")
    error = refusal(out=tmp_path, files=3)
    assert error.name == "ALREADY_EXISTS"
    assert "run-000001-00001-00.spd" in error.detail
    assert "--force" in error.detail
    assert os.listdir(tmp_path) == ["run-000001-00001-00.spd"]


def test_a_dangling_link_is_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "run-000001-00000-00.spd").symlink_to(tmp_path / "nowhere")
    assert refusal(out=tmp_path).name == "ALREADY_EXISTS"


def test_force_writes_over_an_existing_file(tmp_path: Path) -> None:
    target = tmp_path / "run-000001-00000-00.spd"
    target.write_text("mine")
    make(tmp_path, force=True)
    assert spd.verify(target).chunk == 0


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_while_one_is_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    target = tmp_path / "run-000001-00000-00.spd"
    planned = plan(SMALL, tmp_path, 1)[0]

    def appear(_: int) -> None:
        target.write_text("mine")

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(PilotageError) as caught:
        write_file(planned, appear)
    assert caught.value.name == "ALREADY_EXISTS"
    assert os.listdir(tmp_path) == [target.name]
    assert target.read_text() == "mine"


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    assert spd.verify(make(tmp_path).path)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.ENOSPC, "NO_LOCAL_SPACE"), (errno.EDQUOT, "NO_LOCAL_SPACE"), (errno.EIO, "BAD_PATH")],
)
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, number: int, name: str) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(PilotageError) as caught:
        write_file(plan(SMALL, tmp_path, 1)[0], fail)
    assert caught.value.name == name
    assert os.strerror(number) in caught.value.detail
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        assert os.listdir(tmp_path)[0].endswith(".part")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(plan(SMALL, tmp_path, 1)[0], interrupt)
    assert os.listdir(tmp_path) == []


def test_an_output_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PilotageError) as caught:
        make(tmp_path / "out")
    assert caught.value.name == "BAD_PATH"


def test_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    plans = plan(replace(SMALL, data_file_size_limit=1 << 40), tmp_path / "a" / "b", 1000)
    with pytest.raises(PilotageError) as caught:
        emulator.check_space(plans)
    assert caught.value.name == "NO_LOCAL_SPACE"
    assert re.search(r"need up to 1e\+03 TiB|need up to 1000 TiB", caught.value.detail)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"files": 0}, "number of files must be 1 to 1000000, not 0"),
        ({"run": -1}, "run must be 0"),
        ({"run": 100_000_000}, "run must be 0 to 99999999"),
        ({"first_chunk": -5}, "first chunk must be 0"),
        ({"builders": 0}, "number of builders must be 1 to 10000"),
    ],
)
def test_numbers_out_of_range_are_refused(how: dict[str, int], says: str) -> None:
    error = refusal(**how)  # type: ignore[arg-type]
    assert error.name == "BAD_SETTINGS"
    assert says in error.detail


def test_a_name_format_that_gives_two_files_one_name_is_refused() -> None:
    config = replace(SMALL, data_file_name_format="%u%u%u.spd")
    error = refusal(config, files=144, builders=12)
    assert "two files the same name" in error.detail


def test_chunks_whose_times_would_not_fit_are_refused() -> None:
    config = replace(SMALL, data_file_size_limit=1 << 40)
    assert "too far into the run" in refusal(config, first_chunk=98_000_000).detail


@pytest.mark.parametrize("debug_mode", [False, True])
def test_a_size_limit_too_small_for_one_hit_is_refused_and_the_least_one_works(
    tmp_path: Path, debug_mode: bool
) -> None:
    config = replace(SMALL, data_file_size_limit=1, debug_mode=debug_mode)
    detail = refusal(config).detail
    least = int(re.findall(r"need (\d+) bytes", detail)[0])
    assert refusal(replace(config, data_file_size_limit=least - 1)).name == "BAD_SETTINGS"
    written = make(tmp_path, replace(config, data_file_size_limit=least))
    assert spd.verify(written.path).words == 1
    assert written.size == least


# -- the size limit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug_mode", [False, True])
@pytest.mark.parametrize("frame_length", [1, 3, 100_000])
def test_no_file_exceeds_its_limit(tmp_path: Path, debug_mode: bool, frame_length: int) -> None:
    for limit in (700, 1000, 5000, 9000, 12_345, 20_000, 100_000):
        for chunk in range(3):
            config = replace(
                SMALL, data_file_size_limit=limit, debug_mode=debug_mode, frame_length=frame_length
            )
            written = make(tmp_path / f"{limit}-{chunk}", config, first_chunk=chunk)
            assert written.size == os.path.getsize(written.path) <= limit
            assert spd.verify(written.path).words > 0


def test_hits_for_which_there_is_no_room_are_left_out_and_counted(tmp_path: Path) -> None:
    tight = make(tmp_path / "tight", replace(SMALL, data_file_size_limit=5000))
    assert tight.cut_hits > 0
    assert 5000 - spd.WORD_BYTES < tight.size <= 5000
    roomy = make(tmp_path / "roomy", replace(SMALL, data_file_size_limit=1 << 20))
    assert roomy.cut_hits == 0
    assert roomy.size > 0.85 * (1 << 20)


# -- the same and not the same ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_bytes_of_a_seed_stay_the_same_from_release_to_release(tmp_path: Path) -> None:
    # If this fails on purpose (another mixture of hits), say so in CHANGELOG.md: registered checksums of made files change.
    several_batches = replace(SMALL, data_file_size_limit=3_000_000)
    digest = hashlib.md5(content(tmp_path, several_batches), usedforsecurity=False)
    assert digest.hexdigest() == "a2553205e15b118e6f9e8ad0f4d53b52"


@pytest.mark.parametrize(
    "how",
    [{"run": 2}, {"first_chunk": 1}, {"kind": Kind.SIMULATED}],
)
def test_another_run_chunk_or_kind_gives_other_bytes(tmp_path: Path, how: dict[str, object]) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    make(one)
    written = make(other, **how)
    assert hits_of(read(one / "run-000001-00000-00.spd")) != hits_of(read(written.path))


def test_another_seed_or_builder_gives_other_hits(tmp_path: Path) -> None:
    plans = plan(SMALL, tmp_path, 2, builders=2)
    seeded = plan(replace(SMALL, random_seed=1), tmp_path / "seeded", 1)
    found = [hits_of(read(write_file(each).path)) for each in [*plans, *seeded]]
    assert found[0] != found[1]
    assert found[0] != found[2]


def hits_of(found: Found) -> list[list[spd.Hit]]:
    """The hits of detector modules, without their addresses."""
    return [hits for _, _, source, hits in found.blocks if source >= 2000]


def test_a_file_made_alone_is_the_one_made_among_others(tmp_path: Path) -> None:
    among = [Path(write_file(each).path) for each in plan(SMALL, tmp_path / "all", 6, builders=2)]
    alone = write_file(plan(SMALL, tmp_path / "one", 2, first_chunk=2, builders=2)[1])
    assert among[5].name == Path(alone.path).name
    assert among[5].read_bytes() == Path(alone.path).read_bytes()


# -- what is in them --------------------------------------------------------------------------------------------------------


def test_the_header_tells_how_the_file_was_made(tmp_path: Path) -> None:
    config = replace(
        SMALL, random_seed=99, slice_length=20_000, frame_clock_id=(5,), bunch_crossing_id=(6, 7)
    )
    header = read(make(tmp_path, config, run=3, first_chunk=4).path).header
    assert (header.kind, header.run, header.chunk, header.builder) == (Kind.RAW, 3, 4, 0)
    assert (header.seed, header.slice_ns, header.frame_slices) == (99, 20_000, 100_000)
    roles = {role: [each.source_id for each in header.sources if each.role is role] for role in spd.Role}
    assert roles[spd.Role.FRAME_CLOCK] == [5]
    assert roles[spd.Role.BUNCH_CROSSING] == [6, 7]
    assert roles[spd.Role.DETECTOR] == list(range(2000, 2008))


def test_builders_have_own_modules_and_avoid_the_ids_of_the_configuration(tmp_path: Path) -> None:
    config = replace(SMALL, frame_clock_id=(2003,))
    ids = [
        {each.source_id for each in Layout.of(config, Kind.RAW, builder).senders[1:]} for builder in range(3)
    ]
    assert [len(each) for each in ids] == [8, 8, 8]
    assert len(set.union(*ids)) == 24
    assert 2003 not in set.union(*ids)


def test_every_hit_lies_in_its_slice_and_names_a_channel_of_its_module(tmp_path: Path) -> None:
    for slice_length in (100, 10_000, 4_499_999):
        config = replace(SMALL, slice_length=slice_length, data_file_size_limit=1 << 20)
        blocks = read(make(tmp_path / str(slice_length), config).path).blocks
        hits = [hit for *_, source, found in blocks if source >= 2000 for hit in found]
        assert all(hit.time_ticks < slice_length * 10 and hit.channel < CHANNELS for hit in hits)
        # And they fill slice and channels evenly, or the bits were mixed up.
        assert 0.45 < sum(hit.time_ticks for hit in hits) / len(hits) / (slice_length * 10) < 0.55
        assert {hit.channel for hit in hits} == set(range(CHANNELS))
        assert len({hit.width_ns for hit in hits}) == 256


def test_bunch_crossings_come_every_76_nanoseconds_across_slices_and_files(tmp_path: Path) -> None:
    times = []
    for planned in plan(SMALL, tmp_path, 3):
        found = read(write_file(planned).path)
        for frame, slice_number, source, hits in found.blocks:
            begin = (frame * found.header.frame_slices + slice_number) * found.header.slice_ns * 10
            times += [begin + hit.time_ticks for hit in hits if source == 1004]
    assert len(times) > 1000
    assert {after - before for before, after in zip(times, times[1:], strict=False)} == {BUNCH_SPACING_TICKS}


@pytest.mark.parametrize("debug_mode", [False, True])
def test_debug_mode_keeps_the_blocks_without_hits(tmp_path: Path, debug_mode: bool) -> None:
    found = read(make(tmp_path, replace(SMALL, debug_mode=debug_mode)).path)
    assert found.header.keeps_empty is debug_mode
    empty = [hits for *_, hits in found.blocks if not hits]
    slices = found.frames[0].slices
    if debug_mode:
        assert empty
        assert len(found.blocks) == slices * 9
    else:
        assert not empty
        assert len(found.blocks) < slices * 9


@pytest.mark.parametrize("kind", list(Kind))
def test_only_simulated_hits_name_the_particle_that_made_them(tmp_path: Path, kind: Kind) -> None:
    found = read(make(tmp_path, kind=kind).path)
    assert found.header.kind is kind
    particles = {hit.truth for *_, hits in found.blocks for hit in hits}
    assert (particles == {0}) is (kind is Kind.RAW)


# -- frames over several files ----------------------------------------------------------------------------------------------


def test_a_frame_cut_by_the_size_limit_goes_on_in_the_next_chunk(tmp_path: Path) -> None:
    config = replace(SMALL, frame_length=8)
    parts, slices = [], set()
    for planned in plan(config, tmp_path, 6):
        found = read(write_file(planned).path)
        parts += [(frame.number, frame.first_slice, frame.slices) for frame in found.frames]
        slices |= {(frame, number) for frame, number, *_ in found.blocks}
    covered = [(number, first + offset) for number, first, length in parts for offset in range(length)]
    assert covered == [(index // 8, index % 8) for index in range(len(covered))]
    assert any(first for _, first, _ in parts), "a frame was cut"
    assert slices == set(covered)


def test_both_parts_of_a_cut_frame_begin_at_the_same_time(tmp_path: Path) -> None:
    starts: dict[int, set[tuple[spd.Clock, ...]]] = {}
    for planned in plan(replace(SMALL, frame_length=8), tmp_path, 6):
        for frame in read(write_file(planned).path).frames:
            starts.setdefault(frame.number, set()).add(frame.clocks)
    assert all(len(each) == 1 for each in starts.values())
    for number, clocks in starts.items():
        for clock in next(iter(clocks)):
            assert 0 <= clock.start_ticks - number * 8 * 100_000 < 10


# -- plans ------------------------------------------------------------------------------------------------------------------


def test_files_are_shared_out_among_builders_chunk_by_chunk() -> None:
    plans = plan(SMALL, Path("out"), 5, run=9, first_chunk=3, builders=2, builder_directories=True)
    assert [str(each.path) for each in plans] == [
        "out/builder-00/run-000009-00003-00.spd",
        "out/builder-01/run-000009-00003-01.spd",
        "out/builder-00/run-000009-00004-00.spd",
        "out/builder-01/run-000009-00004-01.spd",
        "out/builder-00/run-000009-00005-00.spd",
    ]


def test_the_temporary_name_is_hidden_and_short_enough(tmp_path: Path) -> None:
    long_name = "é" * 100 + "-%u-%u-%u"
    temporary = FilePlan(
        replace(SMALL, data_file_name_format=long_name), Kind.RAW, 1, 2, 3, tmp_path / "x"
    ).temporary(77)
    assert temporary.name.startswith(".")
    assert spd.verify(make(tmp_path, replace(SMALL, data_file_name_format=long_name)).path)


def test_progress_is_told_the_bytes_that_were_written(tmp_path: Path) -> None:
    told: list[int] = []
    written = write_file(plan(SMALL, tmp_path, 1)[0], told.append)
    assert 0.95 * written.size < sum(told) <= written.size


# -- the documentation ------------------------------------------------------------------------------------------------------


def dumped() -> Iterator[int]:
    dump = FORMAT.read_text(encoding="utf-8").split("<!-- dump -->")[1].split("<!-- end -->")[0]
    for line in re.findall(r"^[0-9a-f]{8}: ((?:[0-9a-f]{2} )+)", dump, re.MULTILINE):
        yield from bytes.fromhex(line)


def test_the_dump_in_the_documentation_is_the_file_that_its_command_writes(tmp_path: Path) -> None:
    assert bytes(dumped()) == content(tmp_path, DaqConfig(data_file_size_limit=900, slice_length=200))
