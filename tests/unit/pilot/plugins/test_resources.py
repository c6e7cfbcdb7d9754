"""What batch systems tell a pilot: environments as they were recorded, with the files and commands beside them."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from pilot.node.allocation import NOTHING, Allocation
from pilot.plugins import resources
from pilot.plugins.resources.base import seconds_of
from pilot.plugins.resources.pbs import size_of
from pilot.plugins.resources.slurm import expand
from protocol.errors import PilotageError
from tests.machines import PLACE, Machine, environment, machine

BATCH = PLACE / "batch"


def job(recorded: str, place: Path, **more: str) -> tuple[Machine, dict[str, str]]:
    """A node of its own, whose PATH has nothing but what a test puts there."""
    there = machine("", place)
    environ = {name: value.replace("PLACE", str(place)) for name, value in environment(recorded).items()}
    return there, {**environ, **there.environ, **more}


def near(allocation: Allocation, seconds: float) -> bool:
    return allocation.seconds_left is not None and abs(allocation.seconds_left - seconds) < 60


# -- choosing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "system"),
    [
        ("slurm-cpu", "slurm"),
        ("htcondor", "htcondor"),
        ("torque", "pbs"),
        ("openpbs", "pbs"),
        ("kubernetes", "kubernetes"),
    ],
)
def test_the_environment_tells_which_batch_system_it_is(recorded: str, system: str, tmp_path: Path) -> None:
    _, environ = job(recorded, tmp_path)
    assert resources.detect(environ) == system
    assert resources.ask("auto", environ).system == system
    assert resources.ask("plain", environ) == NOTHING, "the setting goes before"


def test_without_a_batch_system_the_node_alone_counts() -> None:
    assert resources.ask("auto", {"PATH": "/usr/bin", "HOME": "/root"}) == NOTHING


def test_a_glidein_in_a_job_of_slurm_is_one_of_htcondor(tmp_path: Path) -> None:
    _, inner = job("htcondor", tmp_path)
    assert resources.detect({**environment("slurm-cpu"), **inner}) == "htcondor"


def test_a_name_that_nobody_has_is_a_wrong_setting() -> None:
    with pytest.raises(PilotageError, match=r"no resource plugin lsf; there are htcondor, .*slurm") as caught:
        resources.ask("lsf", {})
    assert caught.value.name == "BAD_SETTINGS"


@pytest.mark.parametrize("system", resources.names())
def test_a_job_of_which_nothing_is_told_is_no_error(system: str) -> None:
    """Conformance: no hook raises where variables, files and commands are all missing."""
    told = resources.ask(system, {"PATH": ""})
    assert (told.cores, told.memory_mb, told.seconds_left) == (0, 0, None)
    assert not told.gpus


@pytest.mark.parametrize("system", resources.names())
@pytest.mark.parametrize("nonsense", ["", "-1", "many", "1,2,3", "[", "/nowhere", "9" * 400, "\u0663"])
def test_nonsense_in_the_variables_is_no_error(system: str, nonsense: str, tmp_path: Path) -> None:
    names = {
        name
        for file in BATCH.glob("*.env")
        for name in environment(file.stem)
        if name not in ("PATH", "TMPDIR")
    }
    told = resources.ask(system, {**dict.fromkeys(names, nonsense), "PATH": ""})
    assert len(told.batch_id) <= 200


# -- Slurm ------------------------------------------------------------------------------------------------------------------


def test_slurm_tells_of_a_cpu_job(tmp_path: Path) -> None:
    there, environ = job("slurm-cpu", tmp_path)
    there.write("bin/squeue", "10:00\n")
    told = resources.ask("auto", environ)
    assert (told.batch_id, told.queue, told.nodes) == ("1", "cpu", ("n07",))
    assert (told.cores, told.memory_mb, told.gpus, told.seconds_left) == (4, 3000, None, 600)


def test_slurm_tells_of_a_gpu_job(tmp_path: Path) -> None:
    _, environ = job("slurm-gpu", tmp_path)
    told = resources.ask("auto", environ)
    assert (told.cores, told.memory_mb, told.gpus) == (2, 1000, ("0", "1"))
    assert told.seconds_left is None, "squeue is not on this node"


def test_an_element_of_an_array_is_called_as_scancel_takes_it(tmp_path: Path) -> None:
    _, environ = job("slurm-array", tmp_path)
    assert resources.ask("auto", environ).batch_id == "4_4"


def test_a_task_of_srun_has_its_own_cores_and_their_share_of_the_memory(tmp_path: Path) -> None:
    _, environ = job("slurm-step", tmp_path, SLURM_JOB_END_TIME=str(int(time.time()) + 3600))
    told = resources.ask("auto", environ)
    assert (told.cores, told.memory_mb, told.gpus) == (8, 32000, ("1",))
    assert told.nodes == ("n09", "n10")
    assert near(told, 3600)
    del environ["SLURM_CPUS_PER_TASK"]
    assert resources.ask("auto", environ).cores == 8, "16 of the node for two tasks on it"


@pytest.mark.parametrize(
    "answer", ["UNLIMITED", "INVALID", "slurm_load_jobs error: Unable to contact slurm controller", ""]
)
def test_a_time_that_slurm_does_not_tell_is_no_bound(answer: str, tmp_path: Path) -> None:
    there, environ = job("slurm-cpu", tmp_path)
    there.write("bin/squeue", answer + "\n")
    assert resources.ask("auto", environ).seconds_left is None


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[09-11,3],gpu1", ["n09", "n10", "n11", "n3", "gpu1"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("", []),
    ],
)
def test_short_lists_of_nodes_are_written_out(short: str, names: list[str]) -> None:
    assert list(expand(short)) == names


# -- HTCondor ---------------------------------------------------------------------------------------------------------------


def condor(place: Path, **machine_ad: str) -> dict[str, str]:
    _, environ = job("htcondor", place)
    began = f"JobCurrentStartDate = {int(time.time()) - 1000}\n"
    (place / ".job.ad").write_text(
        (BATCH / "htcondor.job.ad").read_text().replace("JobCurrentStartDate = 1795290000\n", began)
    )
    more = "".join(f"{name} = {value}\n" for name, value in machine_ad.items())
    (place / ".machine.ad").write_text((BATCH / "htcondor.machine.ad").read_text() + more)
    return environ


def test_htcondor_tells_in_its_ads(tmp_path: Path) -> None:
    told = resources.ask("auto", condor(tmp_path))
    assert (told.batch_id, told.nodes) == ("48213.7", ("n12.example.org",))
    assert (told.cores, told.memory_mb, told.gpus) == (4, 8192, ("GPU-6a96bd13",))
    assert near(told, 35_000), "AllowedJobDuration, of which a part is over"


def test_a_glidein_ends_when_its_machine_ad_says(tmp_path: Path) -> None:
    environ = condor(tmp_path, GLIDEIN_ToDie=str(int(time.time()) + 1800), GLIDEIN_Entry_Name='"JINR_T1"')
    told = resources.ask("auto", environ)
    assert near(told, 1800)
    assert told.queue == "JINR_T1"


def test_without_a_machine_ad_the_job_ad_tells(tmp_path: Path) -> None:
    environ = condor(tmp_path)
    del environ["_CONDOR_MACHINE_AD"], environ["_CONDOR_AssignedGPUs"]
    told = resources.ask("auto", environ)
    assert (told.cores, told.memory_mb, told.gpus) == (4, 8192, None)


# -- PBS --------------------------------------------------------------------------------------------------------------------


def test_torque_tells_by_variables_and_files(tmp_path: Path) -> None:
    _, environ = job("torque", tmp_path)
    (tmp_path / "nodes").write_text("n1\n" * 4 + "n2\n" * 4)
    (tmp_path / "gpus").write_text("n1-gpu1\nn1-gpu3\n")
    told = resources.ask("auto", environ)
    assert (told.batch_id, told.queue, told.nodes) == ("70412.torque.example.org", "long", ("n1", "n2"))
    assert (told.cores, told.memory_mb, told.gpus, told.seconds_left) == (4, 0, ("1", "3"), 7200)


def test_without_a_number_of_cores_the_lines_of_the_own_node_are_counted(tmp_path: Path) -> None:
    _, environ = job("torque", tmp_path)
    del environ["PBS_NUM_PPN"]
    (tmp_path / "nodes").write_text(f"{socket.gethostname().partition('.')[0]}.example.org\n" * 3 + "other\n")
    assert resources.ask("auto", environ).cores == 3


def test_openpbs_tells_by_qstat(tmp_path: Path) -> None:
    there, environ = job("openpbs", tmp_path)
    there.write("bin/qstat", (BATCH / "openpbs.qstat").read_text())
    (tmp_path / "nodes").write_text("n03.example.org\n")
    told = resources.ask("auto", environ)
    assert (told.cores, told.memory_mb, told.nodes) == (4, 8192, ("n03.example.org",))
    assert told.seconds_left == 24 * 3600 - 630


def test_torque_counts_down(tmp_path: Path) -> None:
    there, environ = job("torque", tmp_path)
    there.write(
        "bin/qstat", "Job Id: 70412\n    Walltime.Remaining = 4321\n    Resource_List.walltime = 02:00:00\n"
    )
    assert resources.ask("auto", environ).seconds_left == 4321


def test_a_command_that_fails_or_hangs_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.plugins.resources.base.COMMAND_SECONDS", 0.2)
    there, environ = job("openpbs", tmp_path)
    for script in ("exit 1", "exec /bin/sleep 60"):
        there.write("bin/qstat", "")
        (tmp_path / "bin" / "qstat").write_text(f"#!/bin/sh\n{script}\n")
        told = resources.ask("auto", environ)
        assert (told.cores, told.seconds_left) == (4, None)


@pytest.mark.parametrize(
    ("text", "mib"), [("8gb", 8192), ("2048mb", 2048), ("8388608kb", 8192), ("1tb", 1 << 20), ("lots", 0)]
)
def test_sizes_of_pbs(text: str, mib: int) -> None:
    assert size_of(text) == mib * (1 << 20)


# -- Kubernetes, and all ----------------------------------------------------------------------------------------------------


def test_kubernetes_tells_what_the_pod_hands_down(tmp_path: Path) -> None:
    _, environ = job("kubernetes", tmp_path)
    told = resources.ask("auto", environ)
    assert told == Allocation("kubernetes", "spd/pilot-7c9fd", ("worker-4",), 8, 16384, None, 86400.0, "spd")


def test_a_pod_that_hands_nothing_down_is_known_by_its_host_name(tmp_path: Path) -> None:
    told = resources.ask("auto", {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "HOSTNAME": "pilot-x", "PATH": ""})
    assert (told.batch_id, told.cores, told.seconds_left) == ("pilot-x", 0, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("1:30", 90), ("10:00", 600), ("1:00:00", 3600), ("2-12:30:00", 217_800), ("UNLIMITED", None),
        ("", None), ("1:2:3:4", None), ("-", None), ("1-", None), ("NOT_SET", None),
    ],
)  # fmt: skip
def test_times_of_batch_systems(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
