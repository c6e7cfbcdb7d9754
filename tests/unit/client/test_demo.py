"""What the demo says when something is not as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest

from client import demo, watch
from client.demo import DATASET, Demo, Wish
from protocol.errors import PilotageError
from protocol.messages.views import FileView, JobView, TaskView

HASHES = {"md5": "a" * 32, "blake3": "b" * 64}


class Session:
    """A server on which both tasks have ended."""

    def __init__(self, folder: Path, files: List[str]) -> None:
        self.folder, self.files = folder, files
        self.states = {"demo-md5": "COMPLETED", "demo-blake3": "COMPLETED"}
        for kind in demo.KINDS:
            for name in files:
                (folder / f"{name}.{kind.algorithm}").write_text(f"{HASHES[kind.algorithm]}  {name}\n")

    def task(self, name: str) -> TaskView:
        return TaskView(
            1, name, "me", self.states[name], len(self.files), {}, 0, "x", "cpu", 0, output_dataset=f"{name}.out",
            output_state="closed", n_outputs=len(self.files), ended="x",
        )  # fmt: skip

    def jobs(self, **filters: Any) -> List[JobView]:
        return [
            JobView(
                7, 1, 1, "t", "FAILED", "cpu", 0, 1, "x", "x", error="MISSING_OUTPUT", error_detail="no a.md5"
            )
        ]

    def dataset_files(self, name: str) -> List[FileView]:
        if name == DATASET:
            return [self.file(lfn, HASHES) for lfn in self.files]
        return [self.file(f"{lfn}.{name[5:-4]}", {}) for lfn in self.files]

    def file(self, lfn: str, checksums: Dict[str, str]) -> FileView:
        return FileView(lfn, "s", "d", 1, checksums, f"file://{self.folder}/{lfn}", "available")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path, ["a", "b"])


@pytest.fixture
def the_demo(tmp_path: Path) -> Demo:
    return Demo(Wish(2, "1KiB", 1024, tmp_path), tmp_path, None, None)  # type: ignore[arg-type]


def views(session: Session) -> List[TaskView]:
    return [session.task(kind.task) for kind in demo.KINDS]


def test_right_hashes_are_counted(the_demo: Demo, session: Session) -> None:
    assert the_demo.verify(session, views(session)) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [f"{'c' * 32}  a\n", f"{'a' * 32}  b\n", "", "a" * 32])
def test_a_hash_that_is_not_the_registered_one_is_found(
    the_demo: Demo, session: Session, tmp_path: Path, content: str
) -> None:
    (tmp_path / "a.md5").write_text(content)
    with pytest.raises(PilotageError, match="hashes of demo-md5.out differ from the registered checksums"):
        the_demo.verify(session, views(session))  # type: ignore[arg-type]


@pytest.mark.parametrize("trouble", ["failed", "open", "too few"])
def test_a_task_that_did_not_complete_is_told_with_its_jobs(
    the_demo: Demo, session: Session, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    found = views(session)
    if trouble == "failed":
        found[1].state = "PARTIAL"
    elif trouble == "open":
        found[1].output_state = "open"
    else:
        found[1].n_outputs = 1
    monkeypatch.setattr(watch, "follow", lambda *args, **kwargs: found)
    with pytest.raises(PilotageError, match="task demo-blake3 is .* with . of 2 outputs") as caught:
        the_demo.follow(session)  # type: ignore[arg-type]
    assert caught.value.fields["problems"] == ["job 7: MISSING_OUTPUT: no a.md5"]
