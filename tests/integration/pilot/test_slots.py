"""The slots of a pilot: each job has the cores, the memory and the GPUs of its own, and sees nobody else's."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.dispatcher import Dispatcher
from tests.machines import Machine, machine
from tests.pilots import Site

TELL = "for name in CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES GPU_DEVICE_ORDINAL; do printenv $name || echo unset; done"


def gpu_node(place: Path) -> str:
    """PATH with an nvidia-smi in front that shows four GPUs."""
    there: Machine = machine("four-nvidia", place)
    return f"{there.environ['PATH']}:/usr/bin:/bin"


def told(site: Site, number: int) -> str:
    """The three variables of the payload."""
    return "|".join(site.archive(number)["payload.stdout"].splitlines())


def test_jobs_that_run_at_the_same_time_see_different_gpus(
    site: Site, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    """Each waits for the other one: so they are in two slots."""
    wait = f"{TELL}; touch {tmp_path}/$0; while [ ! -e {tmp_path}/$1 ]; do sleep 0.05; done"
    numbers = [dispatcher.add("sh", "-c", wait, *names) for names in (("a", "b"), ("b", "a"))]
    code = site.run(
        *("--resource-type", "gpu", "--slots", "2", "--max-jobs", "2"),
        PATH=gpu_node(tmp_path / "gpu"),
        CUDA_VISIBLE_DEVICES="0,1,2",
        GPU_DEVICE_ORDINAL="0,1,2",
    )
    assert code == 0
    assert sorted(told(site, number) for number in numbers) == ["0,1||unset", "2||unset"]
    assert sorted({body["gpus"] for body in dispatcher.bodies("getJob")}) == [1, 2]
    assert dispatcher.bodies("registerPilot")[0]["gpus"] == 3


def test_the_next_job_of_a_slot_has_the_gpus_of_the_last_one(
    site: Site, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    numbers = [dispatcher.add("sh", "-c", TELL) for _ in range(3)]
    site.run("--resource-type", "gpu", "--max-jobs", "3", PATH=gpu_node(tmp_path), CUDA_VISIBLE_DEVICES="3")
    assert {told(site, number) for number in numbers} == {"3||unset"}


def test_a_job_of_a_cpu_pilot_on_a_gpu_node_sees_no_gpu(
    site: Site, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    number = dispatcher.add("sh", "-c", TELL, environment={"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    site.run("--resource-type", "cpu", "--max-jobs", "1", PATH=gpu_node(tmp_path), CUDA_VISIBLE_DEVICES="0,1")
    assert told(site, number) == "||unset", "whatever the task says"
    assert dispatcher.bodies("getJob")[0]["gpus"] == 0
