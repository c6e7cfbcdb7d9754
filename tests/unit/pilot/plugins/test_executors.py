"""Executors: the commands they make, and what they make of a runtime's words. Nothing is started here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, List

import pytest

from pilot.plugins import executors
from pilot.plugins.executors import Chain, Run
from pilot.plugins.executors.base import Executor
from protocol.errors import BY_NAME, PilotageError


@pytest.fixture
def environ(tmp_path: Path) -> Dict[str, str]:
    """A node that has every runtime."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("apptainer", "srun", "mpiexec", "bwrap"):
        (place / name).touch(0o755)
    return {"PATH": str(place), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "job").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "image.sif").touch()
    return Run(
        ("reco", "a b; $(c)"),
        tmp_path / "job",
        {"GREETING": "hello, world=1", "PATH": "/opt/task/bin"},
        {"HOME": "/home/pilot", "PATH": "/usr/bin"},
        readable=(tmp_path / "in",),
        image=str(tmp_path / "image.sif"),
        cores=4,
        scratch=tmp_path / "job.scratch",
    )


def made(name: str, environ: Dict[str, str]) -> Executor:
    return executors.load([name], environ).executors[0]


def words_after(command: tuple[str, ...], option: str) -> List[str]:
    return [command[place + 1] for place, word in enumerate(command) if word == option]


def test_all_executors_are_found() -> None:
    assert {"plain", "apptainer", "bubblewrap", "srun", "mpiexec"} <= set(executors.names())


def test_an_executor_that_nobody_knows_is_a_wrong_setting(environ: Dict[str, str]) -> None:
    with pytest.raises(PilotageError) as caught:
        executors.load(["dcoker"], environ)
    assert caught.value.name == "BAD_SETTINGS" and "apptainer" in caught.value.detail


def test_plain_changes_nothing(environ: Dict[str, str], run: Run) -> None:
    assert made("plain", environ).wrap(run) == run


def test_apptainer_shows_the_work_directory_and_what_may_be_read_and_nothing_else(
    environ: Dict[str, str], run: Run, tmp_path: Path
) -> None:
    command = made("apptainer", environ).wrap(run).command
    assert command[:2] == (f"{environ['PATH']}/apptainer", "exec")
    assert {"--containall", "--no-home"} <= set(command) and "--nv" not in command
    binds = [bind for bind in words_after(command, "--bind") if not bind.startswith("/cvmfs")]
    assert binds == [f"{tmp_path}/job:{tmp_path}/job:rw", f"{tmp_path}/in:{tmp_path}/in:ro"]
    assert words_after(command, "--pwd") == [f"{tmp_path}/job"]
    assert words_after(command, "--workdir") == [f"{tmp_path}/job.scratch"]
    assert command[-3:] == (run.image, "reco", "a b; $(c)"), "words stay words"


def test_what_the_task_says_reaches_the_container_and_never_its_command_line(
    environ: Dict[str, str], run: Run
) -> None:
    wrapped = made("apptainer", environ).wrap(run)
    assert wrapped.environment == {
        "APPTAINERENV_GREETING": "hello, world=1",
        "APPTAINERENV_PATH": "/opt/task/bin",
    }
    assert wrapped.whole_environment["PATH"] == "/usr/bin", "the runtime itself is started as the node does"
    assert not [word for word in wrapped.command if "hello" in word]


def test_singularity_is_taken_where_a_node_has_no_apptainer(environ: Dict[str, str], run: Run) -> None:
    place = Path(environ["PATH"])
    (place / "apptainer").rename(place / "singularity")
    wrapped = made("apptainer", environ).wrap(replace(run, gpus=1))
    assert wrapped.command[0].endswith("/singularity") and "--nv" in wrapped.command
    assert "SINGULARITYENV_GREETING" in wrapped.environment


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("", "IMAGE_NOT_FOUND"),
        ("/no/such.sif", "IMAGE_NOT_FOUND"),
        ("--bind=/:/host", "IMAGE_NOT_FOUND"),
        ("docker://debian:12", ""),
    ],
)
def test_an_image_is_looked_for_before_anything_is_copied(
    image: str, error: str, environ: Dict[str, str], run: Run
) -> None:
    try:
        made("apptainer", environ).check(replace(run, image=image))
        found = ""
    except PilotageError as raised:
        found = raised.name
    assert found == error


def test_a_path_that_would_be_read_as_two_binds_is_refused(
    environ: Dict[str, str], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "in:/etc").mkdir(parents=True)
    with pytest.raises(PilotageError) as caught:
        made("apptainer", environ).wrap(replace(run, readable=(tmp_path / "in:/etc",)))
    assert caught.value.name == "CONTAINER_BIND_FAILED"


def test_srun_spreads_the_command_over_the_nodes_of_the_allocation(environ: Dict[str, str], run: Run) -> None:
    command = made("srun", environ).wrap(run).command
    assert {"--nodes=3", "--ntasks=3", "--cpus-per-task=4", "--kill-on-bad-exit=1"} <= set(command)
    assert command[-3:] == ("--", *run.command)
    assert "--ntasks=12" in made("srun", environ).wrap(replace(run, ranks=12)).command


def test_srun_is_of_no_use_outside_an_allocation(environ: Dict[str, str]) -> None:
    del environ["SLURM_JOB_ID"]
    assert "no Slurm job" in (made("srun", environ).unusable() or "")


def test_mpiexec_starts_a_rank_per_core_if_nothing_else_is_said(environ: Dict[str, str], run: Run) -> None:
    assert words_after(made("mpiexec", environ).wrap(run).command, "-n") == ["4"]
    assert words_after(made("mpiexec", environ).wrap(replace(run, ranks=9)).command, "-n") == ["9"]


def test_b24_an_argument_that_mpiexec_would_take_for_its_own_is_refused(
    environ: Dict[str, str], run: Run
) -> None:
    with pytest.raises(PilotageError) as caught:
        made("mpiexec", environ).check(replace(run, command=("reco", ":", "-host", "other", "rm")))
    assert caught.value.name == "BAD_COMMAND"


@pytest.mark.parametrize("name", ["apptainer", "bubblewrap", "srun", "mpiexec"])
def test_what_is_missing_on_a_node_is_said_in_words(name: str) -> None:
    assert "PATH" in (made(name, {"PATH": "/nowhere", "SLURM_JOB_ID": "1"}).unusable() or "")


def test_the_first_executor_is_the_outermost_and_steps_are_not_started_as_ranks(
    environ: Dict[str, str], run: Run
) -> None:
    chain = executors.load(["srun", "apptainer"], environ)
    command = chain.wrap(run).command
    assert command[0].endswith("/srun") and command.index(f"{environ['PATH']}/apptainer") > 0
    assert chain.wrap(run, is_step=True).command[0].endswith("/apptainer")
    assert chain.isolates and not executors.load(["srun"], environ).isolates


def test_an_image_where_nothing_takes_one_is_refused(environ: Dict[str, str], run: Run) -> None:
    with pytest.raises(PilotageError) as caught:
        executors.load(["plain"], environ).check(run)
    assert caught.value.name == "QUEUE_WITHOUT_CONTAINERS"


SAID = [
    ("apptainer", 255, "FATAL:   could not open image /x.sif: no such file", "IMAGE_NOT_FOUND"),
    ("apptainer", 255, "FATAL:   While making image from oci registry: error fetching", "CONTAINER_PULL_FAILED"),
    ("apptainer", 255, "ERROR  : Failed to create user namespace\nFATAL: user namespace disabled", "CONTAINER_USER_NAMESPACE_FAILED"),
    ("apptainer", 255, "FATAL:   something new", "CONTAINER_FAILED"),
    ("apptainer", 255, "the program's own 255", None),
    ("apptainer", 1, "FATAL: said the program", None),
    ("bubblewrap", 1, "bwrap: execvp reco: No such file or directory", "TRANSFORM_NOT_FOUND"),
    ("bubblewrap", 1, "bwrap: Can't bind mount /oldroot/x", "CONTAINER_FAILED"),
    ("bubblewrap", 1, "my own words", None),
    ("srun", 1, "srun: error: Unable to create step for job 7: Invalid generic resource", "STEP_NOT_STARTED"),
    ("srun", 3, "srun: error: node1: task 0: Exited with exit code 3", None),
    ("mpiexec", 1, "There are not enough slots available in the system", "STEP_NOT_STARTED"),
    ("plain", 255, "FATAL:", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "said", "error"), SAID)
def test_a_runtime_that_failed_is_told_from_a_payload_that_failed(
    name: str, code: int, said: str, error: str | None, environ: Dict[str, str]
) -> None:
    found = Chain(executors.load([name], environ).executors).explain_failure(code, said)
    assert found == error and (found is None or found in BY_NAME)
