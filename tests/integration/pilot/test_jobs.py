"""What a pilot does with jobs, good ones and all kinds of bad ones: a real pilot, a dispatcher of the tests."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import BundleRef
from protocol.states import SUCCESS, JobState
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site


def adler32(data: bytes) -> str:
    return f"{zlib.adler32(data):08x}"


def test_a_job_passes_all_states_in_order_and_its_outputs_lie_in_the_storage(
    site: Site, dispatcher: Dispatcher
) -> None:
    data = os.urandom(100_000)
    file = site.input("a.dat", data, adler32=adler32(data), md5=hashlib.md5(data).hexdigest())
    number = dispatcher.add(
        "sh", "-c", 'md5sum < "$1" > "$2"', "sh", "{input}", "{output}", inputs=[file], outputs=["a.md5"]
    )
    assert site.run() == PilotExit.DONE
    held = dispatcher.attempt(number)
    assert held.states == [state.value for state in SUCCESS[SUCCESS.index(JobState.OBTAINED) :]]
    stored = site.stored(f"a.md5.{number}").read_bytes()
    assert stored.decode() == f"{hashlib.md5(data).hexdigest()}  -\n"
    report = held.end.outputs[0]
    assert (report.lfn, report.size) == ("a.md5", len(stored))
    assert report.checksums["adler32"] == adler32(stored)
    assert held.end.exit_code == 0
    assert held.end.metrics["wall_seconds"] > 0
    assert [word.seq for word in held.words] == list(range(1, len(held.words) + 1))


def test_a_job_is_acknowledged_within_a_second(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("true")
    site.run()
    got = next(said.at for said in dispatcher.said if said.verb == "getJob")
    assert dispatcher.attempt(number).times["OBTAINED"] - got < 1


def test_a_state_that_lasts_is_reported_by_itself_and_others_ride_along(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sleep", "0.3")
    site.run()
    words = [[move.state for move in word.moves] for word in dispatcher.attempt(number).words]
    assert words[0][0] == "OBTAINED"
    assert any(word[-1] == "RUNNING" for word in words), "RUNNING is told at once"
    assert words[-1][0] == "FINISHED" and words[-1][-1] == "COMPLETED", (
        "the quick states ride along with the end"
    )


def test_the_log_archive_holds_both_texts_and_the_pilots_own_records(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", "echo to stdout; echo to stderr >&2")
    site.run()
    archive = site.archive(number)
    assert archive["payload.stdout"] == "to stdout\n"
    assert archive["payload.stderr"] == "to stderr\n"
    assert "payload ended" in archive[f"job-{1000 + number}-1.log"]
    assert dispatcher.attempt(number).log.size == site.stored(f"log/{number}.tar.gz").stat().st_size


def test_jobs_come_one_after_the_other_until_there_are_none(site: Site, dispatcher: Dispatcher) -> None:
    numbers = [dispatcher.add("true") for _ in range(4)]
    assert site.run("--idle", "0") == PilotExit.DONE
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED"] * 4
    assert dispatcher.bodies("endPilot")[0]["exitCode"] == 0


def test_a_pilot_takes_no_more_jobs_than_it_was_told_to(site: Site, dispatcher: Dispatcher) -> None:
    for _ in range(3):
        dispatcher.add("true")
    assert site.run("--max-jobs", "2") == PilotExit.DONE
    assert len(dispatcher.waiting) == 1


def test_a_pilot_without_a_job_says_so_in_its_exit_code(site: Site, dispatcher: Dispatcher) -> None:
    assert site.run("--idle", "1") == PilotExit.NO_JOBS
    assert len(dispatcher.bodies("getJob")) > 2, "it asked again while it was idle"


def test_several_slots_run_jobs_at_the_same_time(site: Site, dispatcher: Dispatcher) -> None:
    meet = 'touch "$0/$1"; until [ -e "$0/1" ] && [ -e "$0/2" ]; do sleep 0.05; done'
    numbers = [dispatcher.add("sh", "-c", meet, str(site.place), name) for name in ("1", "2")]
    assert site.run("--slots", "2", "--max-jobs", "2") == PilotExit.DONE
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED"] * 2


def test_the_payload_has_a_directory_of_its_own_and_nothing_to_read(
    site: Site, dispatcher: Dispatcher
) -> None:
    program = "pwd; stat -c %a .; wc -c; ps -o sid= -p $$"
    number = dispatcher.add("sh", "-c", program)
    site.run()
    directory, mode, n_read, session = site.archive(number)["payload.stdout"].split()
    assert Path(directory).name == f"job-{1000 + number}-1" and Path(directory).parent.parent == site.work
    assert (mode, n_read) == ("700", "0")
    assert int(session) not in (os.getsid(0), site.pilots[0].process.pid)


def test_the_payload_sees_who_it_is_but_no_settings_and_no_secrets(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("env", environment={"RESULT": "{output}", "JOB": "{job_id}"}, outputs=[])
    site.run(
        PILOTAGE_LIMITS__STDOUT_MB="5",
        X509_USER_PROXY=str(site.token),
        MY_PASSWORD="geheim",
        SOME_TOKEN="x",
        AWS_ACCESS_KEY_ID="AK",
        AWS_SECRET_ACCESS_KEY="geheim",
        AWS_SHARED_CREDENTIALS_FILE="/keys",
        GOOGLE_APPLICATION_CREDENTIALS="/key.json",
        XrdSecSSSKT="/keytab",
        KEPT="yes",
    )
    seen = dict(line.split("=", 1) for line in site.archive(number)["payload.stdout"].splitlines())
    ours = {name for name in seen if name.startswith("PILOTAGE_")}
    assert ours == {"PILOTAGE_JOB_ID", "PILOTAGE_ATTEMPT_NR", "PILOTAGE_TASK_ID", "PILOTAGE_PAYLOAD"}
    assert seen["PILOTAGE_JOB_ID"] == seen["JOB"] == str(1000 + number)
    assert seen["KEPT"] == "yes"
    assert not {"X509_USER_PROXY", "MY_PASSWORD", "SOME_TOKEN", "XrdSecSSSKT"} & set(seen)
    assert not [name for name in seen if name.startswith(("AWS_", "GOOGLE_"))]
    assert dispatcher.token not in json.dumps(seen)
    assert dispatcher.attempt(number).spec.attempt_token not in json.dumps(seen)


def test_an_output_may_have_the_name_of_the_input(site: Site, dispatcher: Dispatcher) -> None:
    file = site.input("a.dat", b"before")
    number = dispatcher.add("sh", "-c", 'echo after > "$0"', "{output}", inputs=[file], outputs=["a.dat"])
    site.run()
    assert site.stored(f"a.dat.{number}").read_bytes() == b"after\n"


FAILURES = {
    "TRANSFORM_NOT_FOUND": (["/no/such/program"], None),
    "BAD_COMMAND": (["/etc/passwd"], None),
    "PAYLOAD_FAILED": (["sh", "-c", "echo first >&2; echo 'last \033[2J words' >&2; exit 3"], 3),
    "PAYLOAD_KILLED": (["sh", "-c", "kill -9 $$"], -9),
    "PAYLOAD_SEGFAULT": (["sh", "-c", "kill -SEGV $$"], -11),
    "MISSING_OUTPUT": (["true"], 0),
    "OUTPUT_NOT_A_FILE": (["ln", "-s", "/etc/passwd", "{output}"], 0),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_payload_that_fails_is_reported_as_what_it_is(
    name: str, site: Site, dispatcher: Dispatcher
) -> None:
    command, code = FAILURES[name]
    number = dispatcher.add(*command, outputs=["out"])
    assert site.run() == PilotExit.DONE, "a failed job is no failure of the pilot"
    held = dispatcher.attempt(number)
    assert (held.end.error, held.end.exit_code, held.state) == (name, code, "FAILED")
    assert not list(dispatcher.storage.glob("out*")), "nothing of it is stored"
    assert held.log is not None, "its log is"


def test_the_last_words_of_a_payload_are_harmless(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add(*FAILURES["PAYLOAD_FAILED"][0])
    site.run()
    detail = dispatcher.attempt(number).end.error_detail
    assert "exit code 3" in detail and "first" in detail and "\\x1b[2J" in detail
    assert detail.isprintable()


def test_a_script_without_interpreter_is_a_bad_command(site: Site, dispatcher: Dispatcher) -> None:
    script = site.place / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    number = dispatcher.add(str(script))
    site.run()
    assert dispatcher.attempt(number).end.error == "BAD_COMMAND"


def test_a_failure_is_told_within_a_second_of_the_payloads_end_and_the_log_follows(
    site: Site, dispatcher: Dispatcher
) -> None:
    mark = site.place / "ended"
    number = dispatcher.add("sh", "-c", 'head -c 30000000 /dev/urandom; touch "$0"; exit 1', str(mark))
    site.run()
    failed, log = dispatcher.attempt(number).words[-2:]
    heard = next(
        said for said in dispatcher.said if said.body.get("seq") == failed.seq and said.verb == "updateJob"
    )
    moved = next(move.at for move in failed.moves if move.state == "FAILED")
    assert moved - mark.stat().st_mtime < 1
    assert failed.error == "PAYLOAD_FAILED" and failed.log is None
    assert log.seq == failed.seq + 1 and not log.moves and log.log.size > 0
    assert heard.at < next(said.at for said in dispatcher.said if said.body.get("seq") == log.seq)


CHANGED = {
    "INPUT_SIZE_MISMATCH": b"longer than it was",
    "STAGE_IN_ADLER32_MISMATCH": b"other",
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_input_that_changed_since_it_was_registered_is_refused(
    name: str, site: Site, dispatcher: Dispatcher
) -> None:
    file = site.input("a.dat", b"bytes", adler32=adler32(b"bytes"))
    (site.place / "input" / "a.dat").write_bytes(CHANGED[name])
    number = dispatcher.add("true", inputs=[file])
    site.run()
    end = dispatcher.attempt(number).end
    assert (end.error, end.input_url) == (name, file.url), "the server may know of another copy"
    assert "RUNNING" not in dispatcher.attempt(number).states


@pytest.mark.parametrize(
    ("algorithm", "name"), [("md5", "STAGE_IN_MD5_MISMATCH"), ("blake3", "STAGE_IN_BLAKE3_MISMATCH")]
)
def test_every_registered_checksum_is_looked_at(
    algorithm: str, name: str, site: Site, dispatcher: Dispatcher
) -> None:
    digits = {"md5": 32, "blake3": 64}[algorithm]
    file = site.input("a.dat", b"bytes", adler32=adler32(b"bytes"), **{algorithm: "0" * digits})
    number = dispatcher.add("true", inputs=[file])
    site.run()
    assert dispatcher.attempt(number).end.error == name


def test_an_input_that_is_not_there_is_looked_for_again_before_the_job_fails(
    site: Site, dispatcher: Dispatcher
) -> None:
    file = site.input("a.dat", b"bytes")
    (site.place / "input" / "a.dat").unlink()
    number = dispatcher.add("true", inputs=[file])
    site.run()
    assert dispatcher.attempt(number).end.error == "INPUT_NOT_FOUND"
    assert site.pilots[0].log.count("a copy failed") == 3


def test_a_name_that_leaves_the_directory_never_becomes_a_path(site: Site, dispatcher: Dispatcher) -> None:
    file = site.input("a.dat", b"bytes")
    file.lfn = "../../escaped"
    number = dispatcher.add("true", inputs=[file])
    site.run()
    assert dispatcher.attempt(number).end.error == "BAD_LFN"
    assert not list(site.place.rglob("escaped"))


def test_an_address_that_no_copytool_takes_is_told_as_such(site: Site, dispatcher: Dispatcher) -> None:
    file = site.input("a.dat", b"bytes")
    file.url = "xyz://user:secretword@host/a.dat"
    number = dispatcher.add("true", inputs=[file])
    site.run()
    end = dispatcher.attempt(number).end
    assert end.error == "UNKNOWN_COPYTOOL"
    assert "secretword" not in end.error_detail + site.pilots[0].log


def test_directories_deeper_than_any_path_cost_no_other_job(site: Site, dispatcher: Dispatcher) -> None:
    deep = "import os\nfor _ in range(2500): os.mkdir('d'); os.chdir('d')"
    numbers = [dispatcher.add("{python}", "-c", deep), dispatcher.add("true")]
    site.run("--max-jobs", "2")
    assert [dispatcher.attempt(number).state for number in numbers] == ["COMPLETED"] * 2
    assert not list(site.work.glob("pilot-*"))


def test_a_job_that_prints_too_much_is_ended_and_its_log_keeps_head_and_tail(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", "echo first; yes; echo never")
    site.run(PILOTAGE_LIMITS__STDOUT_MB="1", PILOTAGE_LIMITS__LOG_ARCHIVE_MB="1")
    assert dispatcher.attempt(number).end.error == "STDOUT_TOO_LARGE"
    text = site.archive(number)["payload.stdout"]
    assert text.startswith("first\ny\n") and "bytes are left out here" in text
    assert len(text) < 1_000_000


def test_a_job_that_fills_the_disk_is_ended(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("sh", "-c", "head -c 3000000 /dev/zero > big; sleep 60", disk_mb=1)
    site.run()
    assert dispatcher.attempt(number).end.error == "WORK_DIRECTORY_TOO_LARGE"


def test_a_job_that_runs_too_long_is_ended_when_its_wall_time_is_over(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sleep", "60", walltime_seconds=1)
    site.run(PILOTAGE_LIMITS__SAMPLE_SECONDS="50")
    held = dispatcher.attempt(number)
    assert held.end.error == "WALLTIME_EXCEEDED"
    assert held.times["FAILED"] - held.times["RUNNING"] < 4


def test_a_looping_job_is_ended(site: Site, dispatcher: Dispatcher) -> None:
    number = dispatcher.add("sleep", "60")
    site.run(PILOTAGE_LIMITS__LOOPING_SECONDS="1")
    assert dispatcher.attempt(number).end.error == "LOOPING_JOB"


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
marker = sys.argv[1]
if os.fork() == 0:          # leaves the group and the session
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(marker + str(os.getpid()), "w").close()
time.sleep(300)
"""


def test_f18_nothing_that_a_payload_started_is_left_after_it(site: Site, dispatcher: Dispatcher) -> None:
    """It ignores SIGTERM, and a grandchild left its session."""
    number = dispatcher.add("{python}", "-c", STUBBORN, str(site.place / "mark-"), walltime_seconds=1)
    site.run(PILOTAGE_LIMITS__KILL_GRACE_SECONDS="0.5")
    assert dispatcher.attempt(number).end.error == "WALLTIME_EXCEEDED"
    assert len(list(site.place.glob("mark-*"))) == 2, "both processes ran"
    assert not site.processes()


def test_what_a_payload_leaves_in_the_background_does_not_outlive_it(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("sh", "-c", f"sleep 300 {site.place} 2>/dev/null & sleep 299 & exit 0")
    site.run()
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert not site.processes()


def test_work_directories_are_gone_afterwards_whatever_a_payload_did_to_them(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("sh", "-c", "mkdir -p a/b; ln -s /etc a/b/link; touch a/b/f; chmod 0 a/b; chmod 0 a")
    site.run()
    assert [path.name for path in site.work.iterdir()] == ["outbox"]
    assert Path("/etc").exists()


def test_a_debugging_pilot_keeps_its_directories_also_from_the_next_pilot(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("sh", "-c", "echo kept > note")
    dispatcher.add("true")
    site.run("-d", "--max-jobs", "1")
    site.run()
    assert [path.read_text() for path in site.work.glob("pilot-*/job-*/note")] == ["kept\n"]


def test_the_bundle_of_a_task_is_there_for_its_payload_and_fetched_once(
    site: Site, dispatcher: Dispatcher
) -> None:
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        script = b"#!/bin/sh\necho from the bundle > $1\n"
        info = tarfile.TarInfo("bin/tool")
        info.size, info.mode = len(script), 0o755
        archive.addfile(info, io.BytesIO(script))
    data = packed.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    dispatcher.bundles[digest] = data
    numbers = [
        dispatcher.add("{bundle}/bin/tool", "{output}", outputs=["out"], bundle=BundleRef(digest, len(data)))
        for _ in range(2)
    ]
    site.run("--max-jobs", "2")
    assert [site.stored(f"out.{number}").read_text() for number in numbers] == ["from the bundle\n"] * 2
    assert len(dispatcher.bodies("bundles")) == 1


def test_a_bundle_that_is_not_what_it_should_be_fails_the_job(site: Site, dispatcher: Dispatcher) -> None:
    dispatcher.bundles["0" * 64] = b"something else"
    number = dispatcher.add("true", bundle=BundleRef("0" * 64, 100))
    site.run()
    assert dispatcher.attempt(number).end.error == "BUNDLE_FAILED"


def test_script_prefix_is_the_data_root(site: Site, dispatcher: Dispatcher) -> None:
    file = site.input("a.dat", b"bytes")
    file.url = "file:input/a.dat"
    number = dispatcher.add("cat", "{input}", inputs=[file])
    site.run("--max-jobs", "1", "--script-prefix", str(site.place))
    assert site.archive(number)["payload.stdout"] == "bytes"


def test_two_pilots_with_the_same_pilot_id_do_not_collide(site: Site, dispatcher: Dispatcher) -> None:
    pilots = [site.start("--pilot-id", "1", "--idle", "0") for _ in range(2)]
    assert [pilot.wait() for pilot in pilots] == [PilotExit.NO_JOBS] * 2
    names = {body["pilotId"] for body in dispatcher.bodies("registerPilot")}
    assert len(names) == 2
    assert all(name.startswith("1-") for name in names)


def test_with_allowsameuser_further_jobs_of_the_first_ones_task_are_preferred(
    site: Site, dispatcher: Dispatcher
) -> None:
    dispatcher.add("true")
    site.run("--allowsameuser", "--idle", "0")
    first, second = dispatcher.bodies("getJob")[:2]
    assert "taskId" not in first
    assert second["taskId"] == 7


def test_what_the_options_say_reaches_the_dispatcher(site: Site, dispatcher: Dispatcher) -> None:
    options = "-j managed -s SITE_A --countrygroup de --workinggroup spd --allowothercountry -w production --idle 0 -l 500"
    site.run(*options.split())
    body = dispatcher.bodies("getJob")[0]
    assert body["prodSourceLabel"] == "managed"
    assert (body["siteName"], body["countryGroup"], body["workingGroup"]) == ("SITE_A", "de", "spd")
    assert body["allowOtherCountry"] is True
    assert 490 < body["walltimeSeconds"] <= 500
    assert dispatcher.bodies("registerPilot")[0]["siteName"] == "SITE_A"


def test_a_gpu_pilot_may_be_asked_for_on_a_node_without_gpu(site: Site, dispatcher: Dispatcher) -> None:
    site.run("--resource-type", "gpu", "--idle", "0", CUDA_VISIBLE_DEVICES="", PILOTAGE_VALIDATION__GPU="no")
    assert dispatcher.bodies("getJob")
    assert dispatcher.bodies("registerPilot")[0]["resourceType"] == "gpu"
    assert "shows no GPU" in site.pilots[0].log
