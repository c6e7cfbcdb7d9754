"""A payload that wants what is the pilot's: stopped where the queue isolates, whoever the pilot is; and what it gets where none does."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import Step, StepKind
from tests.fakes.dispatcher import TOKEN
from tests.houses import BUBBLEWRAP, DIRECTORIES, OTHER_ACCOUNT, House, SetUp, house_of
from tests.integration.pilot.test_isolation import sleepers
from tests.users import NOBODY
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.component("bubblewrap"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can be another; run the tests as root"),
]

ISOLATED = {
    "bubblewrap, by root": SetUp(BUBBLEWRAP),
    "bubblewrap, by an ordinary user": SetUp(BUBBLEWRAP, as_root=False),
    "another account": SetUp(OTHER_ACCOUNT),
    "another account in bubblewrap": SetUp({**BUBBLEWRAP, **OTHER_ACCOUNT}),
}
NOT_ISOLATED = {"plain, by root": SetUp({}), "plain, by an ordinary user": SetUp({}, as_root=False)}


@pytest.fixture(params=ISOLATED)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with house_of(ISOLATED[request.param]) as made:
        yield made


HOSTILE = """
import glob, json, os, signal, sys, time
place, work, token = sys.argv[1:4]
got = []

def attempt(what, work):
    try:
        found = work()
    except (OSError, EOFError):
        return
    if found:
        got.append([what, str(found)[:300]])

def write(path):
    with open(path, "w") as file:
        return file.write("bad")

def secret_in(path):
    with open(path, "rb") as file:
        return b"very-secret" in file.read()

def kill(pid):
    os.kill(pid, signal.SIGKILL)
    return True

for path in (token, "/tmp/token", "bundle/token", os.environ["TMPDIR"] + "/token", "inputs/../../../../token"):
    attempt("read " + path, lambda: open(path).read())
for folder in (work + "/outbox", os.path.dirname(os.getcwd())):
    attempt("list " + folder, lambda: [name for name in os.listdir(folder) if name != os.path.basename(os.getcwd())])
for path in glob.glob("/proc/[0-9]*/environ"):
    if path != "/proc/%d/environ" % os.getpid():
        attempt("environment " + path, lambda: secret_in(path))
for pid in [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
    try:
        words = open("/proc/%d/cmdline" % pid).read()
    except OSError:
        continue
    if token in words and "--token-file" in words.split("\\0"):
        attempt("memory", lambda: open("/proc/%d/mem" % pid, "rb"))
        attempt("descriptors", lambda: os.listdir("/proc/%d/fd" % pid))
        attempt("signal", lambda: kill(pid))
for path in (work, place, work + "/outbox", os.path.dirname(os.getcwd()), "/usr", "/etc", "/usr/local/bin", os.path.dirname(place)):
    try:
        write(path + "/x-of-the-payload")
    except OSError:
        pass  # in a container it may have worked, in a directory of that name: it is looked for outside
attempt("write where nobody counts it", lambda: write("/x-of-the-payload"))
attempt("become root", lambda: os.setuid(0) or os.stat("/proc/1/root/etc/shadow"))
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "601"], dict())
    os._exit(0)
print(json.dumps(got), flush=True)
"""

TRICKS = 'for n in .scratch bundle inputs/more payload.diagnosis; do mv $n kept-$n; ln -s "$0" $n; done; true'
"""A step of the same job, before the payload: links in the place of what the pilot will look for."""


def attack(house: House) -> List[Any]:
    """What the payload got."""
    site, dispatcher, settings, _ = house
    number = dispatcher.add(
        "{python}", "-c", HOSTILE, str(site.place), str(site.work), str(site.token),
        steps=[Step(StepKind.PRE, ["sh", "-c", TRICKS, str(site.place)])],
    )  # fmt: skip
    site.run(**settings, BEARER_TOKEN="very-secret")
    assert dispatcher.attempt(number).state == "COMPLETED", dispatcher.attempt(number).end
    found: List[Any] = json.loads(site.archive(number)["payload.stdout"])
    return found


def test_a_hostile_payload_gets_nothing_of_the_pilots(house: House) -> None:
    assert attack(house) == []
    places = (house.site.place.parent, Path("/usr/local/bin"))
    assert not [found for place in places for found in place.rglob("x-of-the-payload")]
    assert not [place for place in ("/", "/usr", "/etc") if Path(place, "x-of-the-payload").exists()]
    assert house.site.pilots[-1].process.returncode == PilotExit.DONE
    assert not sleepers(), "the daemon is gone"
    assert "payloads are not isolated" not in house.site.pilots[-1].log


def test_b24_what_the_task_says_to_the_loader_moves_no_program_outside_of_the_container() -> None:
    """Not even by its own prlimit: what stands around the container is the pilot's."""
    with house_of(ISOLATED["bubblewrap, by root"]) as (site, dispatcher, settings, _):
        number = dispatcher.add(
            "sh", "-c", "echo $LD_DEBUG $SLURM_CONF; ls",
            environment={
                "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": f"{site.place}/x-of-the-payload", "SLURM_CONF": "mine",
                "PATH": "{workdir}:/usr/bin:/bin",
            },
            steps=[Step(StepKind.PRE, ["sh", "-c", f"printf '#!/bin/sh\ntouch {site.place}/x-of-prlimit' > prlimit; chmod 755 prlimit"])],
        )  # fmt: skip
        assert site.run(**settings, PILOTAGE_PAYLOAD__PROCESSES="1000") == PilotExit.DONE
        assert dispatcher.attempt(number).state == "COMPLETED", dispatcher.attempt(number).end
        assert site.archive(number)["payload.stdout"].startswith("files mine\n")
        assert not list(site.place.glob("x-of-*"))


@pytest.mark.parametrize("kind", NOT_ISOLATED)
def test_without_isolation_it_can_read_the_token_and_the_pilot_has_said_so(kind: str) -> None:
    """Otherwise the test above would prove nothing."""
    script = "cat {token}; kill -0 $PPID && echo signalled"
    with house_of(NOT_ISOLATED[kind]) as (site, dispatcher, settings, _):
        number = dispatcher.add("sh", "-c", script.format(token=site.token))
        assert site.run(**settings) == PilotExit.DONE
        assert site.archive(number)["payload.stdout"] == f"{TOKEN}signalled\n"
        assert "payloads are not isolated" in site.pilots[-1].log


def test_f13_a_payload_that_fills_the_disk_is_ended_and_the_next_one_has_the_space(house: House) -> None:
    site, dispatcher, settings, _ = house
    script = "for n in 1 2 3 4 5 6 7 8; do head -c 1000000 /dev/zero > {place}/fill-$n; done; sleep 600"
    bad = [dispatcher.add("sh", "-c", script.format(place=place)) for place in (".", "$TMPDIR")]
    good = dispatcher.add("true")
    code = site.run("--max-jobs", "3", **settings, PILOTAGE_LIMITS__JOB_DISK_MB="4")
    assert code == PilotExit.DONE
    for number in bad:
        end = dispatcher.attempt(number).end
        assert end is not None and end.error == "WORK_DIRECTORY_TOO_LARGE", number
    assert dispatcher.attempt(good).state == "COMPLETED"
    assert [path.name for path in site.work.iterdir() if path.name != "bundles"] == ["outbox"]


def test_inputs_outputs_and_shipped_code_are_the_payloads_also_as_another_account(house: House) -> None:
    site, dispatcher, settings, _ = house
    file = site.input("in.txt", b"an input\n")
    number = dispatcher.add(
        "sh", "-ec", 'cat "$0" > "$1"; echo more >> "$1"; echo kept > $TMPDIR/x; cat $TMPDIR/x; echo $HOME', "{input}", "{output}",
        inputs=[file], outputs=["out"],
        steps=[Step(StepKind.PRE, ["sh", "-c", "id -u > who"]), Step(StepKind.POST, ["sh", "-c", "test -s out && cat who"])],
    )  # fmt: skip
    assert site.run(**settings) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", dispatcher.attempt(number).end
    assert site.stored(f"out.{number}").read_text() == "an input\nmore\n"
    kept = site.archive(number)
    assert kept["payload.stdout"].startswith("kept\n/")
    assert int(kept["post-1.stdout"]) == (0 if house.runs_as_root else NOBODY)


# -- accounts -----------------------------------------------------------------------------------------------------------------


def test_each_slot_has_an_account_of_its_own_and_none_sees_the_other_ones_files() -> None:
    script = "id -un; ls -d ../job-* $(dirname $PWD) 2>&1; cat ../job-*/mine ../*.log; echo mine > mine; chmod 644 mine; sleep 1"
    with house_of(SetUp({"PILOTAGE_PAYLOAD__USERS": "nobody, games"})) as (site, dispatcher, settings, _):
        numbers = [dispatcher.add("sh", "-c", script) for _ in range(2)]
        assert site.run("--slots", "2", "--max-jobs", "2", **settings) == PilotExit.DONE
        texts = [site.archive(number)["payload.stdout"] for number in numbers]
        assert sorted(text.split()[0] for text in texts) == ["games", "nobody"]
        for text in texts:
            assert "mine" not in text and "job enters" not in text


@pytest.mark.parametrize(
    ("users", "slots", "as_root", "said"),
    [
        ("no-such-account", "1", True, "there is no account no-such-account"),
        ("root", "1", True, "root is root"),
        ("nobody", "2", True, "2 slots need an account each"),
        ("nobody", "1", False, "a pilot that is not root cannot run payloads as others"),
    ],
)
def test_a_node_where_payloads_cannot_run_as_the_queue_says_is_unfit(
    users: str, slots: str, as_root: bool, said: str
) -> None:
    with house_of(SetUp({}, as_root)) as (site, dispatcher, _, _):
        dispatcher.queue.pilot_settings = {"payload.users": users}
        dispatcher.add("true")
        assert site.run("--slots", slots) == PilotExit.NODE_UNFIT
        assert said in site.pilots[-1].log and not dispatcher.held


def test_an_account_that_does_not_get_to_the_work_directory_makes_the_node_unfit(tmp_path: Path) -> None:
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        dispatcher.add("true")
        site.place.chmod(0o700)
        assert site.run(**settings) == PilotExit.NODE_UNFIT
        assert f"the account nobody does not get into {site.place}" in site.pilots[-1].log


def test_a_root_that_may_be_nobody_else_makes_the_node_unfit() -> None:
    """As in some containers."""
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        dispatcher.add("true")
        site.program = [
            "setpriv",
            "--bounding-set=-setuid,-setgid",
            "--inh-caps=-setuid,-setgid",
            "--",
            *site.program,
        ]
        assert site.run(**settings) == PilotExit.NODE_UNFIT
        assert "may not run anything as nobody" in site.pilots[-1].log


def test_an_account_is_one_pilots_at_a_time_until_it_ends_however(tmp_path: Path) -> None:
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        first = dispatcher.add("sleep", "600")
        holder = site.start(**settings)
        wait_until(lambda: "RUNNING" in dispatcher.attempt(first).states, 15, "the first pilot's job")
        assert site.run("-a", str(site.place / "elsewhere"), **settings) == PilotExit.NODE_UNFIT
        assert "another pilot on this node uses the account nobody" in site.pilots[-1].log
        holder.signal(signal.SIGKILL)
        holder.wait()
        second = dispatcher.add("true")
        assert site.run(**settings) == PilotExit.DONE
        assert dispatcher.attempt(second).state == "COMPLETED"


def test_a_directory_for_locks_that_others_may_write_makes_the_node_unfit() -> None:
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        dispatcher.add("true")
        (site.place / "locks").mkdir()
        (site.place / "locks").chmod(0o777)
        assert site.run(**settings) == PilotExit.NODE_UNFIT
        assert "others than root may write in" in site.pilots[-1].log


@pytest.mark.parametrize("missing", DIRECTORIES)
def test_b25_root_copies_for_others_only_where_each_tool_has_its_directories(missing: str) -> None:
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        dispatcher.add("true")
        assert site.run(**settings, **{missing: ""}) == PilotExit.NODE_UNFIT
        tool = missing.split("_")[2].lower()
        assert f"set [copytool:{tool}] directories" in site.pilots[-1].log and not dispatcher.held


def test_b25_a_file_of_the_node_is_no_input_of_another_account() -> None:
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        file = site.input("shadow", b"x")
        number = dispatcher.add("cat", "{input}", inputs=[replace(file, url="file:///etc/shadow")])
        software = {"software": "file:///etc/shadow", "software_checksum": f"sha256:{'0' * 64}"}
        by_software = dispatcher.add("true", **software)
        site.run("--max-jobs", "2", **settings, PILOTAGE_COPYTOOLS__RETRIES="0")
        ends = [dispatcher.attempt(each).end for each in (number, by_software)]
        assert [end.error for end in ends if end] == ["BAD_PATH", "BAD_PATH"]


def test_steps_of_another_account_read_what_the_payload_printed_and_write_the_jobs_report() -> None:
    report = """echo '{{"by": "post"}}' > jobReport.json && chmod 640 jobReport.json"""
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        number = dispatcher.add(
            "sh", "-c", f"echo said; echo >&2; {report}; sleep 1",
            steps=[
                Step(StepKind.POST, ["sh", "-ec", "grep said payload.stdout; test -r payload.stderr; grep memory_monitor jobReport.json"]),
                Step(StepKind.POST, ["sh", "-ec", f"stat -c '%U %a' jobReport.json memory_monitor.json; {report}"]),
            ],
        )  # fmt: skip
        assert site.run(**settings) == PilotExit.DONE
        assert dispatcher.attempt(number).state == "COMPLETED", dispatcher.attempt(number).end
        kept = site.archive(number)
        assert kept["post-2.stdout"] == "nobody 640\nnobody 644\n"
        assert json.loads(kept["jobReport.json"]) == {"by": "post"}


@pytest.mark.parametrize("kind", ["bubblewrap, by an ordinary user", "plain, by an ordinary user"])
def test_a_payload_that_closes_its_directory_fails_its_own_job_alone(kind: str) -> None:
    with house_of({**ISOLATED, **NOT_ISOLATED}[kind]) as (site, dispatcher, settings, _):
        file = site.input("in.txt", b"x")
        bad = dispatcher.add("chmod", "0", ".", inputs=[file], steps=[Step(StepKind.POST, ["true"])])
        good = dispatcher.add("true")
        assert site.run("--max-jobs", "2", **settings) == PilotExit.DONE
        end = dispatcher.attempt(bad).end
        assert end is not None and end.error == "BAD_COMMAND", end
        assert dispatcher.attempt(good).state == "COMPLETED"
