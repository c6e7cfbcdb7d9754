"""The same cases for every copytool for mounted file systems: what comes in and goes out, what is refused, and what is left when it goes wrong.

A new tool is a name in TOOLS; those across the network are tested in test_storages.py. NFS itself cannot be mounted where these tests run (there is no NFS in their kernel): the tool
`nfs` works on a second file system instead, stale handles and late names are injected into its system calls with strace,
and what only a real server does (a silly rename, a lost reply) is not tested here.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import random
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import quote

import pytest

import copytools
from copytools import checksum, copying
from copytools.base import CopyTool
from protocol.errors import PilotageError
from tests.filesystems import mounted
from tests.storages import STORAGES

ROOT = Path(__file__).parent.parent.parent
COPYING = ("cp", "nfs")
"""Those that copy bytes both ways; the others link or move."""
TOOLS = (*COPYING, "ln", "mv")
"""Every tool but null, which copies nothing."""
WHERE = (
    *(("cp", "here"), ("cp", "elsewhere"), ("nfs", "elsewhere")),
    *(("ln", "here"), ("mv", "here"), ("mv", "elsewhere")),
)
"""Each tool, with its storage on the node's file system or on a second one."""
OPTIONS: Dict[str, Dict[str, str]] = {"cp": {}, "nfs": {"visible_seconds": "0"}, "ln": {}, "mv": {}}
MIB = 1024 * 1024
LARGE = copying.SMALL + 3 * MIB + 17
FOREVER = 60.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="enabled by running as root")


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The job's work directory."""
    place = tmp_path / "work"
    place.mkdir()
    return place


@pytest.fixture(params=WHERE, ids=["-".join(each) for each in WHERE])
def where(request: pytest.FixtureRequest) -> Tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def name(where: Tuple[str, str]) -> str:
    return where[0]


@pytest.fixture
def storage(where: Tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if where[1] == "elsewhere":
        place: Path = request.getfixturevalue("second_filesystem")
        assert place.stat().st_dev != tmp_path.stat().st_dev
        return place
    place = tmp_path / "storage"
    place.mkdir()
    return place


@pytest.fixture
def tool(name: str) -> CopyTool:
    return copytools.load(name, OPTIONS[name])


def url(path: Path) -> str:
    return f"file://{quote(str(path))}"


def write(path: Path, size: int, seed: int = 1) -> Path:
    """A file with `size` bytes, each mebibyte of them another one."""
    block = random.Random(seed).randbytes(MIB)
    with open(path, "wb") as file:
        for number in range(0, size, MIB):
            file.write((block[number // MIB :] + block[: number // MIB])[: size - number])
    return path


def digest(path: Path) -> str:
    md5 = hashlib.md5()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(MIB), b""):
            md5.update(block)
    return md5.hexdigest()


def all_below(place: Path) -> List[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def refused(action: Callable[[], object]) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        action()
    return caught.value


# -- the list -------------------------------------------------------------------------------------------------------


def test_every_tool_that_copies_passes_these_tests() -> None:
    across_the_network = {each.partition("-")[0] for each in STORAGES}
    assert set(copytools.names()) == {*TOOLS, *across_the_network, "null"}
    assert {name for name, _ in WHERE} == set(TOOLS) == set(OPTIONS)


# -- what goes well -------------------------------------------------------------------------------------------------

SIZES = (0, 1, 65_537, copying.BLOCK, 3 * MIB + 5)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_in_whole_with_its_checksums(
    tool: CopyTool, storage: Path, node: Path, size: int
) -> None:
    source = write(storage / "a.spd", size)
    learned = tool.copy_in(url(source), node / "a.spd", FOREVER)
    assert (node / "a.spd").read_bytes() == source.read_bytes()
    assert all_below(node) == ["a.spd"]
    assert learned == checksum.of(source, tool.algorithms)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_goes_out_whole_with_its_checksums(
    tool: CopyTool, storage: Path, node: Path, size: int
) -> None:
    path = write(node / "out.root", size)
    written, expected = path.read_bytes(), checksum.of(path, tool.algorithms)
    learned = tool.copy_out(path, url(storage / "out.root.17"), FOREVER)
    assert (storage / "out.root.17").read_bytes() == written
    assert all_below(storage) == ["out.root.17"]
    assert learned == expected
    assert path.exists() == (tool.name != "mv")


@pytest.mark.component("mount")
@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize("algorithms", ["blake3", "md5,adler32", "blake3, md5, adler32"])
def test_a_large_file_goes_there_and_back(name: str, node: Path, algorithms: str) -> None:
    """Large enough for the kernel's copy beside a hashing thread."""
    tool = copytools.load(name, {"checksums": algorithms})
    path = write(node / "big", LARGE)
    expected = checksum.of(path, tool.algorithms)
    with mounted("size=100m") as storage:
        assert tool.copy_out(path, url(storage / "big.1"), FOREVER) == expected
        assert tool.copy_in(url(storage / "big.1"), node / "back", FOREVER) == expected
        assert all_below(storage) == ["big.1"]
    assert digest(node / "back") == digest(path)


def test_a_large_file_is_copied_within_a_file_system(node: Path) -> None:
    """Where the kernel knows copy_file_range."""
    source = write(node / "big", LARGE)
    learned = copytools.load("cp", {"checksums": "md5"}).copy_in(url(source), node / "copy", FOREVER)
    assert learned == {"md5": digest(source)} == {"md5": digest(node / "copy")}


def test_all_algorithms_are_learned_at_once(name: str, storage: Path, node: Path) -> None:
    pytest.importorskip("blake3", reason="enabled by: pip install blake3")
    import blake3

    tool = copytools.load(name, {"checksums": "md5, adler32, blake3"})
    source = write(storage / "a", 2 * MIB)
    data = source.read_bytes()
    assert tool.copy_in(url(source), node / "a", FOREVER) == {
        "md5": hashlib.md5(data).hexdigest(),
        "adler32": f"{zlib.adler32(data):08x}",
        "blake3": blake3.blake3(data).hexdigest(),
    }


@pytest.mark.parametrize(
    "lfn",
    [
        "two words",
        "Zürich-数据.spd",
        "100%.dat",
        "%41",
        "-rf",
        "a#b?c=d&e",
        "semi;colon",
        "x" * 255,
        "\\",
        "'\"$(id)`",
    ],
)
def test_unusual_names_are_only_names(tool: CopyTool, storage: Path, node: Path, lfn: str) -> None:
    path = write(node / lfn, 1000)
    written = path.read_bytes()
    tool.copy_out(path, url(storage / lfn), FOREVER)
    assert all_below(storage) == [lfn]
    tool.copy_in(url(storage / lfn), node / "back", FOREVER)
    assert (node / "back").read_bytes() == written


def test_a_url_may_lie_under_the_nodes_data_root(name: str, storage: Path, node: Path) -> None:
    tool = copytools.load(name, {"data_root": str(storage)})
    path = write(node / "a", 10)
    written = path.read_bytes()
    tool.copy_out(path, "file:data/scope/set/a.3", FOREVER)
    assert (storage / "data/scope/set/a.3").read_bytes() == written


def test_a_thousand_small_files_pass_through_one_tool_and_several_threads(
    tool: CopyTool, storage: Path, node: Path
) -> None:
    def there_and_back(number: int) -> None:
        path = node / f"{number}"
        path.write_bytes(b"%d" % number)
        out = tool.copy_out(path, url(storage / "scope" / f"{number}.1"), FOREVER)
        assert out == tool.copy_in(url(storage / "scope" / f"{number}.1"), node / f"{number}.back", FOREVER)
        assert (node / f"{number}.back").read_bytes() == b"%d" % number

    gc.collect()  # what earlier tests left to the collector must not be closed in between
    open_before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(there_and_back, range(1000)))
    assert len(all_below(storage)) == 1001
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_an_output_is_readable_for_whom_the_umask_lets(tool: CopyTool, storage: Path, node: Path) -> None:
    path = write(node / "a", 10)
    path.chmod(0o700)
    before = os.umask(0o027)
    try:
        tool.copy_out(path, url(storage / "a.1"), FOREVER)
    finally:
        os.umask(before)
    assert stat.S_IMODE((storage / "a.1").stat().st_mode) == 0o640


def test_an_input_may_have_a_second_name(tool: CopyTool, storage: Path, node: Path) -> None:
    """The closer gives stored files plain names by hard links."""
    os.link(write(storage / "a.17", 10), storage / "a")
    tool.copy_in(url(storage / "a"), node / "a", FOREVER)


# -- what is there already, and what is not --------------------------------------------------------------------------


def test_a_missing_input_is_told_so(tool: CopyTool, storage: Path, node: Path) -> None:
    assert refused(lambda: tool.copy_in(url(storage / "no"), node / "a", FOREVER)).name == "INPUT_NOT_FOUND"
    assert refused(lambda: tool.copy_in(url(storage / "no/a"), node / "a", FOREVER)).name == "INPUT_NOT_FOUND"
    assert all_below(node) == []


def test_a_missing_output_is_told_so(tool: CopyTool, storage: Path, node: Path) -> None:
    assert refused(lambda: tool.copy_out(node / "no", url(storage / "a"), FOREVER)).name == "MISSING_OUTPUT"
    assert all_below(storage) == []


@pytest.mark.parametrize("seed", [1, 2], ids=["the same bytes", "other bytes"])
def test_an_input_replaces_nothing(tool: CopyTool, storage: Path, node: Path, seed: int) -> None:
    source, there = write(storage / "a", 500), write(node / "a", 500, seed)
    before = there.read_bytes(), there.stat().st_ino
    assert refused(lambda: tool.copy_in(url(source), there, FOREVER)).name == "STAGE_IN_FAILED"
    assert (there.read_bytes(), there.stat().st_ino) == before
    assert all_below(node) == ["a"]


def test_an_output_that_is_stored_already_is_a_success(tool: CopyTool, storage: Path, node: Path) -> None:
    path = write(node / "a", 3 * MIB)
    first = tool.copy_out(path, url(storage / "a.1"), FOREVER)
    inode = (storage / "a.1").stat().st_ino
    if not path.exists():
        write(path, 3 * MIB)
    assert tool.copy_out(path, url(storage / "a.1"), FOREVER) == first
    assert (storage / "a.1").stat().st_ino == inode
    assert all_below(storage) == ["a.1"]


@pytest.mark.parametrize("there", [b"", b"other bytes!", b"something longer than the output"])
def test_an_output_replaces_no_other_bytes(tool: CopyTool, storage: Path, node: Path, there: bytes) -> None:
    (node / "a").write_bytes(b"mine, bytes.")
    (storage / "a.1").write_bytes(there)
    error = refused(lambda: tool.copy_out(node / "a", url(storage / "a.1"), FOREVER))
    assert error.name == "OUTPUT_EXISTS"
    assert (storage / "a.1").read_bytes() == there
    assert all_below(storage) == ["a.1"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "FIFO"])
def test_an_output_replaces_and_follows_nothing_else(
    tool: CopyTool, storage: Path, node: Path, kind: str
) -> None:
    path = write(node / "a", 100)
    target = storage / "a.1"
    make_strange(target, kind, write(node / "elsewhere", 100))
    assert refused(lambda: tool.copy_out(path, url(target), FOREVER)).name == "OUTPUT_EXISTS"
    assert all_below(storage) == ["a.1"]
    assert not stat.S_ISREG(target.lstat().st_mode)
    assert not (node / "nowhere").exists()


def test_directories_of_an_output_are_made_below_the_storage_only(
    tool: CopyTool, storage: Path, node: Path
) -> None:
    path = write(node / "a", 10)
    tool.copy_out(path, url(storage / "data/scope/set/a.1"), FOREVER)
    assert (storage / "data/scope/set/a.1").is_file()
    path = write(node / "b", 10)
    error = refused(lambda: tool.copy_out(path, url(storage / "typo/data/scope/set/a.1"), FOREVER))
    assert error.name == "STAGE_OUT_FAILED"
    assert "is the storage mounted" in error.detail
    assert not (storage / "typo").exists()


def test_a_file_in_the_place_of_a_directory_is_an_error(tool: CopyTool, storage: Path, node: Path) -> None:
    path = write(node / "a", 10)
    (storage / "scope").write_text("a file")
    assert (
        refused(lambda: tool.copy_out(path, url(storage / "scope/a.1"), FOREVER)).name == "STAGE_OUT_FAILED"
    )
    assert (
        refused(lambda: tool.copy_in(url(storage / "scope/a"), node / "b", FOREVER)).name == "INPUT_NOT_FOUND"
    )


def test_a_work_directory_is_not_made(tool: CopyTool, storage: Path, node: Path) -> None:
    source = write(storage / "a", 10)
    assert refused(lambda: tool.copy_in(url(source), node / "no/a", FOREVER)).name == "STAGE_IN_FAILED"
    assert all_below(node) == []


# -- the wrong kind of file (FAULTS B5) ------------------------------------------------------------------------------


def make_strange(path: Path, kind: str, other: Path) -> None:
    if kind == "link":
        path.symlink_to(other)
    elif kind == "dangling link":
        path.symlink_to(other.with_name("nowhere"))
    elif kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            # The name of a socket is limited to 107 bytes; the path is not.
            descriptor = os.open(path.parent, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{descriptor}/{path.name}")
            os.close(descriptor)
    elif kind == "device":
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


STRANGE = [
    "link",
    "dangling link",
    "directory",
    "FIFO",
    "socket",
    pytest.param("device", marks=as_root),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", STRANGE)
def test_b05_an_output_that_is_no_plain_file_is_refused(
    tool: CopyTool, storage: Path, node: Path, kind: str
) -> None:
    make_strange(node / "a", kind, write(node / "secret", 100))
    error = refused(lambda: tool.copy_out(node / "a", url(storage / "a.1"), FOREVER))
    assert error.name == "OUTPUT_NOT_A_FILE"
    assert kind.split()[-1] in error.detail
    assert all_below(storage) == []


def test_b05_an_output_with_a_second_name_is_refused(tool: CopyTool, storage: Path, node: Path) -> None:
    os.link(write(node / "secret", 100), node / "a")
    error = refused(lambda: tool.copy_out(node / "a", url(storage / "a.1"), FOREVER))
    assert error.name == "OUTPUT_NOT_A_FILE"
    assert "hard link" in error.detail
    assert all_below(storage) == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", STRANGE)
def test_b05_an_input_that_is_no_plain_file_is_refused(
    tool: CopyTool, storage: Path, node: Path, kind: str
) -> None:
    make_strange(storage / "a", kind, write(storage / "other", 100))
    error = refused(lambda: tool.copy_in(url(storage / "a"), node / "a", FOREVER))
    assert error.name == "STAGE_IN_FAILED"
    assert all_below(node) == []


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/self/maps", "/proc/self/mem"])
def test_b25_what_the_kernel_tells_about_the_pilot_is_no_input(name: str, node: Path, path: str) -> None:
    tool = copytools.load(name, OPTIONS[name])
    assert refused(lambda: tool.copy_in(f"file://{path}", node / "a", FOREVER)).name == "STAGE_IN_FAILED"
    assert all_below(node) == []


def test_b05_a_path_that_is_swapped_in_the_middle_changes_nothing(
    tool: CopyTool, storage: Path, node: Path
) -> None:
    """What was opened is copied and hashed, whatever the name leads to afterwards."""
    path = write(node / "a", 2 * MIB)
    expected, secret = path.read_bytes(), write(node / "secret", 2 * MIB, seed=2)

    def swap() -> None:
        path.rename(node / "away")
        path.symlink_to(secret)

    learned = with_interruption(tool, swap).copy_out(path, url(storage / "a.1"), FOREVER)
    assert (storage / "a.1").read_bytes() == expected
    assert learned == checksum.of(node / "away", tool.algorithms)


def test_b05_a_directory_that_is_swapped_for_a_link_does_not_lead_astray(
    tool: CopyTool, storage: Path, node: Path
) -> None:
    source = write(storage / "a", 2 * MIB)
    work, astray = node / "inputs", node / "astray"
    work.mkdir()
    astray.mkdir()

    def swap() -> None:
        work.rename(node / "away")
        work.symlink_to(astray)

    with_interruption(tool, swap).copy_in(url(source), work / "a", FOREVER)
    assert all_below(astray) == []
    assert (node / "away/a").read_bytes() == source.read_bytes()


def with_interruption(tool: CopyTool, action: Callable[[], object], after: int = 2) -> CopyTool:
    """The same tool; `action` happens once, in the middle of its copying: between its blocks it asks whether to stop."""
    asked = itertools.count(1)

    def ask() -> bool:
        if next(asked) == after:
            action()
        return False

    return tool.until(ask)


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_source_that_changes_while_it_is_copied_is_refused(
    tool: CopyTool, storage: Path, node: Path, change: str
) -> None:
    def do(path: Path) -> None:
        with open(path, "r+b") as file:
            if change == "grow":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            elif change == "shrink":
                file.truncate(MIB)
            else:
                file.write(b"other bytes")
                file.flush()
                os.utime(path, ns=(0, 0))  # its time may be that of the last tick else

    source, path = write(storage / "a", 3 * MIB), write(node / "b", 3 * MIB)
    coming = with_interruption(tool, lambda: do(source))
    assert refused(lambda: coming.copy_in(url(source), node / "a", FOREVER)).name == "STAGE_IN_FAILED"
    going = with_interruption(tool, lambda: do(path))
    assert refused(lambda: going.copy_out(path, url(storage / "b.1"), FOREVER)).name == "STAGE_OUT_FAILED"
    assert all_below(node) == ["b"]
    assert all_below(storage) == ["a"]


@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_a_large_source_that_changes_is_refused_as_well(
    tool: CopyTool, storage: Path, node: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SMALL", MIB)
    monkeypatch.setattr(copying, "SMALL_FOR_MD5", MIB)
    monkeypatch.setattr(copying, "STRIDE", MIB)
    source = write(storage / "a", 5 * MIB)

    def do() -> None:
        os.truncate(source, 9 * MIB if change == "grow" else 2 * MIB)

    coming = with_interruption(tool, do, after=1)
    assert refused(lambda: coming.copy_in(url(source), node / "a", FOREVER)).name == "STAGE_IN_FAILED"
    assert all_below(node) == []


# -- many at once ----------------------------------------------------------------------------------------------------


def test_f15_of_two_that_write_the_same_name_one_wins_whole(
    tool: CopyTool, storage: Path, node: Path
) -> None:
    paths = [write(node / f"{number}", 2 * MIB, seed=number) for number in range(6)]
    written = [path.read_bytes() for path in paths]
    start = threading.Barrier(len(paths))

    def store(path: Path) -> Optional[str]:
        start.wait(10)
        try:
            tool.copy_out(path, url(storage / "a.1"), FOREVER)
            return None
        except PilotageError as error:
            return error.name

    with ThreadPoolExecutor(len(paths)) as pool:
        outcomes = list(pool.map(store, paths))
    assert sorted(outcomes, key=str) == [None] + ["OUTPUT_EXISTS"] * 5
    assert (storage / "a.1").read_bytes() == written[outcomes.index(None)]
    assert [path.exists() for path in paths].count(False) == (tool.name == "mv"), "the losers have theirs"
    assert all_below(storage) == ["a.1"]


# -- the end of the time, and of the patience -------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True], ids=["one pass", "kernel and thread"])
def test_a_call_ends_with_its_time(
    tool: CopyTool, storage: Path, node: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(copying, "SMALL", 0)
        monkeypatch.setattr(copying, "SMALL_FOR_MD5", 0)
    source, path = write(storage / "a", 3 * MIB), write(node / "b", 3 * MIB)
    assert refused(lambda: tool.copy_in(url(source), node / "a", 0)).name == "STAGE_IN_TIMEOUT"
    assert refused(lambda: tool.copy_out(path, url(storage / "b.1"), 0)).name == "STAGE_OUT_TIMEOUT"
    assert (all_below(node), all_below(storage)) == (["b"], ["a"])


@pytest.mark.parametrize("large", [False, True], ids=["one pass", "kernel and thread"])
def test_a_call_that_nobody_waits_for_any_more_ends(
    tool: CopyTool, storage: Path, node: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(copying, "SMALL", 0)
        monkeypatch.setattr(copying, "SMALL_FOR_MD5", 0)
    monkeypatch.setattr(copying, "STRIDE", MIB)
    asked = iter([False, False, True])
    source = write(storage / "a", 5 * MIB)
    error = refused(lambda: tool.until(lambda: next(asked)).copy_in(url(source), node / "a", FOREVER))
    assert error.name == "STAGE_IN_FAILED"
    assert "stopped" in error.detail
    assert all_below(node) == []


# -- other processes: other rights, killed, and with system calls that fail --------------------------------------------

CHILD = """
import itertools, json, os, sys, time
import concurrent.futures, copytools
from copytools import copying
from pathlib import Path
from protocol.errors import PilotageError

wish = json.load(sys.stdin)
for key, value in wish["settings"].items():
    setattr(copying, key, value)
tool = copytools.load(wish["tool"], wish["options"])
if wish["user"]:
    os.setgroups([])
    os.setgid(wish["user"])
    os.setuid(wish["user"])

asked = itertools.count(1)
def ask():  # between two blocks: the parent kills us here
    if next(asked) == wish["halt_at"]:
        print("halted", flush=True)
        time.sleep(600)
    return False

first, second = wish["paths"]
try:
    call = getattr(tool.until(ask), wish["verb"])
    arguments = (first, Path(second)) if wish["verb"] == "copy_in" else (Path(first), second)
    print(json.dumps({"checksums": call(*arguments, wish["timeout"])}))
except PilotageError as error:
    print(json.dumps({"error": error.name, "detail": error.detail}))
"""
NOBODY = 65534


def start(
    tool: str,
    verb: str,
    source: object,
    target: object,
    *,
    wrapper: Sequence[object] = (),
    options: Optional[Dict[str, str]] = None,
    user: int = 0,
    halt_at: int = 0,
    settings: Optional[Dict[str, int]] = None,
    timeout: float = FOREVER,
) -> subprocess.Popen[str]:
    """One call of a tool in a process of its own. `settings` are constants of copying.py."""
    wish = {
        "tool": tool,
        "verb": verb,
        "paths": [str(source), str(target)],
        "options": OPTIONS[tool] if options is None else options,
        "user": user,
        "halt_at": halt_at,
        "settings": settings or {},
        "timeout": timeout,
    }
    process = subprocess.Popen(
        [*map(str, wrapper), sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(wish))
    process.stdin.close()
    process.stdin = None
    return process


def outcome(process: subprocess.Popen[str]) -> Dict[str, Any]:
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 0, text
    answer: Dict[str, Any] = json.loads(text)
    return answer


def in_child(*arguments: Any, **more: Any) -> Dict[str, Any]:
    return outcome(start(*arguments, **more))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that any user may enter."""
    with tempfile.TemporaryDirectory(prefix="pilotage-") as place:
        os.chmod(place, 0o755)
        yield Path(place)


@pytest.mark.parametrize("name", TOOLS)
def test_missing_rights_are_told_so(name: str, open_place: Path) -> None:
    user = NOBODY if os.geteuid() == 0 else 0
    storage, work = open_place / "storage", open_place / "work"
    for place in (storage, work):
        place.mkdir()
        place.chmod(0o755 if user else 0o555)
    readable, closed, own = (write(open_place / each, 100) for each in ("readable", "closed", "own"))
    closed.chmod(0)

    not_readable = in_child(name, "copy_in", url(closed), work / "a", user=user)
    assert not_readable["error"] == "INPUT_UNREADABLE"
    assert "Permission denied" in not_readable["detail"]
    assert in_child(name, "copy_in", url(readable), work / "a", user=user)["error"] == "NODE_UNFIT"
    assert in_child(name, "copy_out", own, url(storage / "a.1"), user=user)["error"] == "STAGE_OUT_FAILED"
    assert in_child(name, "copy_out", own, url(storage / "x/a.1"), user=user)["error"] == "STAGE_OUT_FAILED"
    assert (all_below(storage), all_below(work)) == ([], [])


@pytest.mark.parametrize("name", TOOLS)
def test_a_user_without_privileges_can_copy(name: str, open_place: Path) -> None:
    """A file without a name can be given one by anybody."""
    source = write(open_place / "a", 100)
    place = open_place / "anybody"
    place.mkdir()
    place.chmod(0o777)
    user = NOBODY if os.geteuid() == 0 else 0
    assert "checksums" in in_child(name, "copy_in", url(source), place / "a", user=user)
    os.chown(write(place / "b", 100), user or -1, -1)
    assert "checksums" in in_child(name, "copy_out", place / "b", url(place / "b.1"), user=user)
    assert {*all_below(place)} - {"b"} == {"a", "b.1"}


LARGE_WAY = {"SMALL": 0, "SMALL_FOR_MD5": 0, "STRIDE": MIB}
EITHER_WAY = pytest.mark.parametrize("settings", [{}, LARGE_WAY], ids=["one pass", "kernel and thread"])


@EITHER_WAY
@pytest.mark.parametrize("verb", ["copy_in", "copy_out"])
def test_what_is_killed_in_the_middle_leaves_no_file_of_that_name(
    name: str, storage: Path, node: Path, verb: str, settings: Dict[str, int]
) -> None:
    path, size = (storage, 5 * MIB) if verb == "copy_in" else (node, 5 * MIB)
    source, target = write(path / "a", size), (node if verb == "copy_in" else storage) / "b"
    written = source.read_bytes()
    paths = (url(source), target) if verb == "copy_in" else (source, url(target))
    process = start(name, verb, *paths, halt_at=3, settings=settings)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "halted\n"
        assert not target.exists()
    finally:
        process.kill()
        process.communicate()
    left = [each for each in all_below(target.parent) if each not in ("a", "b")]
    assert not target.exists()
    # A name of its own is left only where the file system must have one, and says which file it was to become.
    assert all(re.fullmatch(r"\.b\.[0-9a-f]{12}\.part", each) for each in left)
    assert (len(left) == 1) == (name == "nfs" and verb == "copy_out")
    assert source.read_bytes() == written, "for the next try"
    assert "checksums" in in_child(name, verb, *paths)
    assert target.read_bytes() == written


# -- file systems at their end ---------------------------------------------------------------------------------------


@EITHER_WAY
@pytest.mark.component("mount")
@pytest.mark.parametrize("name", COPYING)
def test_f13_a_full_disk_is_told_and_nothing_is_left(
    name: str, node: Path, settings: Dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in settings.items():
        monkeypatch.setattr(copying, key, value)
    tool, source = copytools.load(name, {}), write(node / "a", 3 * MIB)
    with mounted("size=1m") as full:
        assert refused(lambda: tool.copy_in(url(source), full / "a", FOREVER)).name == "NO_LOCAL_SPACE"
        assert refused(lambda: tool.copy_out(source, url(full / "a.1"), FOREVER)).name == "STAGE_OUT_FAILED"
        assert all_below(full) == []
        assert os.statvfs(full).f_bfree * os.statvfs(full).f_frsize >= MIB - 65536, (
            "the blocks are free again"
        )


@pytest.mark.component("mount")
@pytest.mark.parametrize("name", COPYING)
def test_f13_no_free_inode_is_told_as_well(name: str, node: Path) -> None:
    tool, source = copytools.load(name, {}), write(node / "a", 10)
    with mounted("size=1m,nr_inodes=2") as full:
        (full / "last").touch()
        assert refused(lambda: tool.copy_in(url(source), full / "a", FOREVER)).name == "NO_LOCAL_SPACE"
        assert refused(lambda: tool.copy_out(source, url(full / "a.1"), FOREVER)).name == "STAGE_OUT_FAILED"
        assert all_below(full) == ["last"]


@pytest.mark.component("mount")
@pytest.mark.parametrize("name", COPYING)
def test_f13_a_read_only_file_system_is_told_so(name: str, node: Path) -> None:
    tool, source = copytools.load(name, {}), write(node / "a", 10)
    with mounted("size=1m,ro") as place:
        assert refused(lambda: tool.copy_in(url(source), place / "a", FOREVER)).name == "NODE_UNFIT"
        error = refused(lambda: tool.copy_out(source, url(place / "a.1"), FOREVER))
        assert error.name == "STAGE_OUT_FAILED"
        assert "EROFS" in error.detail


# -- system calls that fail (strace) -----------------------------------------------------------------------------------


def failing(*injections: str, path: Optional[Path] = None) -> List[object]:
    """strace as a wrapper: "fsync:error=EIO:when=1"; with `path`, only calls that concern this file."""
    only = ["-P", path] if path else []
    return [
        "strace",
        "-qq",
        "-f",
        "-o",
        os.devnull,
        *only,
        *itertools.chain(*(("-e", f"inject={each}") for each in injections)),
    ]


@pytest.mark.component("strace")
@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize(
    ("verb", "injection", "settings", "expected"),
    [
        ("copy_in", "preadv,preadv2:error=EIO:when=2", {}, "STAGE_IN_FAILED"),
        ("copy_in", "sendfile:error=EIO:when=2", LARGE_WAY, "STAGE_IN_FAILED"),
        ("copy_in", "sendfile:error=EDQUOT:when=2", LARGE_WAY, "NO_LOCAL_SPACE"),
        ("copy_in", "sendfile:error=ESTALE", LARGE_WAY, "STORAGE_STALE"),
        ("copy_in", "preadv,preadv2:error=EIO:when=2", LARGE_WAY, "STAGE_IN_FAILED"),
        ("copy_in", "linkat:error=EIO", {}, "STAGE_IN_FAILED"),
        ("copy_out", "preadv,preadv2:error=EIO:when=2", {}, "STAGE_OUT_FAILED"),
        ("copy_out", "sendfile:error=ENOSPC:when=2", LARGE_WAY, "STAGE_OUT_FAILED"),
        ("copy_out", "sendfile:error=ETIMEDOUT:when=2", LARGE_WAY, "STAGE_OUT_TIMEOUT"),
        ("copy_out", "sendfile:error=EIO:when=2", LARGE_WAY, "STAGE_OUT_FAILED"),
        ("copy_out", "fsync:error=EIO:when=1", {}, "STAGE_OUT_FAILED"),
        ("copy_out", "fsync:error=EDQUOT:when=1", {}, "STAGE_OUT_FAILED"),
        ("copy_out", "fsync:error=EIO:when=2", {}, "STAGE_OUT_FAILED"),
        ("copy_out", "linkat:error=EIO", {}, "STAGE_OUT_FAILED"),
    ],
)
def test_f13_a_failing_system_call_fails_the_call_and_leaves_nothing(
    name: str,
    tmp_path: Path,
    second_filesystem: Path,
    verb: str,
    injection: str,
    settings: Dict[str, int],
    expected: str,
) -> None:
    source, target = write(tmp_path / "a", 4 * MIB), second_filesystem / "b"
    paths = (url(source), target) if verb == "copy_in" else (source, url(target))
    answer = in_child(name, verb, *paths, wrapper=failing(injection), settings=settings)
    assert answer.get("error") == expected, answer
    assert all_below(second_filesystem) == []


@pytest.mark.component("strace")
@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize(
    "injections",
    [
        ["copy_file_range:error=EXDEV", "sendfile:error=EINVAL"],
        ["copy_file_range:retval=0", "sendfile:error=ENOSYS"],
        ["copy_file_range:error=EXDEV:when=3+"],
    ],
    ids=["neither", "pretends", "stops in the middle"],
)
def test_a_file_system_that_cannot_copy_by_itself_is_served_by_reading_and_writing(
    name: str, tmp_path: Path, injections: List[str]
) -> None:
    source = write(tmp_path / "a", 5 * MIB + 1)
    answer = in_child(
        name, "copy_in", url(source), tmp_path / "b", wrapper=failing(*injections), settings=LARGE_WAY
    )
    assert answer["checksums"] == checksum.of(source, ["blake3"])
    assert (tmp_path / "b").read_bytes() == source.read_bytes()


@pytest.mark.component("strace")
def test_a_file_system_without_hard_links_is_served_by_a_rename_that_replaces_nothing(
    tmp_path: Path, second_filesystem: Path
) -> None:
    path = write(tmp_path / "a", 1000)
    answer = in_child(
        "nfs", "copy_out", path, url(second_filesystem / "a.1"), wrapper=failing("linkat:error=EPERM")
    )
    assert "checksums" in answer, answer
    (tmp_path / "other").write_bytes(b"other")
    answer = in_child(
        "nfs",
        "copy_out",
        tmp_path / "other",
        url(second_filesystem / "a.1"),
        wrapper=failing("linkat:error=EPERM"),
    )
    assert answer["error"] == "OUTPUT_EXISTS"
    assert (second_filesystem / "a.1").read_bytes() == path.read_bytes()
    assert all_below(second_filesystem) == ["a.1"]


# -- what NFS does ---------------------------------------------------------------------------------------------------


@pytest.mark.component("strace")
@pytest.mark.parametrize(
    ("name", "times", "expected"),
    [("nfs", "1..2", None), ("nfs", "1+", "STORAGE_STALE"), ("cp", "1", "STORAGE_STALE")],
)
def test_f14_nfs_opens_a_stale_input_again_but_not_for_ever(
    name: str, times: str, expected: Optional[str], node: Path, second_filesystem: Path
) -> None:
    source = write(second_filesystem / "a", 1000)
    wrapper = failing(f"openat:error=ESTALE:when={times}", path=source)
    answer = in_child(name, "copy_in", url(source), node / "a", wrapper=wrapper)
    assert answer.get("error") == expected, answer
    assert all_below(node) == ([] if expected else ["a"])


@pytest.mark.component("strace")
@pytest.mark.parametrize(("times", "expected"), [("1", None), ("1+", "STORAGE_STALE")])
def test_f14_a_handle_that_gets_stale_in_the_middle_begins_anew(
    times: str, expected: Optional[str], node: Path, second_filesystem: Path
) -> None:
    source = write(second_filesystem / "a", 4 * MIB)
    wrapper = failing(f"preadv,preadv2:error=ESTALE:when={times}", path=source)
    answer = in_child("nfs", "copy_in", url(source), node / "a", wrapper=wrapper)
    assert answer.get("error") == expected, answer
    assert all_below(node) == ([] if expected else ["a"])


@pytest.mark.component("strace")
@pytest.mark.parametrize("error", ["ESTALE", "ENOENT"])
@pytest.mark.parametrize(("times", "lasts"), [("1..2", False), ("1+", True)])
def test_f14_a_stored_output_that_is_not_visible_at_once_is_waited_for(
    error: str, times: str, lasts: bool, node: Path, second_filesystem: Path
) -> None:
    """The re-read opens the final name by its path; all before goes by the directory's descriptor."""
    path, target = write(node / "a", 1000), second_filesystem / "a.1"
    wrapper = failing(f"openat:error={error}:when={times}", path=target)
    answer = in_child(
        "nfs", "copy_out", path, url(target), wrapper=wrapper, options={"visible_seconds": "0.5"}
    )
    if lasts:
        assert answer["error"] == ("STORAGE_STALE" if error == "ESTALE" else "STAGE_OUT_FAILED")
        assert all_below(second_filesystem) == []
    else:
        assert answer["checksums"] == checksum.of(path, ["blake3"])
        assert all_below(second_filesystem) == ["a.1"]


def test_f14_nfs_waits_for_an_input_that_is_not_visible_yet(node: Path, second_filesystem: Path) -> None:
    source = second_filesystem / "late"
    writer = threading.Timer(0.5, lambda: write(second_filesystem / "x", 1000).rename(source))
    writer.start()
    try:
        learned = copytools.load("nfs", {"visible_seconds": "20"}).copy_in(url(source), node / "a", FOREVER)
    finally:
        writer.join()
    assert learned == checksum.of(source, ["blake3"])


def test_f14_nfs_does_not_wait_beyond_the_timeout(node: Path, second_filesystem: Path) -> None:
    tool = copytools.load("nfs", {"visible_seconds": "20"})
    error = refused(lambda: tool.copy_in(url(second_filesystem / "never"), node / "a", 0.3))
    assert error.name == "STAGE_IN_TIMEOUT"


@pytest.mark.parametrize("damage", ["flips a bit", "truncates", "is empty"])
def test_f14_nfs_sees_that_the_storage_holds_other_bytes(
    damage: str, node: Path, second_filesystem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is damaged between the write and the re-read, as a faulty server would."""
    path, target = write(node / "a", MIB), second_filesystem / "a.1"
    reread = copying.reread

    def damaged(place: Path, *arguments: Any) -> Dict[str, str]:
        with open(place, "r+b") as file:
            if damage == "flips a bit":
                file.seek(MIB // 2)
                byte = file.read(1)[0]
                file.seek(MIB // 2)
                file.write(bytes([byte ^ 1]))
            else:
                file.truncate(MIB - 1 if damage == "truncates" else 0)
        return reread(place, *arguments)

    monkeypatch.setattr("copytools.nfs.reread", damaged)
    error = refused(lambda: copytools.load("nfs", {}).copy_out(path, url(target), FOREVER))
    assert error.name == "STAGE_OUT_MISMATCH"
    assert all_below(second_filesystem) == [], "the next try writes the same name"


@pytest.mark.component("strace")
def test_nfs_writes_under_a_hidden_name_syncs_links_and_reads_again(
    node: Path, second_filesystem: Path, tmp_path: Path
) -> None:
    """The order of the system calls is the promise; strace writes it down."""
    path, target, trace = write(node / "a", 1000), second_filesystem / "a.1", tmp_path / "trace"
    calls = "openat,write,fsync,close,linkat,unlinkat,fadvise64,preadv,preadv2"
    wrapper = ["strace", "-qq", "-f", "-y", "-s", "0", "-o", trace, "-e", f"trace={calls}"]
    assert "checksums" in in_child("nfs", "copy_out", path, url(target), wrapper=wrapper)
    steps = []
    for line in trace.read_text().splitlines():
        if str(second_filesystem) in line:
            call = line.split("(")[0].split()[-1].replace("preadv2", "preadv")
            place = "hidden" if ".part" in line else "final" if f"{target}" in line else "directory"
            steps.append(f"{call} {place}")
    wanted = [
        "openat hidden",
        "write hidden",
        "fsync hidden",
        "linkat hidden",
        "fsync directory",
        "unlinkat hidden",
        "openat final",
        "fadvise64 final",
        "preadv final",
    ]
    assert [step for step in dict.fromkeys(steps) if step in wanted] == wanted
    closes = [index for index, step in enumerate(steps) if step == "close hidden"]
    assert closes[0] < steps.index("linkat hidden"), (
        "a close tells what could not be written: before there is a name"
    )
    assert closes[-1] < steps.index("unlinkat hidden"), "NFS renames an open file instead of removing it"


# -- links and moves -------------------------------------------------------------------------------------------------------------


def test_ln_makes_a_symbolic_link_to_where_an_input_really_lies(tmp_path: Path, node: Path) -> None:
    """Within a container only that place is shown."""
    source = write(tmp_path / "a", 100)
    (tmp_path / "mount").symlink_to(tmp_path)
    copytools.load("ln", {}).copy_in(url(tmp_path / "mount/a"), node / "a", FOREVER)
    assert os.readlink(node / "a") == os.path.realpath(source)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_ln_makes_hard_links_to_inputs_where_it_is_told_to(
    tmp_path: Path, node: Path, second_filesystem: Path, elsewhere: bool
) -> None:
    tool = copytools.load("ln", {"hard": "yes"})
    source = write((second_filesystem if elsewhere else tmp_path) / "a", 100)
    if elsewhere:
        error = refused(lambda: tool.copy_in(url(source), node / "a", FOREVER))
        assert error.name == "STAGE_IN_FAILED" and "EXDEV" in error.detail
        assert all_below(node) == []
    else:
        assert tool.copy_in(url(source), node / "a", FOREVER) == checksum.of(source, tool.algorithms)
        assert (node / "a").samefile(source) and not (node / "a").is_symlink()


def test_ln_gives_an_output_a_second_name_and_copies_nothing(tmp_path: Path, node: Path) -> None:
    path = write(node / "a", 100)
    copytools.load("ln", {}).copy_out(path, url(tmp_path / "a.1"), FOREVER)
    assert path.samefile(tmp_path / "a.1")


def test_ln_says_that_there_is_no_link_to_another_file_system(node: Path, second_filesystem: Path) -> None:
    path = write(node / "a", 100)
    error = refused(lambda: copytools.load("ln", {}).copy_out(path, url(second_filesystem / "a.1"), FOREVER))
    assert error.name == "STAGE_OUT_FAILED" and "another file system" in error.detail
    assert all_below(second_filesystem) == [] and path.exists()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_mv_copies_only_to_another_file_system(
    tmp_path: Path, node: Path, second_filesystem: Path, elsewhere: bool
) -> None:
    path, storage = write(node / "a", 100), second_filesystem if elsewhere else tmp_path
    inode = path.stat().st_ino
    copytools.load("mv", {}).copy_out(path, url(storage / "a.1"), FOREVER)
    assert ((storage / "a.1").stat().st_ino == inode) != elsewhere
    assert not path.exists()


def test_mv_leaves_an_input_on_its_storage_and_out_of_the_payloads_reach(tmp_path: Path, node: Path) -> None:
    source = write(tmp_path / "a", 100)
    copytools.load("mv", {}).copy_in(url(source), node / "a", FOREVER)
    assert source.exists() and not (node / "a").samefile(source) and not (node / "a").is_symlink()


def test_f14_mv_keeps_the_file_of_which_the_storage_has_other_bytes(
    node: Path, second_filesystem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(node / "a", MIB)
    reread = copying.reread

    def damaged(place: Path, *arguments: Any) -> Dict[str, str]:
        os.truncate(place, 10)
        return reread(place, *arguments)

    monkeypatch.setattr("copytools.mv.reread", damaged)
    error = refused(lambda: copytools.load("mv", {}).copy_out(path, url(second_filesystem / "a.1"), FOREVER))
    assert error.name == "STAGE_OUT_MISMATCH"
    assert all_below(second_filesystem) == [] and path.stat().st_size == MIB


@pytest.mark.component("strace")
def test_mv_copies_where_the_system_refuses_links(tmp_path: Path, node: Path) -> None:
    """A bind mount is the same device and yet another file system."""
    path = write(node / "a", 100)
    wrapper = failing("linkat:error=EXDEV:when=1")
    assert "checksums" in in_child("mv", "copy_out", path, url(tmp_path / "a.1"), wrapper=wrapper)
    assert (tmp_path / "a.1").stat().st_size == 100 and not path.exists()


@pytest.mark.component("strace")
@pytest.mark.parametrize("name", ["ln", "mv"])
@pytest.mark.parametrize(
    "injection", ["linkat:error=EIO", "fsync:error=EIO:when=2", "fsync:error=EIO:when=1"]
)
def test_f13_a_failing_system_call_leaves_no_link(
    name: str, tmp_path: Path, node: Path, injection: str
) -> None:
    path, target = write(node / "a", 100), tmp_path / "b"
    answer = in_child(name, "copy_out", path, url(target), wrapper=failing(injection))
    assert answer.get("error") == "STAGE_OUT_FAILED", answer
    assert path.exists() and not target.exists()


@as_root
def test_an_output_of_another_account_belongs_to_the_pilots_once_it_is_stored(
    tool: CopyTool, storage: Path, node: Path
) -> None:
    """Else the next payload of that account could change what is registered."""
    path = write(node / "a", 100)
    os.chown(path, NOBODY, NOBODY)
    tool.copy_out(path, url(storage / "a.1"), FOREVER)
    assert (storage / "a.1").stat().st_uid == os.geteuid()


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "file:///a/../../etc/passwd",
        "file:///%2e%2e/x",
        "file://elsewhere.example/a",
        "file:a",
        "http://169.254.169.254/",
        "file:///a%00b",
    ],
)
def test_b25_addresses_that_lead_astray_are_refused(name: str, node: Path, address: str) -> None:
    tool = copytools.load(name, OPTIONS[name])
    assert refused(lambda: tool.copy_in(address, node / "a", FOREVER)).name == "BAD_PATH"
    assert refused(lambda: tool.copy_out(write(node / "b", 1), address, FOREVER)).name == "BAD_PATH"


def test_b25_only_the_allowed_directories_are_read_and_written(name: str, storage: Path, node: Path) -> None:
    outside = write(node / "outside", 10)
    (storage / "way-out").symlink_to(node)
    write(storage / "inside", 10)
    tool = copytools.load(name, {"directories": f"/nowhere, {storage}"})
    for address in (
        url(outside),
        url(storage / "way-out/outside"),
        f"file://{storage}-2/a",
        "file:///etc/shadow",
    ):
        error = refused(lambda address=address: tool.copy_in(address, node / "a", FOREVER))  # type: ignore[misc]
        assert error.name == "BAD_PATH", address
        assert refused(lambda address=address: tool.copy_out(outside, address, FOREVER)).name == "BAD_PATH"  # type: ignore[misc]
    tool.copy_in(url(storage / "inside"), node / "a", FOREVER)


# -- where tools come from ---------------------------------------------------------------------------------------------


def test_tools_are_found_in_a_zip_file_too(tmp_path: Path) -> None:
    """The pilot travels as one file; nothing of ours may be unpacked for it."""
    archive = tmp_path / "pilot.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for folder in ("protocol", "copytools"):
            for path in (ROOT / folder).glob("*.py"):
                packed.write(path, path.relative_to(ROOT))
    program = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); import copytools; from pathlib import Path; "
        f"print(copytools.__file__, *copytools.names(), copytools.load('cp', {{}}).copy_in({url(archive)!r}, Path({str(tmp_path / 'b')!r}), 9))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ours = " ".join(copytools.names())
    assert done.stdout.startswith(f"{archive}/copytools/__init__.py {ours} {{'md5'"), (
        "no site-packages, no blake3"
    )
    assert (tmp_path / "b").read_bytes() == archive.read_bytes()


def test_the_readmes_example_is_a_tool_that_a_package_from_outside_can_bring(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "copytools/README.md").read_text()
    (block,) = re.findall(r"^    class Tool\(.*\n(?:(?:    .*|)\n)+", readme, re.M)
    example = "\n".join(line[4:] for line in block.splitlines())
    imports = (
        "import os\nfrom pathlib import Path\nfrom copytools.base import CopyTool, Option\n"
        "from copytools.copying import Plan, copy\nfrom copytools.failures import Stage\n"
        "from protocol.files import check_lfn\nfrom protocol.values import Type\n"
    )
    (tmp_path / "archive_tool.py").write_text(imports + example)
    info = tmp_path / "archive_tool-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: archive-tool\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pilotage.copytools]\narchive = archive_tool\n")
    monkeypatch.syspath_prepend(tmp_path)

    source = write(tmp_path / "a.spd", 100)
    assert "archive" in copytools.names()
    tool = copytools.load("archive", {"folder": str(tmp_path)})
    assert tool.unusable() is None
    assert tool.copy_in("archive:a.spd", node / "a", 9) == checksum.of(source, tool.algorithms)
    assert copytools.load("archive", {"folder": "/nowhere"}).unusable() == "/nowhere is not there"
    assert refused(lambda: tool.copy_in("archive:../a", node / "b", 9)).name == "BAD_LFN"
