"""Programs that are started are ended, with all that they have started, however they resist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Iterator, List

import pytest

from client import processes
from client.processes import Program, Programs, Signals
from protocol.errors import PilotageError
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals:
        yield signals


@pytest.fixture
def programs(signals: Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with Programs(signals, tmp_path, environment) as programs:
        yield programs


def write(folder: Path, name: str, code: str) -> str:
    (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return name


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def told(path: Path, count: int) -> List[int]:
    """The process numbers that the programs wrote down."""
    numbers = [int(line) for line in path.read_text().split()] if path.exists() else []
    return numbers if len(numbers) >= count else []


RESISTS = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deep = int(sys.argv[2])
    with open(sys.argv[1], "a") as out:
        out.write(f"{os.getpid()}\\n")
    if deep:
        subprocess.Popen([sys.executable, "-m", "resists", sys.argv[1], str(deep - 1)], start_new_session=True)
    time.sleep(100)
"""


def test_a_program_that_ends_on_sigterm_is_ended_so(programs: Programs, tmp_path: Path) -> None:
    code = """
        import signal, sys, time
        def end(*args):
            print("in order", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(100)
    """
    program = programs.start("polite", write(tmp_path, "polite", code), cwd=tmp_path)
    wait_until(lambda: program.tail() == ["ready"])
    programs.stop()
    assert program.tail() == ["ready", "in order"]
    assert program.popen.returncode == 0 and programs.all == []


def test_what_resists_and_what_it_started_in_other_sessions_is_killed(
    programs: Programs, tmp_path: Path
) -> None:
    """As a pilot that hangs, whose payload hangs, whose child hangs."""
    write(tmp_path, "resists", RESISTS)
    programs.start("tough", "resists", str(tmp_path / "pids"), "2", cwd=tmp_path)
    pids = wait_until(lambda: told(tmp_path / "pids", 3))
    programs.stop()
    assert not [pid for pid in pids if alive(pid)]


def test_what_a_killed_program_left_is_ended_too(programs: Programs, tmp_path: Path) -> None:
    write(tmp_path, "resists", RESISTS)
    program = programs.start("tough", "resists", str(tmp_path / "pids"), "1", cwd=tmp_path)
    pids = wait_until(lambda: told(tmp_path / "pids", 2))
    program.popen.kill()
    wait_until(lambda: program.popen.poll() is not None)
    assert alive(pids[1])
    programs.stop()
    assert not alive(pids[1])


def test_the_first_program_is_ended_last(programs: Programs, tmp_path: Path) -> None:
    """The server hears the last words of the pilots."""
    code = """
        import os, signal, sys, time
        def end(*args):
            time.sleep(float(sys.argv[2]))
            open(sys.argv[1], "a").write(sys.argv[3] + " ")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(100)
    """
    write(tmp_path, "orderly", code)
    order = tmp_path / "order"
    started = [
        programs.start(name, "orderly", str(order), seconds, name, cwd=tmp_path)
        for name, seconds in (("server", "0"), ("pilot", "0.2"))
    ]
    for program in started:
        wait_until(lambda program=program: program.tail() == ["ready"])
    programs.stop()
    assert order.read_text() == "pilot server "


def test_a_child_of_somebody_else_is_let_live(signals: Signals, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        write(tmp_path, "resists", RESISTS)
        with Programs(signals, tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)}) as programs:
            programs.start("brief", write(tmp_path, "brief", "pass"), cwd=tmp_path)
        assert alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_a_program_that_ends_by_itself_is_told_with_the_end_of_its_log(
    programs: Programs, tmp_path: Path
) -> None:
    code = "for n in range(100): print('line', n)\nraise SystemExit(3)"
    program = programs.start("brief", write(tmp_path, "brief", code), cwd=tmp_path)
    wait_until(lambda: program.popen.poll() is not None)
    with pytest.raises(
        PilotageError, match=r"the brief ended by itself, with exit code 3; .*brief\.log"
    ) as caught:
        programs.check()
    assert caught.value.name == "PROGRAM_FAILED"
    assert caught.value.fields["problems"][-1] == "line 99"
    assert len(caught.value.fields["problems"]) == processes.TAIL_LINES


def test_one_that_is_meant_to_end_is_waited_for(programs: Programs, tmp_path: Path) -> None:
    looked: List[int] = []
    good = programs.start("good", write(tmp_path, "good", "import time; time.sleep(0.2)"), cwd=tmp_path)
    programs.finish(good, lambda: looked.append(1))
    assert looked and good not in programs.all
    bad = programs.start("bad", write(tmp_path, "bad", "import os; os.kill(os.getpid(), 9)"), cwd=tmp_path)
    with pytest.raises(PilotageError, match="the bad failed, by signal SIGKILL"):
        programs.finish(bad, lambda: None)


def test_its_memory_is_known_also_of_its_other_processes(programs: Programs, tmp_path: Path) -> None:
    code = """
        import subprocess, sys, time
        if len(sys.argv) == 1:
            subprocess.Popen([sys.executable, "-m", "hungry", "child"])
        data = bytearray(50_000_000)
        del data
        print("fed", flush=True)
        time.sleep(100)
    """
    program = programs.start("hungry", write(tmp_path, "hungry", code), cwd=tmp_path)
    wait_until(lambda: program.tail() == ["fed", "fed"])
    program.look(whole_session=False)
    assert program.peak.processes == 1 and 50_000_000 < program.peak.size < 100_000_000
    program.look(whole_session=True)
    assert program.peak.processes == 2 and program.peak.size > 100_000_000


# -- signals ------------------------------------------------------------------------------------------------------


def test_a_signal_while_a_program_is_started_waits_until_it_is_noted(
    signals: Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between fork and note, the program would be forgotten and live on."""
    really = subprocess.Popen
    started: List[int] = []

    def interrupted(*args: object, **kwargs: object) -> object:
        popen = really(*args, **kwargs)  # type: ignore[call-overload]
        started.append(popen.pid)
        os.kill(os.getpid(), signal.SIGINT)
        return popen

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    write(tmp_path, "sleeps", "import time; time.sleep(100)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        with Programs(signals, tmp_path, environment) as programs:
            programs.start("sleeps", "sleeps", cwd=tmp_path)
            pytest.fail("the signal was lost")
    assert started and not alive(started[0])


@pytest.mark.parametrize("number", processes.SIGNALS)
def test_a_signal_raises_at_once_and_its_number_is_kept(signals: Signals, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        threading.Event().wait(5)
    assert signals.first == number


def test_a_signal_that_python_swallowed_is_raised_at_the_next_check(
    signals: Signals, programs: Programs
) -> None:
    with signals_lost():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        programs.check()
    signals.first = None


class signals_lost:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> bool:
        return True


def test_the_same_ctrl_c_told_twice_is_no_impatience_but_a_later_one_is(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signals_lost(), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert not signals.impatient
    monkeypatch.setattr(processes, "IMPATIENT_SECONDS", -1)
    with signals_lost():
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.impatient
    signals.first = None


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in processes.SIGNALS]
    with Signals():
        assert [signal.getsignal(number) for number in processes.SIGNALS] != before
    assert [signal.getsignal(number) for number in processes.SIGNALS] == before


def test_programs_end_when_their_starter_is_killed(tmp_path: Path) -> None:
    """Nobody can catch SIGKILL (the out-of-memory killer's): the kernel tells the programs."""
    write(tmp_path, "sleeps", "import os, time; print(os.getpid(), flush=True); time.sleep(100)")
    code = f"""
        import os, time
        from pathlib import Path
        from client.processes import Programs, Signals
        here = Path({str(tmp_path)!r})
        with Signals() as signals, Programs(signals, here, {{**os.environ, "PYTHONPATH": str(here)}}) as programs:
            programs.start("sleeps", "sleeps", cwd=here)
            time.sleep(100)
    """
    starter = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    try:
        (pid,) = wait_until(lambda: told(tmp_path / "sleeps.log", 1))
    finally:
        starter.kill()
        starter.wait()
    wait_until(lambda: not alive(pid))


def test_a_program_that_vanished_has_no_memory_left_to_look_at(tmp_path: Path) -> None:
    popen = subprocess.Popen([sys.executable, "-c", "pass"])
    popen.wait()
    program = Program("x", popen, tmp_path / "x.log")
    program.look(whole_session=False)
    assert program.peak.size == 0 and program.tail() == []
    assert time.monotonic() > 0
