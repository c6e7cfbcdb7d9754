"""Payloads in a real bubblewrap, by real pilots: what they reach, what they do not, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List, Set

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import Step, StepKind
from tests.fakes.dispatcher import TOKEN, Dispatcher
from tests.pilots import Site
from tests.users import PYTHON, code_for_all, ordinary_user, place_for_all
from tests.waiting import wait_until

pytestmark = pytest.mark.component("bubblewrap")

ISOLATED = {"PILOTAGE_PAYLOAD__EXECUTOR": "bubblewrap"}


def of(site: Site, dispatcher: Dispatcher, script: str, **settings: str) -> Dict[str, str]:
    """What such a payload leaves: state, text and error of its one attempt."""
    number = dispatcher.add("sh", "-c", script)
    assert site.run(**ISOLATED, **settings) == PilotExit.DONE
    held = dispatcher.attempt(number)
    archive = site.archive(number)
    return {"state": held.state, "error": held.end.error if held.end else "", "out": archive["payload.stdout"], "err": archive["payload.stderr"]}  # fmt: skip


def test_a_job_runs_isolated_as_it_runs_plain(site: Site, dispatcher: Dispatcher) -> None:
    """Inputs, outputs, placeholders, environment, exit codes and steps."""
    file = site.input("in.txt", b"an input\n")
    script = (
        'cat "$0" > "$1"; echo $GREETING; {python} -c "print(6 * 7)"; pwd; echo > $TMPDIR/x; test -e /tmp/x'
    )
    number = dispatcher.add(
        "sh", "-ec", script, "{input}", "{output}", inputs=[file], outputs=["out"], environment={"GREETING": "hello"},
        steps=[Step(StepKind.PRE, ["sh", "-c", "echo pre > pre"]), Step(StepKind.POST, ["test", "-e", "pre"])],
    )  # fmt: skip
    failing = dispatcher.add("sh", "-c", "exit 7")
    assert site.run("--max-jobs", "2", **ISOLATED) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", site.archive(number)
    greeting, answer, place = site.archive(number)["payload.stdout"].split()
    assert (greeting, answer, Path(place).parent.parent) == ("hello", "42", site.work)
    assert site.stored(f"out.{number}").read_text() == "an input\n"
    end = dispatcher.attempt(failing).end
    assert end is not None and (end.error, end.exit_code) == ("PAYLOAD_FAILED", 7)


READS = {
    "the pilot's token file": "cat {token}",
    "the pilot's directory": "ls {work}",
    "the environment of the pilot": "cat /proc/*/environ | tr '\\0' '\\n' | grep -a BEARER; cat /proc/*/cmdline",
    "the directory of another job": "ls {work}/pilot-*/job-*/",
    "the home of the pilot's account": "ls {home} $HOME/..",
    "passwords and keys of the node": "cat /etc/shadow /etc/pilotage/* /etc/ssh/*key",
}


@pytest.mark.parametrize("what", READS)
def test_what_a_payload_must_not_read_is_not_there(what: str, site: Site, dispatcher: Dispatcher) -> None:
    script = READS[what].format(token=site.token, work=site.work, home=site.place)
    (site.work / "pilot-other" / "job-1-1").mkdir(parents=True)
    (site.work / "pilot-other" / "job-1-1" / "others-file").write_text("text of others")
    found = of(site, dispatcher, f"{script}; true", BEARER_TOKEN="very-secret")
    seen = found["out"]
    assert found["state"] == "COMPLETED"
    assert TOKEN not in seen and "very-secret" not in seen and "root:" not in seen
    assert "others-file" not in seen and "token" not in seen


@pytest.mark.parametrize("name", ["inputs", "bundle", "software"])
def test_a_link_that_a_payload_leaves_for_the_next_step_shows_it_nothing(
    name: str, site: Site, dispatcher: Dispatcher
) -> None:
    """The pilot, outside, could follow it to its own directories: what the job has none of is not shown."""
    link = f"mv {name} old; ln -s ../../.. {name}; readlink {name}"
    number = dispatcher.add(
        "sh", "-c", link, steps=[Step(StepKind.POST, ["sh", "-c", f"cat {name}/token {site.token}; echo looked"])]
    )  # fmt: skip
    assert site.run(**ISOLATED) == PilotExit.DONE
    kept = site.archive(number)
    assert (kept["payload.stdout"], kept["post-1.stdout"]) == ("../../..\n", "looked\n")


def test_inputs_that_a_payload_has_made_a_loop_of_are_no_fault_of_the_pilot(
    site: Site, dispatcher: Dispatcher
) -> None:
    loop = "rm inputs/in.txt; ln -s in.txt inputs/in.txt"
    file = site.input("in.txt", b"x")
    number = dispatcher.add("sh", "-c", loop, inputs=[file], steps=[Step(StepKind.POST, ["true"])])
    assert site.run() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", dispatcher.attempt(number).end


def test_a_payload_cannot_signal_its_pilot_nor_see_a_process_of_others(
    site: Site, dispatcher: Dispatcher
) -> None:
    """All numbers it can think of: within its own namespace, where only it lives."""
    found = of(site, dispatcher, "ls -d /proc/[0-9]* | wc -l; echo $PPID; kill -9 -1; true")
    count, parent = found["out"].split()
    assert int(count) < 6 and parent in ("0", "1")
    assert site.pilots[-1].process.returncode == PilotExit.DONE


def test_a_payload_writes_nowhere_but_in_its_directory(site: Site, dispatcher: Dispatcher) -> None:
    file = site.input("in.txt", b"an input\n")
    places = f"/usr/x /etc/x /bin/x {site.place}/x /dev/shm/../../x {{input}}"
    number = dispatcher.add(
        "sh", "-c", f"for p in {places}; do echo bad > $p && echo wrote $p; done; echo fine > {{output}}",
        inputs=[file], outputs=["out"],
    )  # fmt: skip
    assert site.run(**ISOLATED) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    wrote = [
        line
        for line in site.archive(number)["payload.stdout"].splitlines()
        if "/x" not in line.replace(str(site.place), "")
    ]
    assert not wrote, "the input is read-only"
    assert not (site.place / "x").exists() and not Path("/usr/x").exists() and not Path("/etc/x").exists()
    assert (site.place / "input" / "in.txt").read_bytes() == b"an input\n"


@pytest.fixture
def listener() -> Iterator[int]:
    """A service of the node."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


CONNECT = "{{python}} -c \"import socket; socket.create_connection(('127.0.0.1', {port}), 3); print('connected')\"; true"


@pytest.mark.parametrize(("setting", "said"), [("false", ""), ("true", "connected\n")])
def test_a_payload_has_no_network_unless_the_queue_lets_it(
    setting: str, said: str, listener: int, site: Site, dispatcher: Dispatcher
) -> None:
    found = of(site, dispatcher, CONNECT.format(port=listener), PILOTAGE_PAYLOAD__NETWORK=setting)
    assert found["out"] == said, found


DAEMON = (
    "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
    "open('started', 'w').close()\nos.execve('/bin/sleep', ['sleep', '601'], dict())"
)


def sleepers() -> List[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cmdline").read_bytes() == b"sleep\x00601\x00":
                found.append(int(name))
        except OSError:
            continue
    return found


def test_f18_a_payload_leaves_no_daemon(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add(
        "sh", "-c", '"$0" -c "$1"; until test -e started; do sleep 0.05; done', "{python}", DAEMON
    )
    assert site.run(**ISOLATED) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert not sleepers()


def test_f4_a_payload_dies_with_a_pilot_that_is_killed(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("sh", "-c", '"$0" -c "$1"; exec sleep 601', "{python}", DAEMON)
    pilot = site.start(**ISOLATED)
    wait_until(lambda: len(sleepers()) == 2, 15, "payload and daemon")
    pilot.signal(signal.SIGKILL)
    pilot.wait()
    wait_until(lambda: not sleepers(), 10, "them to go")


def test_an_unpacked_image_takes_the_place_of_the_nodes_programs(site: Site, dispatcher: Dispatcher) -> None:
    """The smallest there is: the node's /usr under another roof, with a file of its own."""
    image = site.place / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc" / "os-release").write_text("NAME=tiny")
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path(f"/{name}").is_symlink():
            (image / name).symlink_to(os.readlink(f"/{name}"))
    for program in _programs():
        target = image / program.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(program, target)
    found = of(site, dispatcher, "cat /etc/os-release; cat /etc/passwd", PILOTAGE_PAYLOAD__IMAGE=str(image))
    assert (found["state"], found["out"]) == ("FAILED", "NAME=tiny"), found


def _programs() -> List[str]:
    """sh and cat with the libraries they need, by their places under /usr."""
    files = {os.path.realpath("/bin/sh"), "/usr/bin/sh", "/usr/bin/cat"}
    for program in ("/bin/sh", "/bin/cat"):
        text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for word in text.split():
            if word.startswith("/"):
                usr = Path("/usr" + word if not word.startswith("/usr") else word)
                files |= {str(usr), os.path.realpath(word)} if usr.exists() else set()
    return sorted(files)


@pytest.mark.parametrize(
    ("allowed", "error"), [("false", "QUEUE_WITHOUT_CONTAINERS"), ("true", "IMAGE_NOT_FOUND")]
)
def test_a_task_names_an_image_only_where_the_queue_lets_it(
    allowed: str, error: str, site: Site, dispatcher: Dispatcher
) -> None:
    file = site.input("in.txt", b"x")
    number = dispatcher.add("true", image="/no/such/image", inputs=[file])
    site.run(**ISOLATED, PILOTAGE_PAYLOAD__TASK_IMAGES=allowed)
    held = dispatcher.attempt(number)
    assert held.end is not None and held.end.error == error
    assert "STAGE-IN" not in held.states, "nothing was copied for nothing"
    assert asked_with_images(dispatcher) == {allowed == "true"}


def test_a_pilot_without_an_executor_for_images_asks_for_no_job_with_one(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("true")
    site.run(PILOTAGE_PAYLOAD__TASK_IMAGES="true", PILOTAGE_PAYLOAD__EXECUTOR="plain")
    assert asked_with_images(dispatcher) == {False}


def asked_with_images(dispatcher: Dispatcher) -> Set[bool]:
    """Whether the pilot told the server, each time it asked for jobs, that it takes some with images."""
    return {body["images"] for body in dispatcher.bodies("getJob")}


def test_an_image_that_a_task_names_lies_where_images_are(site: Site, dispatcher: Dispatcher) -> None:
    """Any other directory is none: it would show the payload what the pilot keeps there."""
    (site.place / "images").mkdir()
    (site.place / "images" / "link").symlink_to(site.place)
    numbers = [
        dispatcher.add("cat", "/token", image=str(image))
        for image in (site.place, site.place / "images" / "link")
    ]
    site.run(
        "--max-jobs", "2", **ISOLATED, PILOTAGE_PAYLOAD__TASK_IMAGES="true",
        PILOTAGE_PAYLOAD__IMAGE_DIRECTORIES=str(site.place / "images"),
    )  # fmt: skip
    ends = [dispatcher.attempt(number).end for number in numbers]
    assert [end.error for end in ends if end] == ["IMAGE_NOT_FOUND", "IMAGE_NOT_FOUND"]


def test_a_node_without_the_executor_of_its_queue_is_unfit(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.add("true")
    assert site.run(PILOTAGE_PAYLOAD__EXECUTOR="apptainer", PATH="/nowhere") == PilotExit.NODE_UNFIT
    assert "none of apptainer, singularity is on PATH" in site.pilots[-1].log
    assert "Traceback" not in site.pilots[-1].log and not dispatcher.held


@pytest.mark.parametrize(("settings", "times"), [({}, 1), (ISOLATED, 0)])
def test_a_pilot_warns_once_if_it_does_not_isolate(
    settings: Dict[str, str], times: int, site: Site, dispatcher: Dispatcher
) -> None:
    for _ in range(2):
        dispatcher.add("true")
    site.run("--max-jobs", "2", **settings)
    assert site.pilots[-1].log.count("payloads are not isolated") == times


# -- an apptainer that records how it was called ------------------------------------------------------------------------------

RECORDING = """#!/bin/sh
printf '%s\\n' "$@" > "$RECORD"; env | grep '^APPTAINERENV_' | sort >> "$RECORD"
while [ "$1" != "$IMAGE" ]; do shift; done; shift
exec "$@"
"""


def test_113_payload_and_steps_are_handed_to_apptainer_each_with_its_image(
    site: Site, dispatcher: Dispatcher
) -> None:
    """A stand-in: the real one is not to be had on this machine."""
    place = site.place / "bin"
    place.mkdir()
    (place / "apptainer").write_text(
        RECORDING.replace("$RECORD", f"{site.place}/record-${{APPTAINERENV_PILOTAGE_STEP:-payload}}")
    )
    (place / "apptainer").chmod(0o755)
    images = [site.place / name for name in ("queue.sif", "step.sif")]
    for image in images:
        image.touch()
    script = (
        (place / "apptainer").read_text().replace('"$IMAGE"', f'"{images[0]}" ] && [ "$1" != "{images[1]}"')
    )
    (place / "apptainer").write_text(script)
    number = dispatcher.add(
        "sh", "-c", "echo payload", environment={"GREETING": "hello"},
        steps=[Step(StepKind.PRE, ["sh", "-c", "echo pre"], image=str(images[1]))],
    )  # fmt: skip
    settings = {"PILOTAGE_PAYLOAD__EXECUTOR": "apptainer", "PILOTAGE_PAYLOAD__IMAGE": str(images[0]), "PILOTAGE_PAYLOAD__TASK_IMAGES": "true", "PILOTAGE_PAYLOAD__IMAGE_DIRECTORIES": str(site.place)}  # fmt: skip
    assert site.run(**settings, PATH=f"{place}:{os.environ['PATH']}") == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    payload, pre = ((site.place / f"record-{name}").read_text().splitlines() for name in ("payload", "pre-1"))
    assert payload[0] == pre[0] == "exec"
    assert str(images[0]) in payload and str(images[1]) in pre
    assert "APPTAINERENV_GREETING=hello" in payload and not [line for line in payload if "SECRET" in line]


# -- the Container API --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    with place_for_all() as made:
        yield made


def container(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m pilot.api.container`, by an account without root's rights."""
    return subprocess.run(
        [*ordinary_user(place), PYTHON, "-m", "pilot.api.container", *words], cwd=place, capture_output=True, text=True,
        timeout=60, check=False, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(code_for_all()), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def test_160_a_command_runs_in_a_container_without_a_pilot_for_an_ordinary_user(place: Path) -> None:
    secret = place / "secret"
    secret.write_text("token")
    secret.chmod(0o644)
    work = place / "work"
    work.mkdir()
    script = f"cat {secret}; kill -9 $PPID -1; id -u; echo said >&2; exit 5"
    done = container(work, "--executor", "bubblewrap", "--timeout", "30", "--", "sh", "-c", script)
    assert done.returncode == 137 or done.returncode == 5, done.stderr
    report = json.loads(done.stderr)
    assert report["timed_out"] is False and report["wall_seconds"] < 30
    assert "token" not in (work / "command.stdout").read_text()


def test_160_a_command_that_takes_too_long_is_ended_with_all_it_started(place: Path) -> None:
    done = container(place, "--timeout", "0.5", "--grace", "0.2", "--name", "slow", "--", "sh", "-c", "trap '' TERM; setsid sleep 601 & sleep 601; sleep 601")  # fmt: skip
    assert done.returncode == 124
    assert json.loads(done.stderr)["timed_out"] is True
    assert not sleepers()


def test_160_what_cannot_be_run_is_said_in_words(place: Path) -> None:
    done = container(place, "--executor", "apptainer", "--", "true")
    assert done.returncode == 125 and done.stderr.startswith("NODE_UNFIT:")
    assert "Traceback" not in done.stderr
