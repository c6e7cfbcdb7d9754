"""`storage clean` of outputs: they leave the catalogue for good, their files go with the sweeper, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.files import local_path
from protocol.messages.requests import ContainerSpec, RetrySpec, StorageSpec
from server import catalogue, computing, containers
from server.jobs import operations
from server.models import AdminEvent, Dataset, File, Garbage, Replica
from server.paging import Cursor
from server.upkeep import garbage, retention
from tests.auditing import assert_clean
from tests.integration.server.world import World


@pytest.fixture
def done(world: World, storage: Path) -> World:
    """A task that ended: the outputs of two jobs are on the storage, and a user has registered a file of his own there."""
    world.dataset(3)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    world.form()
    world.pilot()
    first, second, third = world.claim(n_jobs=3)
    for job in (first, second):
        path = Path(local_path(job.outputs[0].url))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"abc")
        world.complete(job)
    world.fail(third)
    world.close_tasks()
    (storage / "t.out" / "mine").write_bytes(b"mine")
    return world


def test_outputs_go_with_their_files_and_their_names_are_remembered(
    done: World, storage: Path, url: str
) -> None:
    cleaned = retention.clean(done.core, "t.out", "root", dry=False)
    assert (cleaned.n_files, cleaned.size, cleaned.n_left, cleaned.why_not) == (2, 6, 0, "")
    assert garbage.run_once(done.core) == 2
    assert [path.name for path in (storage / "t.out").iterdir()] == ["mine"]
    shown = catalogue.view(catalogue.find("t.out"))
    assert (shown.state, shown.n_files, shown.size) == ("deleted", 0, 0)
    assert not catalogue.files(Cursor(), dataset="t.out").items
    assert File.select().where(File.state == "deleted").count() == 2
    (storage / "t.out" / "mine").unlink()
    # Nothing was ever at the addresses of the inputs; the audit reads outputs alone.
    assert_clean(url)
    event = AdminEvent.select().order_by(AdminEvent.id.desc()).get()
    assert (event.who, event.action, event.subject) == ("root", "storage clean", "t.out")


def test_dry_tells_what_would_go_and_changes_nothing(done: World) -> None:
    with done.unchanged():
        told = retention.clean(done.core, "t.out", "root", dry=True)
    assert (told.n_files, told.size, told.n_left) == (2, 6, 2)


def test_nothing_reads_or_makes_what_was_deleted(done: World) -> None:
    retention.clean(done.core, "t.out", "root", dry=False)
    with done.refused("WRONG_STATE", "deleted"):
        done.task("next", input_dataset="t.out")
    with done.refused("WRONG_STATE", "deleted"):
        operations.retry(done.core, "t", RetrySpec(), "ada")


def test_a_task_whose_input_was_deleted_is_not_tried_again(done: World) -> None:
    done.task("next", input_dataset="t.out", max_attempts=1)
    done.form()
    for job in done.claim(n_jobs=2):
        done.fail(job)
    done.close_tasks()
    assert not retention.clean(done.core, "t.out", "root", dry=False).why_not
    with done.refused("WRONG_STATE", "the input of task next, was deleted"):
        operations.retry(done.core, "next", RetrySpec(), "ada")


def _read_by_a_task(world: World) -> str:
    world.task("next", input_dataset="t.out")
    return "t.out"


def _read_in_a_container(world: World) -> str:
    world.dataset(1, "first", close=False)
    containers.create(world.core, ContainerSpec("c", ["first", "t.out"]), "ada")
    world.task("next", input_dataset="c")
    return "t.out"


def _open(world: World) -> str:
    world.task("open", outputs=["{stem}.p"])
    return "open.out"


def _on_tape(world: World) -> str:
    computing.create_storage(world.core, StorageSpec("TAPE", "root://eos.example//spd"))
    output = File.get(File.lfn == "f00000.o")
    url = "root://eos.example//spd/t.out/f00000.o.9"
    world.core.database.write(lambda: Replica.create(file=output, storage="TAPE", url=url))
    return "t.out"


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (_read_by_a_task, "task next, which has not ended, reads it"),
        (_read_in_a_container, "task next, which has not ended, reads it"),
        (_open, "still fills it"),
        (_on_tape, "where the server cannot remove any"),
        (lambda world: "in", "registered by a user"),
    ],
)
def test_what_somebody_needs_or_the_server_cannot_remove_stays(
    done: World, prepare: Callable[[World], str], why: str
) -> None:
    name = prepare(done)
    with done.unchanged():
        assert why in retention.clean(done.core, name, "root", dry=False).why_not


def test_what_was_not_done_when_the_answer_was_due_goes_on_with_the_next_request(
    done: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(retention, "Pace", lambda **_: OneByOne())
    first = retention.clean(done.core, "t.out", "root", dry=False)
    assert (first.n_files, first.n_left) == (2, 1)
    second = retention.clean(done.core, "t.out", "root", dry=False)
    assert (second.n_files, second.n_left) == (1, 0)
    assert Garbage.select().count() == 2


@pytest.mark.parametrize("n_files", [0, 7])
def test_files_go_and_none_is_left_whatever_the_count_of_the_dataset_says(done: World, n_files: int) -> None:
    wrong = Dataset.update(n_files=n_files).where(Dataset.name == "t.out")
    done.core.database.write(wrong.execute)
    assert retention.clean(done.core, "t.out", "root", dry=False).n_left == 0
    assert File.select().where(File.state == "deleted").count() == 2
    assert retention.clean(done.core, "t.out", "root", dry=False).n_left == 0


def test_two_requests_at_once_take_each_file_once(done: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "Pace", lambda **_: OneByOne())
    with ThreadPoolExecutor(4) as several:
        list(several.map(lambda _: retention.clean(done.core, "t.out", "root", dry=False), range(4)))
    assert catalogue.sizes([catalogue.find("t.out")]) == {catalogue.find("t.out").id: (0, 0)}
    assert Garbage.select().count() == 2


class OneByOne(retention.Pace):
    def __init__(self) -> None:
        super().__init__(first=1, most=1)


def test_both_replicas_of_an_output_go(done: World, tmp_path: Path) -> None:
    computing.create_storage(done.core, StorageSpec("NEW", f"file://{tmp_path}/new"))
    second = tmp_path / "new" / "t.out" / "f00000.o.4711"
    second.parent.mkdir()
    second.write_bytes(b"abc")
    output = File.get(File.lfn == "f00000.o")
    done.core.database.write(lambda: Replica.create(file=output, storage="NEW", url=f"file://{second}"))
    retention.clean(done.core, "t.out", "root", dry=False)
    assert garbage.run_once(done.core) == 3 and not second.exists()
    assert not Replica.select().where(Replica.file == output.id).exists()
