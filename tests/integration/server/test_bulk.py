"""Much at once: files in a stream, the end of a large task, numbers without counting; while others are served."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from protocol.messages.pilots import Command
from protocol.messages.requests import DatasetSpec, FileSpec, RetrySpec
from protocol.states import JobState, TaskState
from server import catalogue, closer, job_manager, tallies, task_executor, task_manager
from server.access.tokens import Role
from server.core import Core, Limits
from server.daemons import Daemons
from server.jobs import cancelling, operations
from server.models import Attempt, Dataset, File, Job, JobEvent, Replica, Site, Storage, Task
from server.pace import Pace
from server.paging import Cursor
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import MD5, Bearer, World, files, giving_back
from tests.waiting import wait_until

S = JobState
NDJSON = {"Content-Type": "application/x-ndjson"}


def lines(*specs: FileSpec) -> bytes:
    facts = (
        {"lfn": each.lfn, "size": each.size, "url": each.url, "checksums": each.checksums} for each in specs
    )
    return b"".join(json.dumps(each).encode() + b"\n" for each in facts)


@pytest.fixture
def user(client: FlaskClient, bearer: Bearer) -> Speaker:
    return Speaker(client, bearer, Role.ADMIN)


def send(user: Speaker, *specs: FileSpec, close: str = "") -> Any:
    path = "/v1/datasets/in/files" + (f"?close={close}" if close else "")
    return user.ok("POST", path, data=lines(*specs), headers=NDJSON)


# -- files in a stream ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "Pace", lambda *args: Pace(10, 10, 1000))


@pytest.mark.usefixtures("small_parts")
def test_files_in_json_lines_are_added_in_their_order_and_the_dataset_is_closed(
    world: World, user: Speaker
) -> None:
    world.dataset(0, close=False)
    view = send(user, *files(35), close="yes")
    assert (view["nAdded"], view["nKnown"], view["nFiles"], view["state"]) == (35, 0, 35, "closed")
    assert [file.lfn for file in catalogue.files(Cursor(), dataset="in").items] == [
        each.lfn for each in files(35)
    ]
    assert Replica.select().count() == 35
    first = catalogue.files(Cursor(limit=1), dataset="in")
    assert (first.items[0].url, first.items[0].checksums, first.total) == ("file:///data/f00000.spd", MD5, 35)


@pytest.mark.usefixtures("small_parts")
def test_whoever_was_interrupted_sends_all_of_them_again(world: World, user: Speaker) -> None:
    world.dataset(0, close=False)
    send(user, *files(23))
    with world.unchanged():
        view = send(user, *files(23))
        assert (view["nAdded"], view["nKnown"], view["state"]) == (0, 23, "open")
    view = send(user, *files(40), close="yes")
    assert (view["nAdded"], view["nKnown"], view["nFiles"]) == (17, 23, 40)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "other",
    [
        FileSpec("f00012.spd", 11, "file:///data/f00012.spd", MD5),
        FileSpec("f00012.spd", 10, "file:///data/f00012.spd", {"md5": "f" * 32}),
        FileSpec("f00012.spd", 10, "file:///elsewhere/f00012.spd", MD5),
    ],
    ids=["size", "checksum", "address"],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_name_with_other_facts_is_refused_and_what_came_before_stays(
    world: World, user: Speaker, other: FileSpec, before: bool
) -> None:
    world.dataset(0, close=False)
    if before:
        send(user, *files(15))
    sent = [*files(10, first=20), *files(1, first=12), other]
    response = user.post("/v1/datasets/in/files?close=yes", data=lines(*sent), headers=NDJSON)
    refused = refusal(response, 409, "ALREADY_EXISTS")
    assert "f00012.spd" in refused.detail
    assert refused.fields == {"n_added": 10, "n_known": 0}
    view = catalogue.view(catalogue.find("in"))
    assert (view.n_files, view.state) == (25 if before else 10, "open")


def test_checksums_of_other_kinds_make_no_other_file(world: World, user: Speaker) -> None:
    world.dataset(1, close=False)
    again = FileSpec("f00000.spd", 10, "file:///data/f00000.spd", {"adler32": "0" * 8})
    assert send(user, again)["nKnown"] == 1


@pytest.mark.parametrize(
    ("line", "status", "error", "detail"),
    [
        (b'{"lfn": "a"}', 400, "BAD_REQUEST", "line 2: size: is missing"),
        (b"no json", 400, "BAD_REQUEST", "line 2"),
        (b'{"lfn": "a", "size": 1, "url": "file:///x", "color": 1}', 400, "BAD_REQUEST", "no such field"),
        (b'{"lfn": "../a", "size": 1, "url": "file:///x"}', 400, "BAD_LFN", "'../a'"),
        (b'{"lfn": "a", "size": 1, "url": "file:///etc/passwd"}', 400, "BAD_PATH", "file 'a'"),
        (b'{"lfn": "a", "size": 1, "url": "file:///x", "checksums": {"sha1": "00"}}', 400, "CHECKSUM_NOT_SUPPORTED", "'a'"),
        (b'{"lfn": "' + b"x" * 70_000 + b'"}', 413, "TOO_LARGE", "line 2"),
        (b"\xff\xfe", 400, "BAD_REQUEST", "line 2"),
    ],
)  # fmt: skip
def test_a_bad_line_is_told_with_what_is_wrong(
    world: World, user: Speaker, line: bytes, status: int, error: str, detail: str
) -> None:
    world.dataset(0, close=False)
    data = lines(*files(1)) + line + b"\n" + lines(*files(1, first=5))
    refused = refusal(user.post("/v1/datasets/in/files", data=data, headers=NDJSON), status, error)
    assert detail in refused.detail
    assert catalogue.view(catalogue.find("in")).n_files == 0, "one part, which is taken whole or not at all"


def test_a_stream_is_not_bound_by_the_limit_of_a_body_and_a_list_is(
    core: Core, world: World, user: Speaker
) -> None:
    world.dataset(0, close=False)
    limit = core.limits.body_bytes
    blank = (b" " * 60_000 + b"\n") * (limit // 60_000 + 1)
    assert (
        user.post("/v1/datasets/in/files", data=blank + lines(*files(1)), headers=NDJSON).status_code == 200
    )
    refusal(user.post("/v1/datasets/in/files", data=blank), 413, "TOO_LARGE")


@pytest.mark.parametrize("prepare", ["closed", "of a task", "missing"])
def test_a_stream_goes_into_an_open_dataset_only(world: World, user: Speaker, prepare: str) -> None:
    if prepare == "closed":
        world.dataset(0)
    elif prepare == "of a task":
        world.task(n_jobs=1, outputs=["o"], output_dataset="in")
    response = user.post("/v1/datasets/in/files", data=lines(*files(1)), headers=NDJSON)
    refusal(response, 404 if prepare == "missing" else 409)


@pytest.mark.usefixtures("small_parts")
def test_the_body_is_read_as_it_comes_and_never_held_as_a_whole(world: World) -> None:
    world.dataset(0, close=False)
    behind = []

    def arriving() -> Iterator[FileSpec]:
        for index, spec in enumerate(files(100)):
            yield spec
            behind.append(index + 1 - File.select().count())

    catalogue.add_stream(world.core, "in", arriving(), close=False)
    assert max(behind) <= 10


def test_a_list_of_more_files_than_a_transaction_takes_comes_in_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "ATOMIC", 10)
    catalogue.create(world.core, DatasetSpec("in", files=files(25)))
    view = catalogue.add_files(world.core, "in", files(25, first=25), close=True)
    assert (view.n_files, view.size, view.state) == (50, 500, "closed")
    catalogue.create(world.core, DatasetSpec("other", scope="in"))
    with world.refused("ALREADY_EXISTS"):
        catalogue.add_files(world.core, "other", [*files(15, first=100), *files(1)], close=False)
    with world.refused("ALREADY_EXISTS"):
        catalogue.create(
            world.core, DatasetSpec("third", scope="in", files=[*files(15, first=100), *files(1)])
        )


def test_new_files_wake_the_task_executor(world: World, user: Speaker) -> None:
    world.dataset(0, close=False)
    world.core.to_form.clear()
    send(user, *files(1))
    assert world.core.to_form.is_set()


# -- forming ----------------------------------------------------------------------------------------------------------------


class TestDaemonsThatSeldomPass:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(executor_seconds=600, closer_seconds=0.05, reaper_seconds=600)

    def test_the_first_job_of_a_new_task_is_there_long_before_the_executor_s_next_turn(
        self, world: World
    ) -> None:
        world.pilot()
        daemons = Daemons(world.core)
        daemons.start()
        try:
            world.task(n_jobs=100_000)
            assert wait_until(lambda: world.claim(), what="the first job")
            wait_until(lambda: Job.select().count() == world.core.limits.ready_stock, what="a full stock")
            # A step that waits for another one is formed when that has ended.
            world.task("second", after=["t"], n_jobs=1)
            task_manager.cancel(world.core, "t", "ada")
        finally:
            daemons.stop()


def test_ten_million_jobs_are_accepted_at_once_and_formed_as_they_are_taken(world: World) -> None:
    view = world.task(n_jobs=10_000_000)
    assert (view.n_jobs, view.state) == (10_000_000, "REGISTERED")
    assert Job.select().count() == 0
    assert world.form() == world.core.limits.ready_stock
    with world.unchanged():
        assert world.form() == 0


def test_a_task_over_many_files_is_accepted_without_looking_at_them(world: World) -> None:
    """Its numbers come from the dataset's own: here they say more than there is."""
    world.dataset(3)
    Dataset.update(n_files=1_000_000).execute()
    assert world.task().n_jobs == 1_000_000


def test_the_first_job_of_a_full_lane_does_not_make_the_executor_look_at_its_tasks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.task("a", n_jobs=2000)
    world.task("b", n_jobs=2000)
    world.form()
    monkeypatch.setattr(task_executor, "_tasks_of", lambda stock: pytest.fail("tasks were looked at"))
    assert world.form() == 0


def test_jobs_carry_the_site_where_their_first_input_lies(world: World) -> None:
    Site.create(name="DUBNA")
    Storage.create(name="EOS", url="root://eos.jinr.ru//spd", site="DUBNA")
    Storage.create(name="NEARBY", url="root://eos.jinr.ru//spd-other", site="LOCAL")
    Storage.create(name="NOWHERE", url="root://eos.jinr.ru//spd/raw")
    urls = ["root://eos.jinr.ru//spd/raw/a", "root://elsewhere//b", "root://eos.jinr.ru//spd-other/c"]
    specs = [FileSpec(f"f{n}", 1, url) for n, url in enumerate(urls)]
    catalogue.create(world.core, DatasetSpec("in", files=specs, close=True))
    world.task()
    world.form()
    assert [job.site for job in Job.select().order_by(Job.job_nr)] == ["DUBNA", None, "LOCAL"]


def test_jobs_of_a_later_step_carry_the_site_of_the_storage_that_the_first_one_wrote_to(world: World) -> None:
    Storage.update(site="LOCAL").execute()
    world.dataset(1)
    world.task(outputs=["{stem}.o"])
    world.task("second", input_dataset="t.out")
    world.form()
    world.pilot()
    world.complete(world.claim()[0])
    world.close_tasks()
    world.form()
    assert Job.get(Job.task == 2).site == "LOCAL"


def test_a_job_that_fails_at_once_has_ended_and_is_counted(world: World) -> None:
    catalogue.create(
        world.core,
        DatasetSpec("in", files=[FileSpec("a.x", 1, "file:///a"), FileSpec("a.y", 1, "file:///b")]),
    )
    world.task(outputs=["{stem}.o"])
    world.form()
    assert [(job.state, job.ended_at is None) for job in Job.select().order_by(Job.id)] == [
        ("READY", True),
        ("FAILED", False),
    ]
    closer.count(world.core, 10)
    assert Task.get().n_failed == 1


def test_a_paused_task_forms_nothing(world: World) -> None:
    world.task(n_jobs=5)
    Task.update(paused=True).execute()
    assert world.form() == 0
    Task.update(paused=False).execute()
    assert world.form() == 5


def test_jobs_get_the_priority_of_the_task_and_its_boost(world: World) -> None:
    world.task(n_jobs=1, priority=5)
    Task.update(boost=37).execute()
    world.form()
    assert world.job().priority == 42


# -- the end of a large task ------------------------------------------------------------------------------------------------


class TestALargeTask:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(ready_stock=100_000)

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cancelling, "Pace", lambda **options: Pace(20, 20, 1000))

    def test_what_is_not_done_when_the_answer_is_due_the_closer_ends(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(task_manager, "ANSWER_SECONDS", 0)
        world.ready(200)
        [held] = world.claim()
        view = task_manager.cancel(world.core, "t", "ada")
        assert view.state == "RUNNING"
        assert view.counts["READY"] > 0
        assert world.form() == 0
        assert world.close_tasks() == 1
        view = task_manager.view(task_manager.find("t"))
        assert (view.state, view.counts) == ("CANCELLED", {"CANCELLED": 200})
        assert Task.get().cancelled_by is None
        assert world.beat(held)[0].command is Command.STOP
        assert {event.detail for event in JobEvent.select()} == {"ada: task 1 was cancelled"}
        assert JobEvent.select().count() == 200
        assert Attempt.get().error == "CANCELLED_BY_USER"
        history = job_manager.details(world.job(150)).history or []
        assert [(line.state, line.by) for line in history] == [
            ("REGISTERED", "task-executor"),
            ("CANCELLED", "user"),
        ]

    def test_f21_a_server_that_dies_in_the_middle_goes_on_with_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.ready(100)
        real, calls = cancelling._end_some, []

        def third_time(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == 3:
                raise RuntimeError("the server died here")
            return real(*args)

        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(cancelling, "_end_some", third_time)
            task_manager.cancel(world.core, "t", "ada")
        assert Job.select().where(Job.state == "CANCELLED").count() == 40
        assert world.close_tasks() == 1
        assert Job.select().where(Job.state == "CANCELLED").count() == 100

    def test_jobs_of_others_are_claimed_and_updated_between_two_chunks_of_a_cancellation(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.ready(2000)
        world.task("other", n_jobs=20, priority=1)
        world.form()
        real, served = cancelling._cancel, []

        def cancel_some(*args: Any) -> int:
            n = real(*args)
            # Within the transaction: another pilot asks now and is answered between this chunk and the next.
            if len(threads) < 5:
                asking = threading.Thread(target=giving_back(lambda: served.append(_cycle(world))))
                asking.start()
                threads.append(asking)
            return n

        def _cycle(world: World) -> int:
            [job] = world.claim()
            world.say(job, S.RUNNING)
            world.complete(job)
            return Job.select().where(Job.task == 1, Job.ended_at.is_null()).count()

        threads: list[threading.Thread] = []
        monkeypatch.setattr(cancelling, "_cancel", cancel_some)
        world.pilot()
        task_manager.cancel(world.core, "t", "ada")
        for thread in threads:
            thread.join(30)
        assert len(served) == len(threads) > 0
        assert served[0] > 0, "it was served while jobs were still to be ended"
        while Task.get_by_id(1).cancelled_by is not None:
            world.close_tasks()  # what the answer did not wait for on a slow machine
        assert tallies.counts_of(task_manager.find("t")) == {S.CANCELLED: 2000}


def test_jobs_are_ended_in_one_call_whatever_state_they_are_in(world: World) -> None:
    world.ready(5)
    done, running, waiting = world.claim(n_jobs=3)
    world.complete(done)
    world.say(running, S.RUNNING)
    world.fail(waiting, "STAGE_IN_FAILED")
    assert cancelling.cancel(world.core, [job.id for job in Job.select()], "ada", "no more") == 4
    rows = list(Job.select().where(Job.id != done.job_id))
    assert {(job.state, job.ready_nr, job.ready_after, job.loss, job.error) for job in rows} == {
        ("CANCELLED", None, None, None, "CANCELLED_BY_USER")
    }
    assert all(job.ended_at is not None for job in rows)
    assert Attempt.select().where(Attempt.ended_at.is_null()).count() == 0
    assert JobEvent.select().where(JobEvent.event == "CANCELLED_BY_USER").count() == 4


# -- numbers without counting -----------------------------------------------------------------------------------------------


def numbers(name: str = "t") -> tuple[int, int, int, int]:
    task = Task.get(Task.name == name)
    return task.n_completed, task.n_failed, task.n_cancelled, task.n_attempts


def test_a_task_shows_the_same_numbers_before_and_after_its_jobs_are_counted(world: World) -> None:
    world.dataset(6)
    world.task(outputs=["{stem}.o"], max_attempts=2)
    world.form()
    world.pilot()
    jobs = world.claim(n_jobs=4)
    world.complete(jobs[0])
    world.fail(jobs[1])
    world.fail(jobs[2], "WALLTIME_EXCEEDED")
    cancelling.cancel(world.core, [jobs[3].job_id], "ada", "")
    before = task_manager.view(task_manager.find("t"))
    assert before.counts == {"READY": 3, "COMPLETED": 1, "FAILED": 1, "CANCELLED": 1}
    assert (before.n_attempts, before.n_outputs, before.errors) == (4, 1, {"WALLTIME_EXCEEDED": 1})
    size = catalogue.view(catalogue.find("t.out")).size
    assert numbers() == (0, 0, 0, 0)
    assert closer.count(world.core, 10) == 3
    assert numbers() == (1, 1, 1, 3)
    assert task_manager.view(task_manager.find("t")) == before
    assert catalogue.view(catalogue.find("t.out")).size == size == 3
    assert Dataset.get(Dataset.name == "t.out").n_files == 1
    with world.unchanged():
        assert closer.count(world.core, 10) == 0


def test_what_failed_jobs_declared_goes_when_they_are_counted_and_nothing_else(world: World) -> None:
    world.dataset(3)
    world.task(outputs=["{stem}.o"], max_attempts=1)
    world.form()
    world.pilot()
    done, failed = world.claim(n_jobs=2)
    world.complete(done)
    world.fail(failed)
    closer.count(world.core, 10)
    rows = File.select(File.lfn, File.state).where(File.job_id.is_null(False)).order_by(File.id).tuples()
    assert list(rows) == [("f00000.o", "available"), ("f00002.o", "declared")]


def test_sizes_beyond_what_an_integer_of_the_database_holds_are_added_up(world: World) -> None:
    specs = [FileSpec(f"f{n}", 2**62 + 3, "file:///x") for n in range(4)]
    catalogue.create(world.core, DatasetSpec("in", files=specs))
    assert catalogue.view(catalogue.find("in")).size == 4 * (2**62 + 3)


def test_tasks_are_found_by_their_state_as_each_of_them_shows_it(world: World) -> None:
    """In all that a task can be in, before and after the closer has seen it."""
    world.dataset(0, name="growing", close=False)
    world.dataset(1)
    world.task("new", n_jobs=3, priority=-5)
    world.task("growing", input_dataset="growing")
    world.pilot()

    def make(name: str, n_jobs: int, end: Callable[[list[Any]], object], **spec: Any) -> None:
        world.task(name, n_jobs=n_jobs, priority=len(name) + 100, max_attempts=1, **spec)
        task_executor.run_once(world.core)
        end([world.claim(task_id=Task.get(Task.name == name).id)[0] for _ in range(n_jobs)])

    make("open", 2, lambda jobs: world.complete(jobs[0]))
    make("whole", 1, lambda jobs: world.complete(jobs[0]))
    make("broken", 1, lambda jobs: world.fail(jobs[0]))
    make("partial", 2, lambda jobs: (world.complete(jobs[0]), world.fail(jobs[1])))
    make("stopped", 1, lambda jobs: task_manager.cancel(world.core, "stopped", "ada"))
    for _ in range(2):
        shown = {view.name: view.state for view in task_manager.tasks(Cursor()).items}
        for state in TaskState:
            found = {view.name for view in task_manager.tasks(Cursor(), state=state.value).items}
            assert found == {name for name, word in shown.items() if word == state.value}, state
        assert set(shown.values()) == {state.value for state in TaskState}
        world.close_tasks()


def test_a_cancelled_job_that_a_user_has_tried_again_is_not_cancelled_with_its_task_once_more(
    world: World,
) -> None:
    world.ready(2)
    task_manager.cancel(world.core, "t", "ada")
    world.close_tasks()
    operations.retry(world.core, "t", RetrySpec(job_nr=1), "ada")
    world.close_tasks()
    assert [job.state for job in Job.select().order_by(Job.job_nr)] == ["READY", "CANCELLED"]
    world.pilot()
    world.complete(world.claim()[0])
    world.close_tasks()
    assert numbers() == (1, 0, 1, 1)
