"""The ini files of the seeds, as they stand on the slides, drive a pilot and a daemon, and their keys do what is documented."""

from __future__ import annotations

import datetime
import re
import signal
from pathlib import Path

import pytest

from protocol.errors import PilotExit
from protocol.messages.requests import StorageSpec
from protocol.messages.views import PilotView
from tests.acceptance.world import QUICK, Running, World, errors

FIXTURES = Path(__file__).parent.parent / "fixtures"
PILOT_INI = (FIXTURES / "seeds_pilot.ini").read_text()
DAEMON_INI = (FIXTURES / "seeds_daemon.ini").read_text()
SAMPLE_ADDRESS = "http://11.111.111.8080"


def seeds_ini(world: World) -> Path:
    """The seeds' text with the address of our server."""
    path = world.directory / world.unique("seeds.ini")
    path.write_text(PILOT_INI)
    return replaced(path, SAMPLE_ADDRESS, world.server.url)


def replaced(path: Path, old: str, new: str) -> Path:
    """The same file with one value changed."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is in the seeds' text {text.count(old)} times"
    path.write_text(text.replace(old, new))
    return path


def pilot(world: World, config: Path, *options: str) -> Running:
    """A pilot that learns from the file alone where the server is and what it is."""
    return world.start(
        "-m", "pilot", "--config", str(config), "--token-file", str(world.server.pilot_token), "-a", "work", *options,
        extra=QUICK, log=world.unique("pilot"),
    )  # fmt: skip


def known(world: World, running: Running) -> PilotView:
    """The pilot as the server knows it."""

    def look() -> list[PilotView]:
        return [view for view in world.session.pilots() if f"-{running.pid}-" in view.pilot_id]

    (view,) = world.until(look, "the pilot's first word")
    return view


# -- the pilot's file -------------------------------------------------------------------------------------------------------


def test_the_seeds_text_unchanged_is_understood_up_to_its_sample_address_which_has_no_port_separator(
    world: World,
) -> None:
    running = pilot(world, FIXTURES / "seeds_pilot.ini")
    assert running.wait(15) == PilotExit.BAD_SETTINGS
    assert re.search(rf"line \d+: SERVER_ADRESS .*{re.escape(SAMPLE_ADDRESS)}", running.text), running.text
    assert "port" in running.text


def test_pilot_id_stands_in_the_pilots_name_on_the_server(world: World) -> None:
    assert re.fullmatch(r"1-.+", known(world, pilot(world, seeds_ini(world))).pilot_id)


def test_two_pilots_with_the_same_pilot_id_stay_apart(world: World) -> None:
    config = seeds_ini(world)
    first, second = (known(world, pilot(world, config)) for _ in range(2))
    assert first.pilot_id != second.pilot_id


@pytest.mark.parametrize(("kind", "queue"), [("cpu", "CPU"), ("gpu", "GPU")])
def test_processor_type_chooses_the_queue_and_the_jobs(world: World, kind: str, queue: str) -> None:
    config = replaced(seeds_ini(world), "TYPE = cpu", f"TYPE = {kind}")
    running = pilot(world, config)
    view = known(world, running)
    assert (view.queue, view.resource_type) == (queue, kind)
    done = world.pilotage(
        "task",
        "submit",
        "--name",
        world.unique("task"),
        "--jobs",
        "1",
        "--resource-type",
        kind,
        "--wait",
        "--json",
        "--",
        "true",
    )
    assert '"COMPLETED"' in done


def test_the_broker_settings_are_read_and_ignored_with_one_notice_that_shows_no_password(
    world: World,
) -> None:
    running = pilot(
        world, replaced(seeds_ini(world), "RABBITMQ_PASSWORD=password", "RABBITMQ_PASSWORD=hunter2hunter2")
    )
    known(world, running)
    notices = [line for line in running.text.splitlines() if "rabbit_settings" in line]
    assert len(notices) == 1 and "is ignored" in notices[0]
    assert "hunter2hunter2" not in running.text


def test_the_log_rotates_at_max_log_size_and_keeps_backup_count_old_files(world: World) -> None:
    config = replaced(seeds_ini(world), "MAX_LOG_SIZE = 10485760 # 10MB", "MAX_LOG_SIZE = 4096 # 4 kB")
    config = replaced(config, "BACKUP COUNT = 5", "BACKUP COUNT = 2")
    queue = world.queue()
    running = pilot(world, config, "-q", queue, "--log-file", "pilot.log", "--max-jobs", "10")
    world.submit(queue, ["true"], n_jobs=10)
    assert running.wait(30) == PilotExit.DONE
    files = {path.name: path.stat().st_size for path in world.directory.glob("pilot.log*")}
    assert sorted(name for name in files if not name.endswith("lock")) == [
        "pilot.log",
        "pilot.log.1",
        "pilot.log.2",
    ]
    assert all(size <= 4096 for size in files.values()), files
    assert min(files["pilot.log.1"], files["pilot.log.2"]) > 2048, files
    assert "pilot ends" in (world.directory / "pilot.log").read_text()


# -- SCRIPT_PREFIX ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounts(world: World) -> list[Path]:
    """One file system that two nodes have at different places."""
    shared = world.directory / "file-system"
    (shared / "in").mkdir(parents=True)
    places = [world.directory / name for name in ("mount-a", "elsewhere/mount-b")]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(shared)
    world.data_root = str(shared)
    return places


def _queue_on_the_shared_file_system(world: World) -> str:
    storage = world.unique("storage")
    world.session.create_storage(StorageSpec(storage, "file:outputs"))
    Path(world.data_root, "outputs").mkdir()
    return world.queue(storage=storage)


def test_pilots_with_different_script_prefixes_find_the_same_files_at_their_own_places(
    world: World, mounts: list[Path]
) -> None:
    for number in (1, 2):
        (mounts[0] / "in" / f"part-{number}").write_text(f"content {number}\n")
    dataset = world.unique("dataset")
    world.pilotage("dataset", "register", dataset, str(mounts[0] / "in"), "--url-prefix", "file:in")
    queue = _queue_on_the_shared_file_system(world)
    task = world.submit(queue, ["cp", "{input}", "{output}"], input_dataset=dataset, outputs=["{lfn}.copy"])
    for place in mounts:  # one after the other, so that each of them runs one job
        config = replaced(seeds_ini(world), "/path_to_data/", str(place))
        assert pilot(world, config, "-q", queue, "--max-jobs", "1").wait(20) == PilotExit.DONE
    assert world.ended(task).state == "COMPLETED"
    assert len({job.pilot_id for job in world.jobs(task)}) == 2
    files = list(world.session.dataset_files(str(task.output_dataset)))
    assert {file.url.partition(".copy")[0] for file in files} == {
        f"file:outputs/{task.output_dataset}/part-{number}" for number in (1, 2)
    }
    copies = {
        path.name.partition(".copy")[0]: path.read_text() for path in mounts[1].glob("outputs/*/*.copy.*")
    }
    assert copies == {"part-1": "content 1\n", "part-2": "content 2\n"}


def test_without_a_script_prefix_a_relative_address_is_refused_with_the_remedy(
    world: World, mounts: list[Path]
) -> None:
    queue = _queue_on_the_shared_file_system(world)
    config = replaced(seeds_ini(world), "SCRIPT_PREFIX = /path_to_data/", "# no prefix")
    pilot(world, config, "-q", queue)
    task = world.submit_shell(queue, "echo x > {output}", outputs=["out"], max_losses=0)
    assert world.ended(task).state == "FAILED"
    job = world.job(task)
    assert "set SCRIPT_PREFIX" in (job.error_detail or ""), (errors(job), job.error_detail)


# -- the daemon's file ----------------------------------------------------------------------------------------------------------


def _daemon(world: World, config: Path, queue: str, *options: str) -> Running:
    return world.start(
        "-m", "pilot", "daemon", "--config", str(config), "--", "--url", world.server.url, "-q", queue,
        "--token-file", str(world.server.pilot_token), "-a", "work", *options,
        extra=QUICK, log=world.unique("daemon"),
    )  # fmt: skip


def test_the_seeds_daemon_text_unchanged_sets_script_delay(world: World) -> None:
    shown = world.start(
        "-m", "pilot", "daemon", "--config", str(FIXTURES / "seeds_daemon.ini"), "--print-config"
    )
    assert shown.wait(15) == 0
    assert re.search(r"SCRIPT_DELAY = 10\b.*seeds_daemon\.ini line 2", shown.text), shown.text


def test_the_daemon_starts_one_pilot_after_the_other_script_delay_seconds_apart(world: World) -> None:
    (world.directory / "daemon.ini").write_text(DAEMON_INI.replace("SCRIPT_DELAY = 10", "SCRIPT_DELAY = 2"))
    queue = world.queue()
    task = world.submit(queue, ["true"], n_jobs=2)
    _daemon(world, world.directory / "daemon.ini", queue, "--max-jobs", "1")
    assert world.ended(task).state == "COMPLETED"
    begun = sorted(
        datetime.datetime.fromisoformat(each.first_seen.replace("Z", "+00:00"))
        for each in world.session.pilots(queue=queue)
    )
    assert len(begun) >= 2
    assert 1.5 <= (begun[1] - begun[0]).total_seconds() < 6


def test_a_daemon_that_is_told_to_end_ends_its_pilots_in_order(world: World) -> None:
    (world.directory / "daemon.ini").write_text(DAEMON_INI + "[daemon]\npilots = 2\n")
    replaced(world.directory / "daemon.ini", "SCRIPT_DELAY = 10", "SCRIPT_DELAY = 0")
    queue = world.queue()
    daemon = _daemon(world, world.directory / "daemon.ini", queue)
    task = world.submit_shell(queue, "exec sleep 1000", n_jobs=2)
    world.until(
        lambda: world.session.task(task.task_id).counts.get("RUNNING") == 2, "a job in each of two pilots"
    )
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(15) == PilotExit.TERMINATED
    world.no_payload_is_left(0.1)
    assert [errors(job) for job in world.jobs(task)] == [["PILOT_SIGTERM"]] * 2
    assert {each.exit_code for each in world.session.pilots(queue=queue)} == {PilotExit.TERMINATED}
