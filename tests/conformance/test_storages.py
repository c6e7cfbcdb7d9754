"""The same cases for every copytool across the network, against the real storage server."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

import copytools
from copytools import checksum
from copytools.base import CopyTool
from protocol.errors import PilotageError
from tests.filesystems import mounted
from tests.storages import STORAGES
from tests.storages.base import Storage
from tests.storages.tcp import before
from tests.users import place_for_all

MIB = 1024 * 1024
FOREVER = 60.0
SECONDS_NOT_MINUTES = 25.0
"""Five times what a tool promises for a storage that is down."""
IS_SOAK = os.environ.get("PILOTAGE_SOAK") == "1"
NAMES = ["two words", "Zürich-数据.spd", "100%.dat", "%41", "-rf", "a#b&c=d", "semi;colon", "'\"$(id)`"]


@pytest.fixture(scope="module", params=[pytest.param(name, id=name) for name in STORAGES])
def started(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with place_for_all() as place, STORAGES[request.param](place) as storage:
        yield storage


@pytest.fixture
def storage(started: Storage) -> Storage:
    started.clear()
    return started


@pytest.fixture
def tool(storage: Storage) -> CopyTool:
    return copytools.load(storage.tool, storage.options)


def through(storage: Storage, port: int) -> CopyTool:
    """The tool for files at `storage.through(port)`."""
    return copytools.load(storage.tool, storage.options_through(port))


@pytest.fixture
def node(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    return place


def write(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def all_below(place: Path) -> List[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def refused(action: Callable[[], object]) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        action()
    return caught.value


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


# -- what goes well -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
def test_a_file_goes_out_and_comes_in_with_its_checksums(
    tool: CopyTool, storage: Storage, node: Path, size: int
) -> None:
    path = write(node / "a.spd", size)
    expected = checksum.of(path, tool.algorithms)
    assert tool.copy_out(path, storage.url("scope/set/a.spd.17"), FOREVER) == expected
    assert storage.files() == {"scope/set/a.spd.17": size}
    assert storage.read("scope/set/a.spd.17") == path.read_bytes()
    assert tool.copy_in(storage.url("scope/set/a.spd.17"), node / "back", FOREVER) == expected
    assert (node / "back").read_bytes() == path.read_bytes()
    assert all_below(node) == ["a.spd", "back"]


@pytest.mark.parametrize("lfn", NAMES)
def test_unusual_names_are_only_names(tool: CopyTool, storage: Storage, node: Path, lfn: str) -> None:
    path = write(node / "a", 100)
    tool.copy_out(path, storage.url(lfn), FOREVER)
    assert storage.files() == {lfn: 100}
    tool.copy_in(storage.url(lfn), node / lfn, FOREVER)
    assert (node / lfn).read_bytes() == path.read_bytes()


@pytest.mark.timeout(1200)
def test_many_small_files_pass_through_one_tool_and_several_threads(
    tool: CopyTool, storage: Storage, node: Path
) -> None:
    def there_and_back(number: int) -> None:
        path = node / f"{number}"
        path.write_bytes(b"%d" % number)
        out = tool.copy_out(path, storage.url(f"scope/{number}.1"), FOREVER)
        assert out == tool.copy_in(storage.url(f"scope/{number}.1"), node / f"{number}.back", FOREVER)
        assert (node / f"{number}.back").read_bytes() == path.read_bytes()

    n_files = int(os.environ.get("PILOTAGE_SMALL_FILES", "1000" if IS_SOAK else "8"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(there_and_back, range(n_files)))
    assert len(storage.files()) == n_files


@pytest.mark.timeout(1200)
def test_a_large_file_goes_out_and_comes_in(storage: Storage, node: Path) -> None:
    """Larger than what a library sends at once; 2 GiB by `make soak`."""
    patient = {"silent_seconds": "120"} if "silent_seconds" in storage.options else {}
    tool = copytools.load(storage.tool, {**storage.options, **patient})
    wanted = int(os.environ.get("PILOTAGE_LARGE_MIB", "2048" if IS_SOAK else "20"))
    size = min(wanted, storage.most_mib) * MIB
    path = node / "a"
    with open(path, "wb") as file:
        for _ in range(0, size, 4 * MIB):
            file.write(os.urandom(4 * MIB))
    expected = tool.copy_out(path, storage.url("large.1"), 10 * FOREVER)
    assert storage.files() == {"large.1": size}
    path.unlink()
    assert tool.copy_in(storage.url("large.1"), node / "back", 10 * FOREVER) == expected


# -- what is there already, and what is not -----------------------------------------------------------------------------


def test_a_missing_input_is_told_so(tool: CopyTool, storage: Storage, node: Path) -> None:
    error = refused(lambda: tool.copy_in(storage.url("none/a"), node / "a", FOREVER))
    assert error.name == "INPUT_NOT_FOUND"
    assert all_below(node) == []


def test_a_missing_output_is_told_so(tool: CopyTool, storage: Storage, node: Path) -> None:
    error = refused(lambda: tool.copy_out(node / "a", storage.url("a.1"), FOREVER))
    assert error.name == "MISSING_OUTPUT"
    assert storage.files() == {}


def test_b05_only_a_plain_file_with_one_name_goes_out(tool: CopyTool, storage: Storage, node: Path) -> None:
    write(node / "a", 10)
    (node / "link").symlink_to(node / "a")
    os.mkfifo(node / "fifo")
    for name in ("link", "fifo"):
        error = refused(lambda name=name: tool.copy_out(node / name, storage.url("a.1"), FOREVER))  # type: ignore[misc]
        assert error.name == "OUTPUT_NOT_A_FILE", name
    os.link(node / "a", node / "second")
    assert refused(lambda: tool.copy_out(node / "a", storage.url("a.1"), FOREVER)).name == "OUTPUT_NOT_A_FILE"
    assert storage.files() == {}


def test_what_is_there_is_not_replaced_coming_in(tool: CopyTool, storage: Storage, node: Path) -> None:
    storage.write("a", b"theirs")
    (node / "a").write_bytes(b"ours")
    refused(lambda: tool.copy_in(storage.url("a"), node / "a", FOREVER))
    assert (node / "a").read_bytes() == b"ours"
    assert all_below(node) == ["a"]


@pytest.mark.parametrize("theirs", [b"other", b"longer than ours", b""], ids=["other", "longer", "empty"])
def test_another_file_of_that_name_is_refused_and_stays(
    tool: CopyTool, storage: Storage, node: Path, theirs: bytes
) -> None:
    (node / "a").write_bytes(b"ours!")
    storage.write("a.1", theirs)
    assert refused(lambda: tool.copy_out(node / "a", storage.url("a.1"), FOREVER)).name == "OUTPUT_EXISTS"
    assert storage.read("a.1") == theirs


def test_the_same_file_is_an_earlier_try_whose_answer_got_lost(
    tool: CopyTool, storage: Storage, node: Path
) -> None:
    path = write(node / "a", MIB)
    first = tool.copy_out(path, storage.url("a.1"), FOREVER)
    assert tool.copy_out(path, storage.url("a.1"), FOREVER) == first
    assert storage.read("a.1") == path.read_bytes()


def test_who_was_faster_by_a_moment_is_not_replaced(
    tool: CopyTool, storage: Storage, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not storage.never_replaces:
        pytest.skip("this storage can only be asked before what is there: enabled by one that refuses")
    storage.write("a.1", b"theirs")
    stored, is_first = tool.stored, [True]  # type: ignore[attr-defined]
    monkeypatch.setattr(
        tool, "stored", lambda *given: None if is_first and is_first.pop() else stored(*given)
    )
    error = refused(lambda: tool.copy_out(write(node / "a", 10), storage.url("a.1"), FOREVER))
    assert error.name == "OUTPUT_EXISTS", error
    assert storage.read("a.1") == b"theirs"


def test_who_has_no_right_is_told_so(tool: CopyTool, storage: Storage, node: Path) -> None:
    if storage.refused is None:
        pytest.skip("this storage gives everybody every right: there is nothing to refuse")
    mine = copytools.load(storage.tool, {**storage.options, **storage.refused_options})
    path = write(node / "a", 10)
    out = refused(lambda: mine.copy_out(path, f"{storage.refused}a.1", FOREVER))
    assert out.name == "STAGE_OUT_AUTHENTICATION", out
    into = refused(lambda: mine.copy_in(f"{storage.refused}a.1", node / "b", FOREVER))
    assert into.name == "STAGE_IN_AUTHENTICATION", into
    assert storage.files() == {} and all_below(node) == ["a"]


# -- trouble ------------------------------------------------------------------------------------------------------------


def test_f14_other_bytes_on_the_storage_than_were_sent_are_taken_away(
    tool: CopyTool, storage: Storage, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a bit had been flipped on the way: the checksum of what was read is another one than that of what was stored."""
    if not storage.tells_checksum:
        pytest.skip("this storage tells no checksum: the size is all that can be compared")
    path = write(node / "a", MIB)
    hashed = tool._hashed  # type: ignore[attr-defined]
    monkeypatch.setattr(
        tool,
        "_hashed",
        lambda *given: {name: "0" * len(value) for name, value in hashed(*given).items()},
    )
    error = refused(lambda: tool.copy_out(path, storage.url("a.1"), FOREVER))
    assert error.name == "STAGE_OUT_MISMATCH", error
    assert storage.files() == {}


def test_f14_a_storage_that_is_down_fails_within_seconds(storage: Storage, node: Path) -> None:
    port = closed_port()
    path, root, tool = write(node / "a", 10), storage.through(port), through(storage, port)
    began = time.monotonic()
    assert refused(lambda: tool.copy_in(f"{root}a", node / "b", FOREVER)).name == "STORAGE_UNREACHABLE"
    assert refused(lambda: tool.copy_out(path, f"{root}a.1", FOREVER)).name == "STORAGE_UNREACHABLE"
    assert time.monotonic() - began < 2 * SECONDS_NOT_MINUTES
    assert all_below(node) == ["a"]


def test_f14_a_storage_that_hangs_ends_with_the_time_limit(
    tool: CopyTool, storage: Storage, node: Path
) -> None:
    storage.write("in", b"x" * MIB)
    path = write(node / "a", MIB)
    storage.freeze()
    try:
        began = time.monotonic()
        into = refused(lambda: tool.copy_in(storage.url("in"), node / "b", 1.0))
        out = refused(lambda: tool.copy_out(path, storage.url("a.1"), 1.0))
        assert time.monotonic() - began < 2 * SECONDS_NOT_MINUTES
    finally:
        storage.thaw()
    assert into.name in ("STAGE_IN_TIMEOUT", "STORAGE_UNREACHABLE"), into
    assert out.name in ("STAGE_OUT_TIMEOUT", "STORAGE_UNREACHABLE"), out
    assert all_below(node) == ["a"]


def test_f14_a_copy_that_is_cut_in_the_middle_is_no_file(storage: Storage, node: Path) -> None:
    storage.write("in", os.urandom(4 * MIB))
    path = write(node / "a", 4 * MIB)
    with before(storage.port) as proxy:
        proxy.cut_after, root = MIB, storage.through(proxy.port)
        tool = through(storage, proxy.port)
        into = refused(lambda: tool.copy_in(f"{root}in", node / "b", 20))
        assert proxy.n_cut, "nothing was cut"
        n_cut = proxy.n_cut
        out = refused(lambda: tool.copy_out(path, f"{root}a.1", 20))
        assert proxy.n_cut > n_cut, "nothing was cut"
    assert into.name in ("STORAGE_UNREACHABLE", "STAGE_IN_FAILED", "STAGE_IN_TIMEOUT"), into
    assert out.name in ("STORAGE_UNREACHABLE", "STAGE_OUT_FAILED", "STAGE_OUT_TIMEOUT"), out
    assert all_below(node) == ["a"]
    assert set(storage.files()) == {"in"}, "what was begun is taken away again"


def test_a_copy_that_nobody_waits_for_any_more_ends_soon(storage: Storage, node: Path) -> None:
    storage.write("in", os.urandom(4 * MIB))
    over = threading.Event()
    with before(storage.port) as proxy:
        proxy.is_frozen = True
        threading.Timer(0.3, over.set).start()
        began = time.monotonic()
        tool = through(storage, proxy.port).until(over.is_set)
        refused(lambda: tool.copy_in(f"{storage.through(proxy.port)}in", node / "b", FOREVER))
        assert time.monotonic() - began < SECONDS_NOT_MINUTES
    assert all_below(node) == []


@pytest.mark.component("mount")
def test_f13_a_full_disk_of_the_node_is_told_so(tool: CopyTool, storage: Storage) -> None:
    storage.write("in", os.urandom(3 * MIB))
    with mounted("size=1m") as full:
        assert refused(lambda: tool.copy_in(storage.url("in"), full / "a", FOREVER)).name == "NO_LOCAL_SPACE"
        assert all_below(full) == []


@pytest.mark.parametrize("address", ["/../../etc/passwd", "/a/%2e%2e/%2e%2e/x", "/a%00b", "/a%0ab"])
def test_b25_addresses_that_lead_astray_are_refused(
    tool: CopyTool, storage: Storage, node: Path, address: str
) -> None:
    url = storage.root.rstrip("/") + address
    path = write(node / "b", 1)
    assert refused(lambda: tool.copy_in(url, node / "a", FOREVER)).name == "BAD_PATH"
    assert refused(lambda: tool.copy_out(path, url, FOREVER)).name == "BAD_PATH"
    assert storage.files() == {}
