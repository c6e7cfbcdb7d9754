"""F18: whatever a payload does, all that it started is ended with it, nothing else is, and no zombie is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest

from pilot import cgroups, proc, process
from pilot.process import Process
from tests.users import PYTHON, code_for_all, ordinary_user, place_for_all
from tests.waiting import wait_until

Start = Callable[..., Process]

DAEMON = """
import os, sys, time
def daemon(place):
    "Fork twice, a session of its own, no environment, no open file, no directory: nothing shows whose it is."
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.closerange(0, 100)
    os.execve(sys.executable, [sys.executable, "-c", f"import os, time; open({place!r}, 'w').write(str(os.getpid())); time.sleep(600)"], {})
"""


@pytest.fixture(params=["adopting", "adopting, without cgroup"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a payload as a pilot does: orphans come to this process."""
    if "without" in request.param:
        monkeypatch.setattr(cgroups, "make", lambda name: None)
    started: List[Process] = []

    def begin(script: str, text_bytes: int = 0, most_processes: int = 0) -> Process:
        place = tmp_path / str(len(started))
        place.mkdir()
        made = process.start(
            [sys.executable, "-c", script], place, {"PATH": "/usr/bin:/bin"}, place / "out", place / "err", text_bytes,
            most_processes,
        )  # fmt: skip
        started.append(made)
        return made

    with process.adopting_orphans():
        yield begin
        for each in started:
            if not each.ended.is_set():
                each.kill()
                each.wait()


@contextlib.contextmanager
def waited(payload: Process) -> Iterator[List[int]]:
    """Wait in a thread, as payload control does."""
    codes: List[int] = []
    thread = threading.Thread(target=lambda: codes.append(payload.wait()))
    thread.start()
    yield codes
    thread.join(20)
    assert not thread.is_alive(), "wait() does not return"


def written(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text(), 10, f"{path.name}")
    return int(path.read_text())


def is_there(pid: int) -> bool:
    """Living, or a zombie."""
    return proc.stat(pid) is not None


def children() -> List[int]:
    return proc.children(os.getpid())


STUBBORN = {
    "ignores SIGTERM": "import signal; signal.signal(15, signal.SIG_IGN)",
    "double-forks and clears its environment": "daemon(here + '/pid')",
    "starts ten of these": "[daemon(here + f'/pid{n}') for n in range(10)]",
    "prints no newline": "print('x' * 100_000, end='', flush=True)",
    "closes stdout and stderr": "os.close(1); os.close(2)",
    "stops itself": "import signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "leaves zombies": "[os.fork() or os._exit(0) for _ in range(20)]",
    "leaves orphans that become zombies": "[os.fork() or (os.fork(), os._exit(0)) for _ in range(5)]",
}


@pytest.mark.parametrize("what", STUBBORN)
def test_f18_a_payload_that_is_told_to_end_leaves_nothing(what: str, start: Start, tmp_path: Path) -> None:
    before = children()
    script = f"{DAEMON}\nhere = {str(tmp_path)!r}\nopen(here + '/ready', 'w').write('1')\n{STUBBORN[what]}\ntime.sleep(600)"
    payload = start(script)
    written(tmp_path / "ready")
    daemons = [written(tmp_path / f"pid{n}") for n in range(10)] if "ten" in what else []
    daemons += [written(tmp_path / "pid")] if "double" in what else []
    with waited(payload) as codes:
        began = time.monotonic()
        payload.terminate(0.3)
        assert time.monotonic() - began < 5
    assert codes[0] in (-9, -15)
    assert not [pid for pid in daemons if is_there(pid)]
    assert children() == before, "no child, no zombie"


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(3)", "os.kill(os.getpid(), 11)", "os.abort()"])
def test_f18_what_a_payload_leaves_when_it_ends_by_itself_is_ended(
    ending: str, start: Start, tmp_path: Path
) -> None:
    before = children()
    wait = "while not os.path.exists('pid'): time.sleep(0.01)"
    payload = start(f"{DAEMON}\nimport os\ndaemon(os.getcwd() + '/pid')\n{wait}\n{ending}")
    code = payload.wait()
    assert (
        code
        == {"sys.exit(0)": 0, "sys.exit(3)": 3, "os.kill(os.getpid(), 11)": -11, "os.abort()": -6}[ending]
    )
    assert not is_there(int((tmp_path / "0" / "pid").read_text()))
    assert children() == before


def test_f18_a_daemon_hears_sigterm_and_has_its_grace(start: Start, tmp_path: Path) -> None:
    """Not only the process group of the payload: what left it is told too, and may tidy up."""
    script = (
        f"import os, signal, time\nif os.fork() == 0:\n os.setsid()\n"
        f" def tidy(*_): time.sleep(0.2); open({str(tmp_path)!r} + '/tidy', 'w').write('1'); os._exit(0)\n"
        f" signal.signal(15, tidy)\n open({str(tmp_path)!r} + '/ready', 'w').write('1')\ntime.sleep(600)"
    )
    payload = start(script)
    written(tmp_path / "ready")
    with waited(payload):
        payload.terminate(5)
    assert (tmp_path / "tidy").exists()


BOMB = """
import os, time
births = 1000
reading, writing = os.pipe()
os.write(writing, b"x" * births)
while True:
    time.sleep(0.01)
    try:
        if births and os.read(reading, 1) and os.fork() == 0:
            os.setsid()
    except OSError:
        time.sleep(0.1)
"""
"""Each process of it starts others, in sessions of their own. A thousand births, so that a test that fails ends as well."""


def test_f18_a_fork_bomb_is_ended_as_a_whole(start: Start) -> None:
    before = children()
    payload = start(BOMB)
    wait_until(lambda: len(payload.members()) > 50, 10, "it to grow")
    with waited(payload) as codes:
        payload.terminate(0)
    assert codes[0] in (-9, -15)
    assert children() == before
    assert not _of(payload)


AS_A_USER = """
import sys, time
from pathlib import Path
from pilot import process
here = Path(sys.argv[1])
with process.adopting_orphans():
    payload = process.start(
        [sys.executable, "-c", sys.argv[2]], here, {"PATH": "/usr/bin:/bin"}, here / "out", here / "err", 0, 30
    )
    sizes = []
    try:
        end = time.monotonic() + 10
        while sizes.count(max(sizes, default=0)) < 20 and time.monotonic() < end:
            sizes.append(len(payload.members()))
            time.sleep(0.02)
    finally:
        payload.kill()
        payload.wait()
    print(max(sizes))
"""


def test_f18_a_fork_bomb_does_not_grow_beyond_its_limit() -> None:
    """Of an ordinary account, which the kernel's own limit holds; root's payloads are held by a cgroup where it can."""
    with place_for_all() as place:
        done = subprocess.run(
            [*ordinary_user(place), PYTHON, "-c", AS_A_USER, str(place), BOMB],
            cwd=code_for_all(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 20 < int(done.stdout) <= 31


def _of(payload: Process) -> List[int]:
    """Living processes with the payload's mark, wherever they are."""
    return [
        pid for pid in proc.living() if any(payload._mark == each for each in proc.environment(pid) or ())
    ]


def test_f18_nobody_elses_process_is_ended(start: Start) -> None:
    """A child of ours in our session, and an orphan that was ours before the payload began."""
    child = subprocess.Popen(["sleep", "60"])
    made = subprocess.run(
        ["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    orphan = int(made.stdout)
    time_of_birth = proc.stat(orphan)
    assert time_of_birth is not None
    wait_until(lambda: _ticks_now() > time_of_birth.began_ticks, 5, "the next tick of the clock")
    try:
        start(f"{DAEMON}\ndaemon('/dev/null')").wait()
        assert child.poll() is None
        assert is_there(orphan)
    finally:
        child.kill()
        child.wait()
        os.kill(orphan, 9)
        os.waitpid(orphan, 0)


def _ticks_now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * proc.TICKS)


def two_daemons(start: Start, tmp_path: Path) -> Tuple[Process, Process, int, int]:
    first = start(f"{DAEMON}\ndaemon({str(tmp_path / 'first')!r})\ntime.sleep(600)")
    second = start(f"{DAEMON}\ndaemon({str(tmp_path / 'second')!r})\ntime.sleep(600)")
    return first, second, written(tmp_path / "first"), written(tmp_path / "second")


def test_f18_with_two_slots_a_daemon_goes_with_the_last_payload_that_may_have_started_it(
    start: Start, tmp_path: Path
) -> None:
    """Nothing tells whose it is: it may not be ended with the wrong one, and may not outlive both."""
    first, second, one, two = two_daemons(start, tmp_path)
    with waited(first):
        first.kill()
    assert is_there(two)
    with waited(second):
        second.kill()
    assert not is_there(one) and not is_there(two)


def test_f18_two_payloads_that_end_at_the_same_moment_leave_no_daemon_to_each_other(
    start: Start, tmp_path: Path
) -> None:
    first, second, one, two = two_daemons(start, tmp_path)
    with waited(first), waited(second):
        first.kill()
        second.kill()
    assert not is_there(one) and not is_there(two)


def test_a_cgroup_tells_the_daemons_of_two_payloads_apart(tmp_path: Path) -> None:
    if cgroups.own() is None:
        pytest.skip("this account may make no cgroup (v2) here; as root it can")
    scripts = [f"{DAEMON}\ndaemon({str(tmp_path / name)!r})\ntime.sleep(600)" for name in ("first", "second")]
    with process.adopting_orphans():
        payloads = []
        for number, script in enumerate(scripts):
            place = tmp_path / str(number)
            place.mkdir()
            payloads.append(process.start([sys.executable, "-c", f"import time; time.sleep(0.1)\n{script}"], place, {}, place / "o", place / "e"))  # fmt: skip
        one, two = written(tmp_path / "first"), written(tmp_path / "second")
        with waited(payloads[0]):
            payloads[0].kill()
        assert not is_there(one) and is_there(two)
        group = payloads[1].cgroup
        assert group is not None and two in group.processes() and (group.cpu_seconds() or 0) > 0
        with waited(payloads[1]):
            payloads[1].kill()
        assert not is_there(two) and not group.path.exists()


def test_usage_counts_daemons_too(start: Start, tmp_path: Path) -> None:
    payload = start(f"{DAEMON}\nimport os\ndaemon({str(tmp_path / 'pid')!r})\ntime.sleep(600)")
    written(tmp_path / "pid")
    if payload.cgroup is not None:
        assert payload.usage().processes == 2
    with waited(payload):
        payload.kill()


def test_a_payload_that_runs_too_long_is_told_to_end_and_killed_after_the_grace(start: Start) -> None:
    payload = start("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
    began = time.monotonic()
    assert payload.wait(timeout_seconds=0.5, grace_seconds=0.3) == -9
    assert payload.timed_out and 0.7 < time.monotonic() - began < 5


def test_a_payload_that_ends_in_time_did_not_time_out(start: Start) -> None:
    payload = start("")
    assert (payload.wait(timeout_seconds=30), payload.timed_out) == (0, False)


# -- what it prints ---------------------------------------------------------------------------------------------------------


def test_f18_endless_text_stops_at_the_limit_and_the_rest_never_reaches_the_disk(
    start: Start, tmp_path: Path
) -> None:
    """As fast as it can, and faster than any monitor looks."""
    limit = 1_000_000
    payload = start("import os, sys\nx = b'x' * 65536\nwhile True: os.write(1, x); os.write(2, x)", limit)
    files = (tmp_path / "0" / "out", tmp_path / "0" / "err")

    def size() -> int:
        return sum(file.stat().st_size for file in files)

    with waited(payload) as codes:
        wait_until(lambda: size() > limit, 10, "the limit")
        stopped = size()
        wait_until(lambda: _sleeps(payload.pid), 5, "the payload to wait")
        assert size() == stopped < limit + 200_000
        payload.terminate(1)
    assert codes == [-15]
    assert size() == stopped


def _sleeps(pid: int) -> bool:
    stat = proc.stat(pid)
    return stat is not None and stat.state == "S"


def test_all_text_below_the_limit_is_kept_also_what_comes_with_the_last_breath(
    start: Start, tmp_path: Path
) -> None:
    payload = start(
        "import os\nos.write(1, b'a' * 60_000 + b'end')\nos.write(2, b'b' * 5)\nos._exit(0)", 10**6
    )
    assert payload.wait() == 0
    assert (tmp_path / "0" / "out").read_bytes() == b"a" * 60_000 + b"end"
    assert (tmp_path / "0" / "err").read_bytes() == b"b" * 5


def test_waiting_for_a_payload_leaves_no_descriptor_open(start: Start) -> None:
    start("").wait()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        start("print(1)", 1000).wait()
    assert len(os.listdir("/proc/self/fd")) == before
