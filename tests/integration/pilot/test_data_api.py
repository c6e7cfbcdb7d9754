"""The Data API with real files: many at once, each with a result of its own, progress, and an end at any time."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest

from copytools import cp, load
from copytools.base import Checksums, CopyTool
from pilot.api import data
from pilot.api.data import Data, File, Progress, Transfers, find_tools
from protocol.errors import PilotageError
from tests.waiting import wait_until


@pytest.fixture
def quick() -> Callable[..., Data]:
    """The tools of this installation, and no waits before further tries."""
    return lambda *tools, **rules: Data(tools or None, **{"backoff_seconds": 0, **rules})


def stored(place: Path, n: int) -> List[File]:
    """Files of a storage, and where each is to lie here."""
    (place / "storage").mkdir()
    (place / "here").mkdir()
    files = []
    for number in range(n):
        path = place / "storage" / f"{number}.dat"
        path.write_bytes(b"%d" % number * 100)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        files.append(File(path.as_uri(), place / "here" / path.name, path.stat().st_size, {"md5": md5}))
    return files


def test_156_many_files_are_staged_in_each_with_its_own_result(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    good = stored(tmp_path, 100)
    lying = File(good[0].url, tmp_path / "here" / "lying", checksums={"md5": "0" * 32})
    short = File(good[0].url, tmp_path / "here" / "short", size=1)
    missing = File(f"{good[0].url}.not", tmp_path / "here" / "missing")
    strange = File("nobody://knows/this", tmp_path / "here" / "strange")
    files = [lying, *good, short, missing, strange]
    told: List[Progress] = []
    results = quick(retries=0).stage_in(files, told.append).wait()
    assert [each.file for each in results] == files, "in the order in which they were given"
    assert [each.error.name for each in results if each.error] == [
        "STAGE_IN_MD5_MISMATCH", "INPUT_SIZE_MISMATCH", "INPUT_NOT_FOUND", "UNKNOWN_COPYTOOL",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == sorted(
        file.path.name for file in good
    )
    for each in results[1:101]:
        assert each.copied is not None and each.copied.checksums["md5"] == each.file.checksums["md5"]
    assert [(each.done, each.total) for each in told] == [(number, 104) for number in range(1, 105)]


def test_what_was_staged_out_is_reported_with_size_and_checksums_and_never_overwritten(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(b"result")
    file = File((tmp_path / "stored").as_uri(), tmp_path / "out")
    [result] = quick().stage_out([file]).wait()
    assert result.copied is not None and result.copied.size == 6
    assert result.copied.checksums["adler32"] == "092202a0" and len(result.copied.checksums) == 2
    (tmp_path / "out").write_bytes(b"another")
    [result] = quick(retries=0).stage_out([file]).wait()
    assert result.error is not None and result.error.name == "OUTPUT_EXISTS"
    assert (tmp_path / "stored").read_bytes() == b"result"


class Gated(CopyTool):
    """Lets nobody through before the gate is open; ends soon when nobody wants the file any more."""

    schemes = ("gated",)

    def __init__(self) -> None:
        super().__init__({})
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)

    def copy_in(self, source: str, to: Path, timeout: float) -> Optional[Checksums]:
        self.entered.release()
        deadline = self.deadline(timeout)
        while not self.gate.wait(0.01):
            try:
                deadline.check()
            except OSError as error:
                raise PilotageError("STAGE_IN_FAILED", str(error)) from None
        to.write_bytes(b"x")
        return None


def gated(place: Path, n: int) -> List[File]:
    return [File(f"gated:{number}", place / str(number)) for number in range(n)]


def test_156_it_answers_at_once_and_several_files_are_on_their_way_together(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    tool = Gated()
    transfers = quick(tool, parallel=3).stage_in(gated(tmp_path, 5))
    for _ in range(3):
        assert tool.entered.acquire(timeout=10), "three are in the tool at the same time"
    assert not tool.entered.acquire(timeout=0.1), "and no fourth one"
    assert not transfers.is_done and transfers.wait(0.01) == []
    tool.gate.set()
    assert all(each.copied for each in transfers.wait()) and transfers.is_done


def test_156_what_is_cancelled_ends_soon_and_leaves_nothing(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    tool = Gated()
    transfers = quick(tool, parallel=2).stage_in(gated(tmp_path, 50))
    assert tool.entered.acquire(timeout=10)
    transfers.cancel()
    results = transfers.wait(10)
    assert len(results) == 50 and not any(each.copied or each.error for each in results)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_the_with_cancels_what_is_on_its_way(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    tool = Gated()
    with pytest.raises(KeyboardInterrupt), quick(tool).stage_in(gated(tmp_path, 9)) as transfers:
        raise KeyboardInterrupt
    assert transfers.is_done and list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_callback_reaches_who_waits_and_ends_the_rest(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    tool = Gated()
    tool.gate.set()
    seen: List[Progress] = []

    def fail(progress: Progress) -> None:
        seen.append(progress)
        raise ZeroDivisionError

    transfers = quick(tool, parallel=1).stage_in(gated(tmp_path, 50), fail)
    wait_until(lambda: transfers.is_done, 10, "all to end")
    with pytest.raises(ZeroDivisionError):
        transfers.wait()
    assert [bool(each.result.copied) for each in seen] == [True]


# -- small files ------------------------------------------------------------------------------------------------------


def test_small_files_are_copied_in_one_go_with_results_and_progress_for_each(
    quick: Callable[..., Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp.Tool, "copy_in", lambda *_: pytest.fail("one by one costs more"))
    told: List[Progress] = []
    files = stored(tmp_path, 200)
    results = quick().stage_in(files, told.append).wait()
    assert [each.file for each in results] == files
    assert all(file.path.read_bytes() == Path(file.url[7:]).read_bytes() for file in files)
    assert all(each.copied.checksums == each.file.checksums for each in results if each.copied)
    assert sorted(each.done for each in told) == list(range(1, 201))


def test_small_files_that_take_their_time_are_copied_by_several_threads(
    quick: Callable[..., Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)
    slowly = cp.Tool.copy_in

    def copy_in(*words: Any) -> Checksums:
        if not both.broken and Path(words[2]).name in ("64.dat", "65.dat"):
            both.wait()
        return slowly(*words)

    monkeypatch.setattr(data, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(cp.Tool, "copy_in", copy_in)
    results = quick(parallel=2).stage_in(stored(tmp_path, 80)).wait()
    assert all(each.copied for each in results) and not both.broken


def test_a_small_file_that_is_there_already_or_wrong_is_told_as_any_other(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    files = stored(tmp_path, 4)
    files[0].path.write_bytes(b"mine")
    files[1].path.symlink_to(tmp_path / "nowhere")
    Path(files[2].url[7:]).write_bytes(b"another")
    results = quick(retries=0).stage_in(files).wait()
    names = [each.error.name if each.error else "" for each in results]
    assert names == ["ALREADY_EXISTS", "ALREADY_EXISTS", "INPUT_SIZE_MISMATCH", ""]
    assert files[0].path.read_bytes() == b"mine" and files[1].path.is_symlink()
    assert not files[2].path.exists()


def test_small_files_outside_the_allowed_directories_are_refused(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    files = stored(tmp_path, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_bytes(b"secret")
    (tmp_path / "storage" / "way").symlink_to(tmp_path / "other")
    outside = [
        File(f"file://{tmp_path}/{way}/a", tmp_path / "here" / str(number), 6)
        for number, way in enumerate(("other", "storage/way", "storage/../other", "storage/%2e%2e/other"))
    ]
    tool = load("cp", {"directories": str(tmp_path / "storage")})
    results = quick(tool, retries=0).stage_in([*outside, *files]).wait()
    assert [each.error.name if each.error else "" for each in results] == ["BAD_PATH"] * 4 + [""] * 3
    assert not any(file.path.exists() for file in outside)


def test_many_small_files_can_be_cancelled(quick: Callable[..., Data], tmp_path: Path) -> None:
    transfers: List[Transfers] = []
    begun = threading.Event()

    def cancel(progress: Progress) -> None:
        begun.wait(30)
        transfers[0].cancel()

    transfers.append(quick().stage_in(stored(tmp_path, 300), cancel))
    begun.set()
    results = transfers[0].wait()
    n_copied = sum(each.copied is not None for each in results)
    assert 0 < n_copied < 300 and not any(each.error for each in results)
    assert len(list((tmp_path / "here").iterdir())) == n_copied


def test_one_file_can_be_copied_by_itself_and_its_error_is_raised(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    [file] = stored(tmp_path, 1)
    assert quick().bring(file).size == file.size
    with pytest.raises(PilotageError) as caught:
        quick().bring(file)
    assert caught.value.name == "ALREADY_EXISTS" and file.path.exists()


def test_tools_and_their_options_can_be_named(tmp_path: Path) -> None:
    found = find_tools(["cp"], {"cp": {"directories": str(tmp_path)}})
    [result] = Data(found.usable, retries=0).stage_in([File("file:///etc/hostname", tmp_path / "x")]).wait()
    assert result.error is not None and result.error.name == "BAD_PATH"
    with pytest.raises(PilotageError, match="no copytool nope"):
        find_tools(["nope"])


def test_156_bytes_on_the_way_are_told_and_those_of_a_failed_try_taken_back(
    quick: Callable[..., Data], tmp_path: Path
) -> None:
    good = stored(tmp_path, 3)
    lying = File(good[0].url, tmp_path / "here" / "lying", checksums={"md5": "0" * 32})
    told: List[int] = []
    quick(retries=2).stage_in([*good, lying], moved=told.append).wait()
    assert sum(told) == sum(file.size or 0 for file in good)
    assert sum(number for number in told if number < 0) == -2 * (good[0].size or 0), "of two tries"
