"""Inputs that stay on the node, with real pilots: shared, kept from payloads, and no job ever fails for them."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Callable, Dict, List

import pytest
from filelock import FileLock

from protocol import cached
from protocol.errors import PilotExit
from protocol.messages.pilots import InputFile
from tests.fakes.dispatcher import Dispatcher
from tests.filesystems import mounted, no_mount
from tests.houses import BUBBLEWRAP, OTHER_ACCOUNT, SetUp, house_of
from tests.pilots import PilotProcess, Site
from tests.waiting import wait_until

KIB = 1024


def settings(directory: Path, **more: object) -> Dict[str, str]:
    """A pilot's environment with a cache in this directory."""
    return {
        f"PILOTAGE_CACHE__{key.upper()}": str(value)
        for key, value in {"directory": directory, "free_mb": 0, **more}.items()
    }


def an_input(site: Site, name: str, content: bytes) -> InputFile:
    return site.input(name, content, md5=hashlib.md5(content).hexdigest())


def entry(directory: Path, content: bytes) -> Path:
    return directory / f"md5-{hashlib.md5(content).hexdigest()}-{len(content)}"


def came_from_cache(pilot: PilotProcess) -> List[bool]:
    """Of each input, in the order in which they came."""
    return ["from_cache=True" in line for line in pilot.log.splitlines() if "input is there" in line]


def hashes(dispatcher: Dispatcher, *inputs: InputFile) -> int:
    """A job whose output is the MD5 of each input."""
    return dispatcher.add(
        "sh", "-ec", 'out=$1; shift; md5sum "$@" | cut -c1-32 > "$out"', "sh", "{output}", "{inputs}",
        inputs=list(inputs), outputs=["md5"],
    )  # fmt: skip


def is_right(site: Site, number: int, *contents: bytes) -> bool:
    return site.stored(f"md5.{number}").read_text().split() == [
        hashlib.md5(each).hexdigest() for each in contents
    ]


# -- shared and verified ----------------------------------------------------------------------------------------------------


def test_an_input_comes_once_and_other_pilots_of_the_node_find_it(site: Site, dispatcher: Dispatcher) -> None:
    file = an_input(site, "a.spd", b"content")
    numbers = [hashes(dispatcher, file) for _ in range(3)]
    kept = settings(site.place / "cache")
    assert site.run("--max-jobs", "2", **kept) == PilotExit.DONE
    Path(file.url[7:]).unlink()  # the storage has lost it
    assert site.run("--max-jobs", "1", **kept) == PilotExit.DONE
    assert [came_from_cache(pilot) for pilot in site.pilots] == [[False, True], [True]]
    assert all(is_right(site, number, b"content") for number in numbers)


def test_without_the_setting_nothing_is_kept(site: Site, dispatcher: Dispatcher) -> None:
    hashes(dispatcher, an_input(site, "a.spd", b"content"))
    assert site.run() == PilotExit.DONE
    assert not list(site.place.rglob("md5-*"))
    assert "from_cache" not in site.pilots[0].log


def test_an_entry_that_is_damaged_on_the_disk_is_fetched_anew(site: Site, dispatcher: Dispatcher) -> None:
    file, cache = an_input(site, "a.spd", b"content"), site.place / "cache"
    numbers = [hashes(dispatcher, file) for _ in range(2)]
    assert site.run(**settings(cache)) == PilotExit.DONE
    with open(entry(cache, b"content"), "r+b") as damaged:
        times = os.fstat(damaged.fileno())
        damaged.write(b"C")
        damaged.flush()
        os.utime(damaged.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert site.run(**settings(cache)) == PilotExit.DONE
    assert all(is_right(site, number, b"content") for number in numbers)
    assert came_from_cache(site.pilots[1]) == [False]
    assert "a damaged input in the cache is dropped" in site.pilots[1].log
    assert entry(cache, b"content").read_bytes() == b"content"


def test_a_pilot_without_a_job_verifies_what_is_due(site: Site, dispatcher: Dispatcher) -> None:
    cache = site.place / "cache"
    hashes(dispatcher, an_input(site, "a.spd", b"content"))
    pilot = site.start("--idle", "60", **settings(cache, verify_hours=0.0003))
    kept = entry(cache, b"content")
    wait_until(kept.exists, 20, "the entry")
    with open(kept, "r+b") as damaged:
        times = os.fstat(damaged.fileno())
        damaged.write(b"C")
        damaged.flush()
        os.utime(damaged.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))
    wait_until(lambda: not kept.exists(), 20, "the damaged entry gone")
    pilot.signal(signal.SIGTERM)
    pilot.wait()
    assert "a damaged input in the cache is dropped" in pilot.log


def test_the_server_and_the_log_are_told_how_many_inputs_were_found(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.queue.heartbeat_seconds = 1
    file = an_input(site, "a.spd", b"content")
    numbers = [hashes(dispatcher, file) for _ in range(3)]
    pilot = site.start("--idle", "60", **settings(site.place / "cache"))

    def told() -> List[Dict[str, int]]:
        return [body["cache"] for body in dispatcher.bodies("heartbeat") if "cache" in body]

    wait_until(lambda: told() and told()[-1]["hits"] == 2, 20, "a heartbeat with the hits")
    n_heartbeats = len(dispatcher.bodies("heartbeat"))
    n_told = len(told())
    wait_until(lambda: len(dispatcher.bodies("heartbeat")) > n_heartbeats + 1, 20, "further heartbeats")
    assert len(told()) <= n_told + 1, "only news are told"
    pilot.signal(signal.SIGTERM)
    pilot.wait()
    [end] = dispatcher.bodies("endPilot")
    assert (end["cache"]["hits"], end["cache"]["misses"], end["cache"]["hitBytes"]) == (2, 1, 14)
    assert "hits=2 misses=1 hitBytes=14" in pilot.log
    assert all(is_right(site, number, b"content") for number in numbers)


def test_a_pilot_tells_the_server_what_its_node_keeps_when_it_asks_for_a_job(
    site: Site, dispatcher: Dispatcher
) -> None:
    hashes(dispatcher, an_input(site, "a.spd", b"content"))
    kept = settings(site.place / "cache")
    assert site.run(**kept) == PilotExit.DONE
    dispatcher.add("true")
    assert site.run(**kept) == PilotExit.DONE
    dispatcher.add("true")
    assert site.run() == PilotExit.DONE
    asked = [body.get("cached") for body in dispatcher.bodies("getJob")]
    assert asked == [None, cached.summary([entry(site.place / "cache", b"content").name]), None]


# -- payloads that want to change it ----------------------------------------------------------------------------------------

CHANGES = """
cat "$0"
for way in 'echo bad >> "$0"' 'chmod 666 "$0" && echo bad > "$0"' 'truncate -s 0 "$0"' 'ln "$0" mine && echo bad > mine'; do
    eval "$way" 2>/dev/null
done
rm -f "$0"; mv inputs elsewhere 2>/dev/null
true
"""

WAYS = {
    "plain": SetUp({}),
    "bubblewrap, by root": SetUp(BUBBLEWRAP),
    "bubblewrap, by an ordinary user": SetUp(BUBBLEWRAP, as_root=False),
    "another account": SetUp(OTHER_ACCOUNT),
}


@pytest.mark.component("bubblewrap")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another; run the tests as root")
@pytest.mark.parametrize("how", WAYS)
def test_no_payload_changes_the_bytes_for_the_next_one(how: str) -> None:
    with house_of(WAYS[how]) as (site, dispatcher, isolating, _):
        file = an_input(site, "a.spd", b"content")
        kept = {**isolating, **settings(site.place / "cache")}
        numbers = [dispatcher.add("sh", "-c", CHANGES, "{input}", inputs=[file]) for _ in range(3)]
        assert site.run("--max-jobs", "3", **kept) == PilotExit.DONE
        assert [site.archive(number)["payload.stdout"] for number in numbers] == ["content"] * 3
        assert came_from_cache(site.pilots[0]) == [False, True, True]
        assert entry(site.place / "cache", b"content").read_bytes() == b"content"


@pytest.mark.component("bubblewrap")
def test_an_isolated_payload_reads_the_very_file_of_the_cache(site: Site, dispatcher: Dispatcher) -> None:
    file = an_input(site, "a.spd", b"content")
    numbers = [dispatcher.add("stat", "-c", "%i", "{input}", inputs=[file]) for _ in range(2)]
    assert site.run("--max-jobs", "2", **BUBBLEWRAP, **settings(site.place / "cache")) == PilotExit.DONE
    inodes = {int(site.archive(number)["payload.stdout"]) for number in numbers}
    assert inodes == {entry(site.place / "cache", b"content").stat().st_ino}


def test_no_job_gets_a_file_of_the_cache_by_its_address(site: Site, dispatcher: Dispatcher) -> None:
    cache = site.place / "cache"
    hashes(dispatcher, an_input(site, "a.spd", b"content"))
    asks = InputFile("b.spd", "test", "in", 7, {}, f"file://{entry(cache, b'content')}")
    number = dispatcher.add("true", inputs=[asks])
    assert site.run("--max-jobs", "2", **settings(cache)) == PilotExit.DONE
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "BAD_PATH"


# -- several pilots, and those that are killed ------------------------------------------------------------------------------


def test_of_two_pilots_that_want_an_input_at_once_one_fetches_it(
    site: Site, dispatcher: Dispatcher, reached: Callable[..., None]
) -> None:
    cache = site.place / "cache"
    cache.mkdir(mode=0o700)
    file = an_input(site, "a.spd", b"content")
    numbers = [hashes(dispatcher, file) for _ in range(2)]
    with FileLock(cache / f".{entry(cache, b'content').name}.lock"):
        pilots = [site.start(**settings(cache)) for _ in numbers]
        for number in numbers:
            reached(number, "STAGE-IN", 20)
    assert [pilot.wait() for pilot in pilots] == [PilotExit.DONE] * 2
    assert sorted(came_from_cache(pilot)[0] for pilot in pilots) == [False, True]
    assert all(is_right(site, number, b"content") for number in numbers)
    assert [path.name for path in cache.iterdir()] == [entry(cache, b"content").name]


@pytest.mark.parametrize("moment", ["it fetches", "it keeps what it has fetched"])
def test_a_pilot_that_is_killed_in_the_middle_leaves_nothing_that_counts(
    site: Site, dispatcher: Dispatcher, moment: str
) -> None:
    cache, size = site.place / "cache", 64 * KIB * KIB
    stored = site.place / "large"
    with open(stored, "wb") as file:
        file.truncate(size)
    digest = hashlib.md5(bytes(size)).hexdigest()
    wanted = InputFile("large", "test", "in", size, {"md5": digest}, f"file://{stored}")
    kept = cache / f"md5-{digest}-{size}"
    dispatcher.add("true", inputs=[wanted])
    killed = site.start(**settings(cache))
    seen = {
        "it fetches": lambda: (cache / f".{kept.name}.lock").exists(),
        "it keeps what it has fetched": lambda: list(site.work.glob("*/job-*/inputs/large")),
    }
    wait_until(seen[moment], 20, moment, interval=0.001)
    killed.signal(signal.SIGKILL)
    killed.wait()
    was_late = kept.exists()
    assert not was_late or hashlib.md5(kept.read_bytes()).hexdigest() == digest
    number = dispatcher.add("true", inputs=[wanted])
    assert site.start(**settings(cache)).wait(60) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert came_from_cache(site.pilots[1]) == [was_late]
    assert kept.stat().st_size == size


def test_pilots_that_drop_what_others_want_fail_no_job(site: Site, dispatcher: Dispatcher) -> None:
    contents = [bytes([number]) * 300 * KIB for number in range(6)]
    files = [an_input(site, f"{number}.spd", content) for number, content in enumerate(contents)]
    wanted = {}
    for number in range(16):
        pair = [number % 6, (number * 5 + 1) % 6]
        wanted[hashes(dispatcher, *(files[each] for each in pair))] = pair
    cache = settings(site.place / "cache", max_mb=1)
    pilots = [site.start("--idle", "1", **cache) for _ in range(2)]
    assert [pilot.wait(60) for pilot in pilots] == [PilotExit.DONE] * 2
    for number, pair in wanted.items():
        assert is_right(site, number, *(contents[each] for each in pair))
    assert sum(path.stat().st_size for path in (site.place / "cache").iterdir()) <= KIB * KIB


# -- disks and directories --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(no_mount() is not None, reason=f"{no_mount()}")
def test_f13_a_cache_gives_way_when_the_disk_of_the_jobs_is_full(site: Site, dispatcher: Dispatcher) -> None:
    contents = [bytes([number]) * size * KIB for number, size in enumerate((900, 1300))]
    with mounted("size=2m") as place:
        site.work = place / "work"
        limits = {f"PILOTAGE_LIMITS__{name}_DISK_MB": "0" for name in ("FREE", "FULL")}
        numbers = [hashes(dispatcher, an_input(site, str(each[0]), each)) for each in contents]
        assert site.run("--max-jobs", "2", **limits, **settings(place / "cache")) == PilotExit.DONE
        assert all(is_right(site, number, each) for number, each in zip(numbers, contents))
        assert list((place / "cache").iterdir()) == []


@pytest.mark.skipif(no_mount() is not None, reason=f"{no_mount()}")
def test_f13_jobs_go_on_without_a_cache_that_has_no_room(site: Site, dispatcher: Dispatcher) -> None:
    contents = [bytes([number]) * size * KIB for number, size in enumerate((100, 2000))]
    with mounted("size=1m") as place:
        numbers = [hashes(dispatcher, an_input(site, str(each[0]), each)) for each in contents]
        assert site.run("--max-jobs", "2", **settings(place / "cache")) == PilotExit.DONE
        assert all(is_right(site, number, each) for number, each in zip(numbers, contents))
        assert not entry(place / "cache", contents[1]).exists()


@pytest.mark.skipif(no_mount() is not None, reason=f"{no_mount()}")
def test_f13_jobs_go_on_with_a_cache_that_can_only_be_read(site: Site, dispatcher: Dispatcher) -> None:
    with mounted("ro") as place:
        number = hashes(dispatcher, an_input(site, "a.spd", b"content"))
        assert site.run(**settings(place / "cache")) == PilotExit.DONE
        assert is_right(site, number, b"content")
    assert "Read-only file system" in site.pilots[0].log


def test_a_directory_that_others_may_fill_is_told_of_and_not_used(site: Site, dispatcher: Dispatcher) -> None:
    cache = site.place / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    content = b"content"
    entry(cache, content).write_bytes(b"planted")
    (cache / f".{entry(cache, content).name}.lock").symlink_to(site.token)
    number = hashes(dispatcher, an_input(site, "a.spd", content))
    assert site.run(**settings(cache)) == PilotExit.DONE
    assert is_right(site, number, content)
    assert "others may write in it (chmod 700)" in site.pilots[0].log
    assert entry(cache, content).read_bytes() == b"planted"
    assert site.token.read_text()
