"""Inputs kept on the node: by content, bounded, shared, and never trusted further than they were verified."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, List, Optional

import pytest
from filelock import FileLock

from pilot import cache as cache_module
from pilot.api.data import Data, File
from pilot.cache import NANO, Bounds, Entry, InputCache, entry_of
from pilot.patience import Stopped
from protocol import cached
from protocol.errors import PilotageError
from tests.waiting import wait_until

MIB = 1024 * 1024
LINKS = pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])


def entry(content: bytes, lfn: str = "a.spd") -> Entry:
    found = entry_of({"md5": hashlib.md5(content).hexdigest()}, "md5", len(content), lfn)
    assert found is not None
    return found


class Node:
    """A cache, and jobs that want inputs from it."""

    def __init__(self, place: Path, links: bool = True, **bounds: float) -> None:
        self.place = place
        self.directory = place / "cache"
        self.cache = InputCache(self.directory, Bounds(**{"most_bytes": MIB, **bounds}), links)  # type: ignore[arg-type]
        self.fetched: List[bytes] = []

    def job(
        self, content: bytes, stop: Optional[threading.Event] = None, lfn: str = "a.spd", also: Callable[[], None] = lambda: None
    ) -> Path:  # fmt: skip
        """The input as a job gets it."""
        to = Path(tempfile.mkdtemp(prefix="job-", dir=self.place))

        def fetch() -> bool:
            also()
            self.fetched.append(content)
            (to / "input").write_bytes(content)
            return True

        self.cache.provide(entry(content, lfn), to / "input", fetch, stop or threading.Event())
        return to / "input"

    def entries(self) -> List[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def path(self, content: bytes) -> Path:
        return self.directory / entry(content).name


def rot(path: Path, content: bytes) -> None:
    """Other bytes on the disk, and nothing to be seen of it from outside."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def age(path: Path, seconds: float) -> None:
    """As if it had been verified so much earlier."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds) * NANO))


# -- what jobs get ----------------------------------------------------------------------------------------------------------


@LINKS
def test_an_input_is_fetched_once_whatever_its_name(tmp_path: Path, links: bool) -> None:
    node = Node(tmp_path, links)
    for lfn in ("a.spd", "a.spd", "b.spd"):
        assert node.job(b"bytes", lfn=lfn).read_bytes() == b"bytes"
    assert node.fetched == [b"bytes"]
    report = node.cache.report()
    assert (report.hits, report.misses, report.hit_bytes, report.miss_bytes) == (2, 1, 10, 5)
    assert node.entries() == [entry(b"bytes").name]


def test_a_payload_that_cannot_write_to_its_inputs_shares_the_bytes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first, second = node.job(b"bytes"), node.job(b"bytes")
    assert first.stat().st_ino == second.stat().st_ino == node.path(b"bytes").stat().st_ino
    assert second.stat().st_mode & 0o777 == 0o444


def test_any_other_payload_may_do_with_its_inputs_what_it_likes(tmp_path: Path) -> None:
    node = Node(tmp_path, links=False)
    for _ in range(3):
        path = node.job(b"bytes")
        path.write_bytes(b"other bytes of a payload")
    assert node.job(b"bytes").read_bytes() == b"bytes"
    assert node.fetched == [b"bytes"]


@LINKS
def test_on_another_file_system_a_copy_is_made(tmp_path: Path, second_filesystem: Path, links: bool) -> None:
    node = Node(tmp_path, links)
    node.cache = InputCache(second_filesystem / "cache", Bounds(MIB), links)
    for _ in range(2):
        assert node.job(b"bytes").read_bytes() == b"bytes"
    assert node.fetched == [b"bytes"]
    assert node.cache.report().hits == 1


@pytest.mark.parametrize(
    ("checksums", "size"),
    [({}, 5), ({"md5": "0" * 32}, 0), ({"md5": "0" * 32}, None), ({"md5": "../../x"}, 5), ({"md5": "z" * 32}, 5)],
)  # fmt: skip
def test_what_cannot_be_known_again_is_not_kept(checksums: dict, size: Optional[int]) -> None:  # type: ignore[type-arg]
    assert entry_of(checksums, "md5", size, "a") is None


def test_a_file_of_the_storage_that_was_linked_into_the_job_stays_as_it_is(tmp_path: Path) -> None:
    node = Node(tmp_path)
    stored = tmp_path / "stored"
    stored.write_bytes(b"bytes")
    before = stored.stat().st_mode

    def fetch() -> bool:
        os.link(stored, tmp_path / "input")
        return True

    node.cache.provide(entry(b"bytes"), tmp_path / "input", fetch, threading.Event())
    assert stored.stat().st_mode == before
    assert node.entries() == []


def test_an_input_that_is_a_link_to_its_storage_is_not_kept_and_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path)
    (tmp_path / "stored").write_bytes(b"bytes")

    def fetch() -> bool:
        (tmp_path / "input").symlink_to(tmp_path / "stored")
        return True

    node.cache.provide(entry(b"bytes"), tmp_path / "input", fetch, threading.Event())
    assert node.entries() == []
    assert not caplog.records


def test_what_comes_from_the_cache_counts_as_moved(tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes(b"bytes")
    moved: List[int] = []
    files = [
        File(stored.as_uri(), tmp_path / name, 5, {"md5": entry(b"bytes").digest}) for name in ("one", "two")
    ]
    data = Data(cache=InputCache(tmp_path / "cache", Bounds(MIB), links=False), parallel=1)
    with data.stage_in(files, moved=moved.append) as transfers:
        results = transfers.wait()
    assert [result.copied.from_cache for result in results if result.copied] == [False, True]
    assert sum(moved) == 10


def test_what_was_changed_after_it_was_verified_is_not_kept(tmp_path: Path) -> None:
    node = Node(tmp_path, links=False)

    def fetch() -> bool:
        (tmp_path / "input").write_bytes(b"other")
        return True

    node.cache.provide(entry(b"bytes"), tmp_path / "input", fetch, threading.Event())
    assert node.entries() == []


@LINKS
def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path, links: bool) -> None:
    node = Node(tmp_path, links)

    def fetch() -> None:
        raise PilotageError("STAGE_IN_FAILED", "no such storage")

    with pytest.raises(PilotageError, match="no such storage"):
        node.cache.provide(entry(b"bytes"), tmp_path / "input", fetch, threading.Event())
    assert node.entries() == []
    assert node.job(b"bytes").read_bytes() == b"bytes"


# -- damage -----------------------------------------------------------------------------------------------------------------


@LINKS
@pytest.mark.parametrize("content", [b"", b"bytes and more", b"bYtes"])
def test_an_entry_that_somebody_wrote_to_is_dropped_and_fetched_anew(
    tmp_path: Path, links: bool, content: bytes
) -> None:
    node = Node(tmp_path, links)
    node.job(b"bytes")
    node.path(b"bytes").chmod(0o644)
    node.path(b"bytes").write_bytes(content)
    node.path(b"bytes").chmod(0o444)
    for _ in range(2):
        assert node.job(b"bytes").read_bytes() == b"bytes"
    assert len(node.fetched) == 2


def test_a_flipped_bit_is_found_with_each_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path, links=False)
    node.job(b"bytes")
    rot(node.path(b"bytes"), b"bxtes")
    assert node.job(b"bytes").read_bytes() == b"bytes"
    assert len(node.fetched) == 2
    assert "a damaged input in the cache is dropped" in caplog.messages


@pytest.mark.parametrize("why", ["it is time", "the node was started anew"])
def test_a_flipped_bit_is_found_before_a_link_is_made(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, verify_seconds=3600)
    first = node.job(b"bytes")
    rot(node.path(b"bytes"), b"bxtes")
    first.unlink()
    assert node.job(b"bytes").read_bytes() == b"bxtes", "it is trusted for an hour"
    if why == "it is time":
        age(node.path(b"bytes"), 3700)
    else:
        age(node.path(b"bytes"), 60)
        monkeypatch.setattr(cache_module, "_boot_time", lambda now: now - 30)
    assert node.job(b"bytes").read_bytes() == b"bytes"
    assert len(node.fetched) == 2


@LINKS
def test_f13_an_entry_that_the_disk_cannot_read_is_dropped(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, links, verify_seconds=3600)
    node.job(b"bytes")
    age(node.path(b"bytes"), 3700)

    def unreadable(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def uncopied(*arguments: object) -> None:
        raise PilotageError("STAGE_IN_FAILED", "Input/output error (EIO)")

    with monkeypatch.context() as broken:
        broken.setattr(cache_module, "reread", unreadable)
        broken.setattr(cache_module, "copy", uncopied)
        assert node.job(b"bytes").read_bytes() == b"bytes"
    assert node.job(b"bytes").read_bytes() == b"bytes"
    assert len(node.fetched) == (2 if links else 3), "what could not be copied was not kept either"


def test_what_nobody_asks_for_is_verified_as_well(tmp_path: Path) -> None:
    node = Node(tmp_path, verify_seconds=3600)
    for content in (b"good", b"evil", b"fresh"):
        node.job(content).unlink()
    rot(node.path(b"evil"), b"evol")
    for content in (b"good", b"evil"):
        age(node.path(content), 3700)
    node.cache.verify(threading.Event())
    assert node.entries() == sorted(entry(content).name for content in (b"good", b"fresh"))
    assert node.path(b"good").stat().st_mtime > time.time() - 100
    assert node.job(b"good").read_bytes() == b"good"
    assert len(node.fetched) == 3


def test_the_one_who_looks_after_it_verifies_and_ends_when_told(tmp_path: Path) -> None:
    node = Node(tmp_path, verify_seconds=0.5)
    node.job(b"evil").unlink()
    rot(node.path(b"evil"), b"evol")
    stop = threading.Event()
    thread = threading.Thread(target=node.cache.look_after, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: not node.entries(), 10, "the damaged entry gone")
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


# -- bounds -----------------------------------------------------------------------------------------------------------------


def use(node: Node, content: bytes, when: float) -> None:
    path = node.path(content)
    os.utime(path, ns=(int(when * NANO), path.stat().st_mtime_ns))


@LINKS
def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, links: bool) -> None:
    node = Node(tmp_path, links)
    large = [bytes([number]) * 300_000 for number in range(4)]
    for number, content in enumerate(large[:3]):
        node.job(content)
        use(node, content, 1000 + number)
    node.job(large[0])  # used again
    node.job(large[3])
    assert node.entries() == sorted(entry(large[number]).name for number in (0, 2, 3))


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.job(b"bytes")
    node.job(b"x" * (MIB + 1))
    assert node.entries() == [entry(b"bytes").name]


def test_several_pilots_keep_one_bound(tmp_path: Path) -> None:
    pilots = [Node(tmp_path), Node(tmp_path)]
    for number in range(100):
        pilots[number % 2].job(number.to_bytes(4, "big") * 10_000)
        sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
        # Each looks again when a sixteenth may have been added.
        assert sum(sizes) <= MIB * 17 / 16


def test_a_cache_gives_way_while_its_disk_is_full(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.job(b"one").unlink()
    kept_by_a_job = node.job(b"two")
    full = InputCache(node.directory, Bounds(MIB, free_bytes=1 << 60), links=False)
    node.cache = full
    assert node.job(b"three").read_bytes() == b"three"
    assert node.entries() == [entry(b"two").name], "what a job has would free nothing"
    assert kept_by_a_job.read_bytes() == b"two"


def test_for_a_quota_that_is_spent_it_gives_way_too(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.job(b"one").unlink()

    def quota() -> None:
        if node.path(b"one").exists():
            raise PilotageError("NO_LOCAL_SPACE", "disk quota exceeded")

    assert node.job(b"two", also=quota).read_bytes() == b"two"
    assert node.entries() == [entry(b"two").name]


def test_what_killed_pilots_left_goes_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.job(b"bytes")
    name = entry(b"other").name
    old = [f".{name}.lock", f".{name}.0123456789ab.part"]
    others = ["notes.txt", ".hidden", ".x.lock", "md5-00-5", f".{entry(b'fresh').name}.0123456789ab.part"]
    for each in (*old, *others):
        (node.directory / each).write_text("text")
        if each != others[-1]:
            os.utime(node.directory / each, (0, 0))
    node.job(b"x" * 200_000)
    assert set(node.entries()) == {entry(b"bytes").name, entry(b"x" * 200_000).name, *others}


# -- other pilots -----------------------------------------------------------------------------------------------------------


@LINKS
def test_of_many_who_want_an_input_at_once_one_fetches_it(tmp_path: Path, links: bool) -> None:
    node = Node(tmp_path, links)
    got: List[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(node.job(b"bytes").read_bytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"bytes"] * 8
    assert len(node.fetched) == 1
    assert node.entries() == [entry(b"bytes").name]


def test_who_is_not_wanted_any_more_does_not_wait_for_another_pilot(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.directory.mkdir(mode=0o700)
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    with FileLock(node.directory / f".{entry(b'bytes').name}.lock"), pytest.raises(Stopped):
        node.job(b"bytes", stop)
    timer.join()


def test_a_pilot_that_never_ends_its_fetch_keeps_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "FETCH_SECONDS", 0.1)
    node = Node(tmp_path)
    node.directory.mkdir(mode=0o700)
    with FileLock(node.directory / f".{entry(b'bytes').name}.lock"):
        assert node.job(b"bytes").read_bytes() == b"bytes"


@LINKS
def test_what_is_dropped_while_another_pilot_takes_it_costs_a_fetch_and_no_job(
    tmp_path: Path, links: bool
) -> None:
    node = Node(tmp_path, links)
    over = threading.Event()

    def drop() -> None:
        while not over.is_set():
            node.path(b"bytes").unlink(missing_ok=True)

    dropping = threading.Thread(target=drop)
    dropping.start()
    try:
        assert all(node.job(b"bytes").read_bytes() == b"bytes" for _ in range(200))
    finally:
        over.set()
        dropping.join()


# -- a directory of others --------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Why a directory is not used; jobs get their inputs all the same, and it is told once."""
    node = Node(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert node.job(b"bytes").read_bytes() == b"bytes"
    assert len(node.fetched) == 2
    reasons = [record.reason for record in caplog.records]  # type: ignore[attr-defined]
    assert reasons == [node.cache.why_not()]
    return str(reasons[0])


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_in_which_others_may_write_is_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    assert refused(tmp_path, caplog) == "others may write in it (chmod 700)"
    assert not list((tmp_path / "cache").iterdir())


def test_a_link_to_a_directory_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    assert refused(tmp_path, caplog)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; run the tests as root")
def test_a_directory_of_another_account_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 65534, 65534)
    assert refused(tmp_path, caplog) == "it belongs to another account"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; run the tests as root")
@LINKS
def test_an_entry_of_another_account_is_neither_used_nor_removed(tmp_path: Path, links: bool) -> None:
    node = Node(tmp_path, links)
    node.job(b"bytes")
    rot(node.path(b"bytes"), b"bxtes")
    os.chown(node.path(b"bytes"), 65534, 65534)
    assert node.job(b"bytes").read_bytes() == b"bytes"
    assert node.path(b"bytes").read_bytes() == b"bxtes"


@LINKS
@pytest.mark.parametrize("where", ["the entry", "its lock"])
def test_a_link_that_somebody_planted_is_neither_followed_nor_removed(
    tmp_path: Path, links: bool, where: str
) -> None:
    node = Node(tmp_path, links)
    victim = tmp_path / "victim"
    victim.write_bytes(b"bytes")
    node.directory.mkdir(mode=0o700)
    name = entry(b"bytes").name
    planted = node.directory / (name if where == "the entry" else f".{name}.lock")
    planted.symlink_to(victim)
    for _ in range(2):
        assert node.job(b"bytes").read_bytes() == b"bytes"
    assert victim.read_bytes() == b"bytes" and victim.stat().st_mode & 0o777 != 0o444
    assert planted.is_symlink()
    assert len(node.fetched) == (2 if where == "the entry" else 1)


def test_a_fifo_in_place_of_an_entry_holds_nobody_up(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.directory.mkdir(mode=0o700)
    os.mkfifo(node.path(b"bytes"))
    assert node.job(b"bytes").read_bytes() == b"bytes"


# -- what is told -----------------------------------------------------------------------------------------------------------


def test_the_summary_tells_of_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "MOST", 2)
    node = Node(tmp_path)
    for number, content in enumerate((b"old", b"newer", b"newest")):
        node.job(content)
        use(node, content, 1000 + number)
    told = InputCache(node.directory, Bounds(MIB), True).summary()
    assert told == cached.summary([entry(b"newest").name, entry(b"newer").name])
    assert node.cache.report().misses == 3


def test_there_is_nothing_to_tell_of_a_directory_that_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert Node(tmp_path).cache.summary() == ""
