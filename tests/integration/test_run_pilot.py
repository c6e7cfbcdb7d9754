"""wrappers/run_pilot.sh on its own, with a server and a package of the test: options, preflight, damage, signals, exit codes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Optional

import pytest

from protocol.errors import PILOT_EXIT_TEXT, PilotExit
from tests.faulty_server import Answer, FaultyServer
from tests.running_server import ROOT, environment
from tests.waiting import wait_until

WRAPPER = ROOT / "wrappers" / "run_pilot.sh"
STAND_IN = """
import json, os, pathlib, signal, sys, time
told = json.loads(os.environ.get("STAND_IN", "{}"))
listens = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
def ended(number, frame):
    os.write(1, ("got %s\\n" % signal.Signals(number).name).encode())
    os._exit(128 + number)
signal.signal(signal.SIGTERM, ended)
signal.signal(signal.SIGINT, ended)
print(json.dumps({
    "options": sys.argv[1:], "file": sys.argv[0], "isolated": sys.flags.isolated, "listens": listens
}), flush=True)
if told.get("sleep"):
    time.sleep(told["sleep"])
if told.get("kill"):
    os.kill(os.getpid(), told["kill"])
sys.exit(told.get("exit", 0) if "PILOTAGE_LIMITS__RUN_BEFORE_SECONDS" not in os.environ else 0)
"""


def package(program: str = STAND_IN) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), program)
    return content.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


PACKAGE = package()


def offer(server: FaultyServer, content: bytes = PACKAGE, claimed: Optional[str] = None) -> None:
    server.answers["/v1/pilot.pyz"] = [Answer(content)]
    server.answers["/v1/pilot.pyz.sha256"] = [Answer(f"{claimed or digest(content)}  pilot.pyz\n".encode())]


@pytest.fixture
def server(faulty_server: FaultyServer) -> FaultyServer:
    offer(faulty_server)
    return faulty_server


class Node:
    """A worker node: a home directory, and the wrapper started in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / ".cache" / "pilotage"
        self.environment = {**environment(home), "PYTHONPATH": "/nowhere"}

    def start(self, *options: str, **told: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(WRAPPER), *options], cwd=self.home, env={**self.environment, "STAND_IN": json.dumps(told)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *options: str, **told: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*options, **told)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def packages(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "home").mkdir()
    return Node(tmp_path / "home")


def nobody_there() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


# -- what it hands on -------------------------------------------------------------------------------------------------


def test_the_pilot_gets_its_options_as_they_were_written(node: Node, server: FaultyServer) -> None:
    options = ["-q", "CPU", "--label", "a b", "-d", 'x"y', "it's", "*", "", "line\nline", "--slots=2"]
    done = node.run("--url", server.url, "--cache", str(node.cache), *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["options"] == ["--url", server.url, *options]


def test_the_pilot_runs_apart_from_what_the_account_has_installed(node: Node, server: FaultyServer) -> None:
    done = node.run("--url", server.url)
    assert json.loads(done.stdout)["isolated"] == 1


@pytest.mark.parametrize("words", [["-p", "PORT"], ["-pPORT"], ["--port", "PORT"], ["--port=PORT"]])
def test_a_port_of_its_own_takes_the_place_of_the_one_in_the_address(
    node: Node, server: FaultyServer, words: list[str]
) -> None:
    port = server.url.rpartition(":")[2]
    words = [word.replace("PORT", port) for word in words]
    done = node.run("--url", "http://127.0.0.1:1/", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["options"] == ["--url", "http://127.0.0.1:1/", *words]


def test_the_address_may_come_by_the_pilots_own_environment_variable(
    node: Node, server: FaultyServer
) -> None:
    node.environment["PILOTAGE_NODE_SETTINGS__SERVER_ADDRESS"] = server.url
    assert node.run("-q", "CPU").returncode == 0


def test_the_wrapper_says_who_it_is(node: Node, server: FaultyServer) -> None:
    node.run("--url", server.url)
    assert {request.headers["User-Agent"] for request in server.seen} == {"pilotage-wrapper/1"}


# -- how it ends ------------------------------------------------------------------------------------------------------


def test_a_pilot_that_makes_way_is_followed_by_what_the_server_hands_out_then(
    node: Node, server: FaultyServer
) -> None:
    newer = package(STAND_IN + "# newer\n")
    process = node.start("--url", server.url, "-q", "CPU", exit=int(PilotExit.UPDATE), sleep=1.5)
    wait_until(lambda: len(server.seen) >= 2, 20, "the first package")
    offer(server, newer)
    out, err = process.communicate(timeout=60)
    first, second = map(json.loads, out.splitlines())
    assert process.returncode == 0
    assert "exit code 84: UPDATE: an operator wants the server's present pilot in its place" in err
    assert (first["options"], Path(first["file"]).name) == (
        ["--url", server.url, "-q", "CPU"],
        f"pilot-{digest(PACKAGE)}.pyz",
    )
    assert (second["options"], Path(second["file"]).name) == (first["options"], f"pilot-{digest(newer)}.pyz")


@pytest.mark.parametrize(
    "code", [code for code in PilotExit if code is not PilotExit.UPDATE], ids=lambda code: code.name
)
def test_each_exit_code_is_handed_on_in_words_and_no_jobs_is_no_failure(
    node: Node, server: FaultyServer, code: PilotExit
) -> None:
    done = node.run("--url", server.url, exit=int(code))
    assert done.returncode == (0 if code is PilotExit.NO_JOBS else code)
    text = PILOT_EXIT_TEXT[code].split(" (")[0]
    assert done.stderr.splitlines()[-1].endswith(f" run_pilot: exit code {int(code)}: {code.name}: {text}")


def test_a_pilot_that_was_killed_is_told_as_such(node: Node, server: FaultyServer) -> None:
    done = node.run("--url", server.url, kill=signal.SIGKILL)
    assert done.returncode == 137
    assert "exit code 137: KILLED: signal 9" in done.stderr


@pytest.mark.parametrize(
    ("sent", "got", "code"),
    [
        ("TERM", "TERM", 143),
        ("INT", "INT", 130),
        ("USR1", "TERM", 143),
        ("USR2", "TERM", 143),
        ("XCPU", "TERM", 143),
        ("HUP", "TERM", 143),
    ],
)
def test_a_signal_reaches_the_pilot_and_its_end_is_waited_for(
    node: Node, server: FaultyServer, sent: str, got: str, code: int
) -> None:
    process = node.start("--url", server.url, sleep=60)
    assert process.stdout is not None
    process.stdout.readline()  # the pilot runs
    process.send_signal(getattr(signal, f"SIG{sent}"))
    out, err = process.communicate(timeout=10)
    assert out == f"got SIG{got}\n"
    assert process.returncode == code
    assert f"exit code {code}: " in err


def test_the_pilot_listens_to_sigint_from_its_first_moment(node: Node, server: FaultyServer) -> None:
    """What a shell starts in the background ignores it, unless the shell is told otherwise."""
    assert json.loads(node.run("--url", server.url).stdout)["listens"] is True


def test_a_signal_while_the_package_is_fetched_ends_it_at_once(node: Node, server: FaultyServer) -> None:
    server.answers["/v1/pilot.pyz"] = [Answer(hang=True)]
    process = node.start("--url", server.url)
    wait_until(lambda: "/v1/pilot.pyz" in server.paths(), what="the request for the package")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert time.monotonic() - began < 2
    assert node.packages() == []


# -- preflight --------------------------------------------------------------------------------------------------------


def named(done: subprocess.CompletedProcess[str]) -> str:
    """The named error, which is the last line on stderr."""
    return done.stderr.splitlines()[-1].partition(" run_pilot: ")[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--url is needed"),
        (["--url"], "--url needs a value"),
        (["--url", "11.111.111.8080"], "must be an address such as http://HOST:8080"),
        (["--url", "http://me:secret@host"], "must be an address"),
        (["--url", "http://host", "-p", "http"], "-p must be a number"),
        (["--url", "http://host", "--sha256", "abc"], "--sha256 must be 64 hexadecimal digits"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_fetched(node: Node, options: list[str], words: str) -> None:
    done = node.run(*options)
    assert (done.returncode, named(done).split(":")[0]) == (2, "BAD_OPTION")
    assert words in named(done)


def test_help_tells_the_options_and_exit_codes(node: Node) -> None:
    done = node.run("--help")
    assert done.returncode == 0
    assert "--sha256 DIGEST" in done.stdout
    assert "94 TOKEN_UNREADABLE." in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("content", [None, ""])
def test_a_token_that_did_not_come_along_is_named_before_anything_else(
    node: Node, server: FaultyServer, content: Optional[str]
) -> None:
    token = node.home / "pilot.token"
    if content is not None:
        token.write_text(content)
    done = node.run("--url", server.url, "--token-file", str(token))
    assert (done.returncode, named(done).split(":")[0]) == (94, "TOKEN_UNREADABLE")
    assert str(token) in named(done)
    assert server.seen == []


def programs_without_python(place: Path) -> Path:
    place.mkdir()
    for program in (
        "bash",
        "env",
        "date",
        "sed",
        "mktemp",
        "mkdir",
        "rm",
        "find",
        "sha256sum",
        "cut",
        "mv",
        "ln",
    ):
        (place / program).symlink_to(str(shutil.which(program)))
    return place


def test_a_node_without_python_is_named(node: Node, server: FaultyServer, tmp_path: Path) -> None:
    node.environment["PATH"] = str(programs_without_python(tmp_path / "bin"))
    done = node.run("--url", server.url)
    assert (done.returncode, named(done).split(":")[0]) == (90, "NO_PYTHON")


def test_an_old_python_is_passed_over_for_a_newer_one(
    node: Node, server: FaultyServer, tmp_path: Path
) -> None:
    """The old one is a stand-in: it answers the question for its version as an old Python does."""
    place = programs_without_python(tmp_path / "bin")
    (place / "python3").write_text("#!/bin/bash\nexit 1\n")
    (place / "python3").chmod(0o755)
    node.environment["PATH"] = str(place)
    assert node.run("--url", server.url).returncode == 90
    (place / "python3.9").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (place / "python3.9").chmod(0o755)
    done = node.run("--url", server.url)
    assert done.returncode == 0, done.stderr
    assert f"with {place}/python3.9 " in done.stderr


def test_a_python_that_was_named_and_does_not_run_is_an_error(node: Node, server: FaultyServer) -> None:
    done = node.run("--url", server.url, "--python", "/nowhere/python3")
    assert (done.returncode, named(done).split(":")[0]) == (90, "NO_PYTHON")


def test_a_cache_that_cannot_be_used_is_named(node: Node, server: FaultyServer) -> None:
    (node.home / "file").write_text("")
    done = node.run("--url", server.url, "--cache", str(node.home / "file"))
    assert (done.returncode, named(done).split(":")[0]) == (93, "CACHE_UNUSABLE")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make somebody else's directory")
def test_a_cache_of_somebody_else_is_refused(node: Node, server: FaultyServer, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 12345, 12345)
    foreign.chmod(0o777)
    done = node.run("--url", server.url, "--cache", str(foreign))
    assert (done.returncode, named(done).split(":")[0]) == (93, "CACHE_UNUSABLE")


def test_an_account_without_a_home_uses_the_directory_it_was_started_in(
    node: Node, server: FaultyServer
) -> None:
    del node.environment["HOME"]
    done = node.run("--url", server.url)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (node.home / ".pilotage-cache").glob("pilot-*.pyz")] == [
        f"pilot-{digest(PACKAGE)}.pyz"
    ]


# -- fetching ---------------------------------------------------------------------------------------------------------


def test_no_answer_is_told_as_the_server_being_unreachable(node: Node) -> None:
    done = node.run("--url", nobody_there())
    assert (done.returncode, named(done).split(":")[0]) == (79, "SERVER_UNREACHABLE")
    assert "Connection refused (try 3)" in done.stderr


@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [
        ("/v1/pilot.pyz.sha256", Answer(status=404), "HTTP status 404 (try 1)"),
        ("/v1/pilot.pyz.sha256", Answer(b"<html>Welcome, please log in</html>"), "is no SHA-256"),
        ("/v1/pilot.pyz", Answer(status=500), "HTTP status 500 (try 3)"),
        (
            "/v1/pilot.pyz",
            Answer(PACKAGE[:100], length=len(PACKAGE)),
            "the answer ended after 100 bytes (try 3)",
        ),
    ],
)
def test_a_wrong_answer_is_named_with_what_came(
    node: Node, server: FaultyServer, path: str, answer: Answer, why: str
) -> None:
    server.answers[path] = [answer]
    done = node.run("--url", server.url)
    assert (done.returncode, named(done).split(":")[0]) == (91, "CANNOT_FETCH")
    assert why in done.stderr
    assert done.stdout == ""
    assert node.packages() == []


def test_an_answer_that_fails_once_is_asked_for_again(node: Node, server: FaultyServer) -> None:
    server.answers["/v1/pilot.pyz"].insert(0, Answer(status=503))
    server.answers["/v1/pilot.pyz.sha256"].insert(0, Answer(b"abc", length=75))
    assert node.run("--url", server.url).returncode == 0


def test_a_damaged_package_is_refused_and_not_kept(node: Node, server: FaultyServer) -> None:
    damaged = bytearray(PACKAGE)
    damaged[len(damaged) // 2] ^= 1
    offer(server, bytes(damaged), claimed=digest(PACKAGE))
    done = node.run("--url", server.url)
    assert (done.returncode, named(done).split(":")[0]) == (92, "WRONG_DIGEST")
    assert digest(bytes(damaged)) in named(done)
    assert done.stdout == ""
    assert node.packages() == []


def test_a_package_that_changed_between_the_two_answers_is_asked_for_again(
    node: Node, server: FaultyServer
) -> None:
    server.answers["/v1/pilot.pyz.sha256"].insert(0, Answer(b"0" * 64 + b"  pilot.pyz\n"))
    done = node.run("--url", server.url)
    assert done.returncode == 0, done.stderr
    assert node.packages() == ["current", f"pilot-{digest(PACKAGE)}.pyz"]


def test_another_package_than_the_operator_named_is_refused(node: Node, server: FaultyServer) -> None:
    done = node.run("--url", server.url, "--sha256", "0" * 64)
    assert (done.returncode, named(done).split(":")[0]) == (92, "WRONG_DIGEST")
    assert done.stdout == ""


def test_the_operators_digest_is_enough_and_the_servers_is_not_asked_for(
    node: Node, server: FaultyServer
) -> None:
    done = node.run("--url", server.url, f"--sha256={digest(PACKAGE).upper()}")
    assert done.returncode == 0, done.stderr
    assert server.paths() == ["/v1/pilot.pyz"]
    assert json.loads(done.stdout)["options"] == ["--url", server.url]


# -- the cache --------------------------------------------------------------------------------------------------------


def test_a_package_is_fetched_once(node: Node, server: FaultyServer) -> None:
    assert node.run("--url", server.url).returncode == 0
    assert node.run("--url", server.url).returncode == 0
    assert server.paths().count("/v1/pilot.pyz") == 1
    assert node.packages() == ["current", f"pilot-{digest(PACKAGE)}.pyz"]


def test_a_package_that_was_damaged_in_the_cache_is_fetched_again(node: Node, server: FaultyServer) -> None:
    node.run("--url", server.url)
    kept = node.cache / f"pilot-{digest(PACKAGE)}.pyz"
    kept.write_bytes(b"rubbish")
    done = node.run("--url", server.url)
    assert done.returncode == 0, done.stderr
    assert kept.read_bytes() == PACKAGE


def test_a_newer_package_lies_beside_the_older_one_whose_pilot_runs_on(
    node: Node, server: FaultyServer
) -> None:
    first = node.start("--url", server.url, sleep=60)
    assert first.stdout is not None
    file = Path(json.loads(first.stdout.readline())["file"])
    before = file.stat()
    newer = package(STAND_IN + "# newer\n")
    offer(server, newer)
    done = node.run("--url", server.url)
    assert json.loads(done.stdout)["file"] == str(node.cache / f"pilot-{digest(newer)}.pyz")
    assert os.readlink(node.cache / "current") == f"pilot-{digest(newer)}.pyz"
    assert file.read_bytes() == PACKAGE
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    first.terminate()
    assert first.communicate(timeout=10)[0] == "got SIGTERM\n"


def test_many_wrappers_at_once_share_one_cache(node: Node, server: FaultyServer) -> None:
    running = [node.start("--url", server.url) for _ in range(8)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out)["file"] == str(node.cache / f"pilot-{digest(PACKAGE)}.pyz")
    assert node.packages() == ["current", f"pilot-{digest(PACKAGE)}.pyz"]


def test_the_last_package_is_started_while_the_server_is_away(node: Node, server: FaultyServer) -> None:
    """The pilot itself waits for the server: a restart of the server costs no batch slot."""
    assert node.run("--url", server.url).returncode == 0
    away = nobody_there()
    done = node.run("--url", away)
    assert done.returncode == 0, done.stderr
    assert f"no answer from {away}: starting the package that a server named last" in done.stderr
    (node.cache / f"pilot-{digest(PACKAGE)}.pyz").write_bytes(b"rubbish")
    assert node.run("--url", away).returncode == 79


def test_a_package_on_trial_does_not_become_the_last_one(node: Node, server: FaultyServer) -> None:
    node.run("--url", server.url)
    trial = package(STAND_IN + "# trial\n")
    offer(server, trial)
    assert node.run("--url", server.url, "--sha256", digest(trial)).returncode == 0
    assert os.readlink(node.cache / "current") == f"pilot-{digest(PACKAGE)}.pyz"


def test_what_killed_wrappers_left_behind_is_swept(node: Node, server: FaultyServer) -> None:
    node.run("--url", server.url)
    old, young = node.cache / ".incoming.old", node.cache / ".incoming.young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    node.run("--url", server.url)
    assert (old.exists(), young.exists()) == (False, True)


# -- the examples for batch systems -----------------------------------------------------------------------------------


def recorder(place: Path) -> Path:
    """A stand-in for run_pilot.sh that prints its arguments, one a line."""
    place.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    place.chmod(0o755)
    return place


@pytest.mark.parametrize(
    ("script", "arguments", "handed_on"),
    [
        ("slurm.sh", ["-q", "a b"], ["--work-directory", "/tmp/job", "-q", "a b"]),
        ("pbs.sh", [], ["--queue", "CPU", "--work-directory", "/tmp/job"]),
    ],
)
def test_a_batch_script_starts_the_wrapper_with_what_the_environment_names(
    tmp_path: Path, script: str, arguments: list[str], handed_on: list[str]
) -> None:
    named = {
        "PILOTAGE_WRAPPER": str(recorder(tmp_path / "run_pilot.sh")),
        "PILOTAGE_URL": "http://127.0.0.1:1",
        "PILOTAGE_TOKEN_FILE": "/a token",
        "PILOTAGE_QUEUE": "CPU",
        "TMPDIR": "/tmp/job",
    }
    command = [str(ROOT / "wrappers" / script), *arguments]
    done = subprocess.run(
        command, env={**environment(tmp_path), **named}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("--url", "http://127.0.0.1:1", "--token-file", "/a token"),
        *handed_on,
    ]
    del named["PILOTAGE_URL"]
    done = subprocess.run(
        command, env={**environment(tmp_path), **named}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "PILOTAGE_URL: the address of the server" in done.stderr


def test_local_starts_so_many_pilots_and_hands_signals_to_all(node: Node, server: FaultyServer) -> None:
    process = subprocess.Popen(
        [str(ROOT / "wrappers" / "local.sh"), "3", "--url", server.url], cwd=node.home,
        env={**node.environment, "STAND_IN": '{"sleep": 60}'},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["options"] for _ in range(3)] == [["--url", server.url]] * 3
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out == "got SIGTERM\n" * 3
    assert process.returncode == 143, err


def test_no_wrapper_holds_more_than_a_page_of_directives() -> None:
    for name in ("slurm.sh", "pbs.sh", "htcondor.sub", "local.sh"):
        text = (ROOT / "wrappers" / name).read_text()
        assert len(text.splitlines()) <= 60, name
        assert re.search("An example to copy", text), name


@pytest.mark.component("shellcheck")
@pytest.mark.parametrize("script", sorted((ROOT / "wrappers").glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_each_error_of_the_wrapper_is_told_in_its_help_and_documented(node: Node) -> None:
    errors = set(re.findall(r"fail (\d+) ([A-Z_]+) ", WRAPPER.read_text()))
    assert len(errors) == 7
    told = node.run("--help").stdout
    documented = (ROOT / "docs" / "wrappers.md").read_text()
    for code, name in errors:
        assert re.search(rf"\b{code} {name}\b", told), name
        assert f"| {code} | `{name}` |" in documented
