"""The main job as a user runs it: DAQ files, a dataset, a CPU and a GPU task over it, a pilot for each; and the spd plugin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import pytest

from protocol.messages import from_wire
from protocol.messages.views import JobView, TaskView
from protocol.share import shared_path
from protocol.states import SUCCESS
from tests.acceptance.world import World, errors, words
from tests.running_server import serving

FILES = 4


@dataclass
class MainJob:
    """What is left when it has run: a task per algorithm, its jobs, the pilots' exit codes, and the data."""

    world: World
    data: dict[str, bytes]
    tasks: dict[str, TaskView]
    jobs: dict[str, list[JobView]]
    exit_codes: list[int]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainJob]:
    """Run it once, with the commands that the README shows, on the queues of a new server."""
    directory = tmp_path_factory.mktemp("main")
    with serving(directory / "server") as server:
        world = World(server, directory, "main-job")
        yield _run(world)
        world.close()


def _run(world: World) -> MainJob:
    world.pilotage(
        "daq", "emulate", "--out", "data", "--files", str(FILES), "--size", "64KiB", "--builders", "2"
    )
    registered = world.pilotage("dataset", "register", "run-1", "data")
    assert f"{FILES} files" in registered and "closed" in registered
    tasks = {}
    for algorithm, more in (("md5", []), ("blake3", ["--gpu"])):
        shown = world.pilotage(
            "task", "submit", "--name", f"run-1-{algorithm}", "--input", "run-1", "--output", "{stem}." + algorithm,
            "--ship", str(shared_path("etc/examples/hash_file.py")), *more, "--json", "--",
            "{python}", "{bundle}/hash_file.py", algorithm, "{input}", "{lfn}", "{output}",
        )  # fmt: skip
        tasks[algorithm] = world.note(from_wire(TaskView, json.loads(shown)))
    pilots = [
        world.pilot("CPU", "--max-jobs", str(FILES), "--pilot-id", "the-cpu-pilot", work="cpu"),
        world.pilot("GPU", "--max-jobs", str(FILES), "--pilot-id", "the-gpu-pilot", work="gpu", kind="gpu"),
    ]
    tasks = {algorithm: world.ended(task) for algorithm, task in tasks.items()}
    jobs = {algorithm: world.jobs(task) for algorithm, task in tasks.items()}
    data = {path.name: path.read_bytes() for path in (world.directory / "data").rglob("*.spd")}
    return MainJob(world, data, tasks, jobs, [pilot.wait(15) for pilot in pilots])


BOTH = pytest.mark.parametrize("algorithm", ["md5", "blake3"])


@BOTH
def test_a_task_over_a_dataset_completes_with_one_job_per_file(main_job: MainJob, algorithm: str) -> None:
    assert main_job.tasks[algorithm].state == "COMPLETED"
    inputs = [file.lfn for job in main_job.jobs[algorithm] for file in job.inputs or ()]
    assert sorted(inputs) == sorted(main_job.data)
    assert len(main_job.data) == len(main_job.jobs[algorithm]) == FILES


@BOTH
def test_the_history_of_each_job_shows_the_eleven_words_in_order(main_job: MainJob, algorithm: str) -> None:
    eleven = [state.value for state in SUCCESS]
    assert [words(job) for job in main_job.jobs[algorithm]] == [eleven] * FILES


@BOTH
def test_the_times_in_the_history_of_a_job_do_not_go_back(main_job: MainJob, algorithm: str) -> None:
    for job in main_job.jobs[algorithm]:
        times = [line.at for line in job.history or ()]
        assert times == sorted(times)


@pytest.mark.parametrize(("algorithm", "kind"), [("md5", "cpu"), ("blake3", "gpu")])
def test_a_pilot_takes_only_jobs_of_its_own_kind(main_job: MainJob, algorithm: str, kind: str) -> None:
    pilots = {attempt.pilot_id for job in main_job.jobs[algorithm] for attempt in job.attempts or ()}
    assert len(pilots) == 1 and pilots.pop().startswith(f"the-{kind}-pilot-")


@BOTH
def test_the_output_dataset_is_closed_with_exactly_the_outputs(main_job: MainJob, algorithm: str) -> None:
    task = main_job.tasks[algorithm]
    assert (task.output_state, task.n_outputs) == ("closed", FILES)
    files = {file.lfn for file in main_job.world.session.dataset_files(str(task.output_dataset))}
    assert files == {lfn.replace(".spd", f".{algorithm}") for lfn in main_job.data}


@BOTH
def test_each_output_holds_the_hash_of_its_input(main_job: MainJob, algorithm: str) -> None:
    main_job.world.pilotage("dataset", "get", f"run-1-{algorithm}.out", "--to", f"results-{algorithm}")
    results = main_job.world.directory / f"results-{algorithm}"
    algorithms: dict[str, Callable[[bytes], Any]] = {"md5": hashlib.md5, "blake3": blake3.blake3}
    hashed = algorithms[algorithm]
    expected = {
        lfn.replace(".spd", f".{algorithm}"): f"{hashed(data).hexdigest()}  {lfn}\n"
        for lfn, data in main_job.data.items()
    }
    assert {path.name: path.read_text() for path in results.iterdir()} == expected


def test_pilots_that_ran_jobs_end_with_exit_code_0_and_tell_the_server_so(main_job: MainJob) -> None:
    assert main_job.exit_codes == [0, 0]
    pilots = {pilot.queue: pilot for pilot in main_job.world.session.pilots()}
    assert {name: (pilot.state, pilot.exit_code, pilot.n_done) for name, pilot in pilots.items()} == {
        "CPU": ("ended", 0, FILES),
        "GPU": ("ended", 0, FILES),
    }


def test_a_pilot_leaves_nothing_in_its_work_directory_but_the_cached_bundle(main_job: MainJob) -> None:
    left = [path for path in (main_job.world.directory / "cpu").rglob("*") if path.is_file()]
    assert all(path.name.startswith("sha256-") or path.suffix == ".lock" for path in left), left
    assert {path.parent.name for path in left} == {"bundles"}, left


# -- the experiment plugin spd ----------------------------------------------------------------------------------------------


def _spd_files(world: World, *options: str, files: int = 1) -> list[Path]:
    out = world.unique("daq")
    world.pilotage("daq", "emulate", "--out", out, "--files", str(files), "--size", "32KiB", *options)
    return sorted((world.directory / out).iterdir())


def _spd_task(world: World, *paths: Path, data_type: str = "", **registered: Any) -> TaskView:
    queue = world.queue()
    world.pilot(queue, "--pilotuser", "spd")
    command = ["cp", "{input}", "{output}"]
    task = world.submit(
        queue,
        command,
        input_dataset=world.dataset(*paths, **registered),
        outputs=["copy-of-{lfn}"],
        data_type=data_type,
        max_losses=0,
    )
    return world.ended(task)


def test_the_spd_plugin_refuses_a_truncated_and_a_foreign_file_and_lets_the_good_one_pass(
    world: World,
) -> None:
    """They are registered by size alone, which is right: only who knows the format sees what is wrong."""
    good, truncated, foreign = _spd_files(world, files=3)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    foreign.write_text("not what the DAQ wrote\n" * 1000)
    task = _spd_task(world, good, truncated, foreign, algorithms=("none",))
    assert task.state == "PARTIAL"
    verdicts = {job.inputs[0].lfn: (job.state, job.error) for job in world.jobs(task) if job.inputs}
    assert verdicts == {
        good.name: ("COMPLETED", None),
        truncated.name: ("FAILED", "SPD_FILE_TRUNCATED"),
        foreign.name: ("FAILED", "SPD_FILE_FOREIGN"),
    }
    assert (task.n_outputs, task.output_state) == (1, "closed")


@pytest.mark.parametrize(("made", "wanted"), [([], "simulated"), (["--simulated"], "raw")])
def test_the_spd_plugin_refuses_data_of_the_other_kind(world: World, made: list[str], wanted: str) -> None:
    task = _spd_task(world, *_spd_files(world, *made), data_type=wanted)
    (job,) = world.jobs(task)
    assert errors(job) == ["SPD_WRONG_KIND"]
    assert task.state == "FAILED"


def test_the_spd_plugin_takes_simulated_data_where_the_task_asks_for_it(world: World) -> None:
    assert _spd_task(world, *_spd_files(world, "--simulated"), data_type="simulated").state == "COMPLETED"


def test_the_spd_plugin_runs_payloads_in_the_software_environment_that_its_set_up_script_makes(
    world: World,
) -> None:
    setup = world.directory / "setup.sh"
    setup.write_text("export SPD_RELEASE=2026.11\n")
    queue = world.queue()
    world.pilot(queue, "--pilotuser", "spd", settings={"PILOTAGE_SPD__SOFTWARE_SETUP": str(setup)})
    task = world.submit_shell(queue, "echo release $SPD_RELEASE > {output}", outputs=["release"])
    assert world.ended(task).state == "COMPLETED"
    assert world.output(task) == "release 2026.11\n"
