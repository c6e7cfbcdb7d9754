"""Software just in time: fetched, verified, unpacked or looked for before PRE-PROCESSING ends; and what becomes of it when it is not so."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import ssl
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest
import trustme

from protocol.messages.pilots import Step, StepKind
from tests.fakes.dispatcher import TOKEN, Dispatcher
from tests.houses import OTHER_ACCOUNT, SetUp, house_of
from tests.integration.pilot.test_isolation import ISOLATED
from tests.pilots import Site
from tests.waiting import wait_until

SETUP = b'export RECO_DATA="$PILOTAGE_SOFTWARE/data"; PATH=$PATH:/from/setup\n'
PROGRAM = b'#!/bin/sh\necho "$RECO_DATA $PILOTAGE_SOFTWARE $*"\n'
ONCE = {"PILOTAGE_COPYTOOLS__RETRIES": "0"}


def archive(files: Dict[str, bytes], top: str = "reco-1.2/") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(top + name)
            info.size, info.mode = len(content), 0o755
            file.addfile(info, io.BytesIO(content))
    return packed.getvalue()


RECO = archive({"setup.sh": SETUP, "bin/reco": PROGRAM})


class Web:
    """A web server of somebody else: what lies at each path, and how it answers."""

    def __init__(self, tls: Optional[ssl.SSLContext] = None) -> None:
        self.files: Dict[str, bytes] = {"/reco.tar.gz": RECO}
        self.redirects: Dict[str, str] = {}
        self.asked: List[str] = []
        self.headers: List[Dict[str, str]] = []
        self.wrong: Dict[str, int] = {}
        """Path → status; 0: the answer is cut short."""
        self.drips = False
        self.gate = threading.Event()
        self.gate.set()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.headers.append(dict(self.headers))
                web.gate.wait(30)
                if self.path in web.redirects:
                    self.send_response(302)
                    self.send_header("Location", web.redirects[self.path])
                    self.end_headers()
                    return
                data = web.files.get(self.path, b"")
                self.send_response(web.wrong.get(self.path) or (200 if data else 404))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if web.drips:
                    while True:  # until the other side has had enough
                        self.wfile.write(b"x")
                        self.wfile.flush()
                        time.sleep(0.1)
                self.wfile.write(data[:10] if web.wrong.get(self.path) == 0 else data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a connection that the pilot has cut


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


def checksum(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def named(web: Web, path: str = "/reco.tar.gz", data: bytes = RECO) -> Dict[str, str]:
    return {"software": web.url + path, "software_checksum": checksum(data)}


def run(site: Site, number: int, *options: str, **environment: str) -> Any:
    """The error of a job, or None."""
    site.run(*options, **environment)
    return site.dispatcher.attempt(number).end


# -- behind a URL -------------------------------------------------------------------------------------------------------------


def test_17_software_is_fetched_set_up_and_found_by_the_payload_and_its_steps(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    number = dispatcher.add(
        "sh", "-c", "reco payload; echo $PATH", steps=[Step(StepKind.PRE, ["reco", "step", "{software}"])],
        **named(web),
    )  # fmt: skip
    assert run(site, number).error == ""
    kept = site.archive(number)
    place = kept["payload.stdout"].split()[1]
    assert kept["payload.stdout"].splitlines()[0] == f"{place}/data {place} payload"
    assert kept["payload.stdout"].splitlines()[1].startswith(f"{place}/bin:")
    assert kept["payload.stdout"].splitlines()[1].endswith(":/from/setup")
    assert kept["pre-1.stdout"] == f"{place}/data {place} step {place}\n"
    log = site.pilots[0].log
    assert place.endswith("/software/reco-1.2")
    assert log.index("state=PRE-PROCESSING") < log.index("software is there") < log.index("state=STAGE-IN")
    assert "Authorization" not in web.headers[0]


def test_17_what_was_fetched_is_there_for_all_further_jobs_and_pilots_of_the_node(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    numbers = [dispatcher.add("reco", **named(web)) for _ in range(3)]
    site.run("--max-jobs", "2")
    cached = {"PILOTAGE_NODE_SETTINGS__CACHE_DIRECTORY": str(site.work / "bundles")}
    site.run("-a", str(site.place / "elsewhere"), "--max-jobs", "1", **cached)
    assert [dispatcher.attempt(number).end.error for number in numbers] == [""] * 3
    assert web.asked == ["/reco.tar.gz"]


def test_17_pilots_that_want_the_same_at_once_fetch_it_once(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.gate.clear()
    numbers = [dispatcher.add("reco", **named(web)) for _ in range(3)]
    pilots = [site.start() for _ in range(3)]
    wait_until(
        lambda: all(dispatcher.attempt(n).states for n in numbers) and web.asked, 20, "three pilots at work"
    )
    web.gate.set()
    assert [pilot.wait() for pilot in pilots] == [0] * 3
    assert [dispatcher.attempt(number).end.error for number in numbers] == [""] * 3
    assert web.asked == ["/reco.tar.gz"]


def test_software_that_was_changed_in_the_cache_is_fetched_again(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    numbers = [dispatcher.add("reco", **named(web)) for _ in range(2)]
    site.run()
    [cached] = (site.work / "bundles").glob("sha256-*")
    cached.write_bytes(archive({"bin/reco": b"#!/bin/sh\necho evil\n"}))
    assert run(site, numbers[1]).error == ""
    assert "evil" not in site.archive(numbers[1])["payload.stdout"]
    assert len(web.asked) == 2


def test_software_that_is_not_what_the_task_names_fails_the_job_after_one_more_try(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    number = dispatcher.add("touch", str(site.place / "ran"), **named(web, data=b"other"))
    end = run(site, number)
    assert end.error == "SOFTWARE_MISMATCH"
    assert (
        f"it arrived with the SHA-256 {checksum(RECO)[7:]}; the task names {checksum(b'other')}"
        in end.error_detail
    )
    assert len(web.asked) == 2
    assert not list((site.work / "bundles").glob("sha256-*"))
    assert not (site.place / "ran").exists()


def test_software_that_cannot_be_had_is_tried_again_and_then_fails_the_job(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.wrong = {"/away": 404, "/broken": 500, "/cut": 0}
    web.files.update(dict.fromkeys(web.wrong, RECO))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        down = {**named(web), "software": f"http://127.0.0.1:{nobody.getsockname()[1]}/x"}
        numbers = [dispatcher.add("reco", **named(web, path)) for path in web.wrong]
        numbers.append(dispatcher.add("reco", **down))
        site.run("--max-jobs", "4", PILOTAGE_COPYTOOLS__RETRIES="2")
    ends = [dispatcher.attempt(number).end for number in numbers]
    assert [end.error for end in ends] == ["SOFTWARE_NOT_FETCHED"] * 4
    for end, said in zip(ends, ("HTTP status 404", "HTTP status 500", "ended after 10 of", "refused")):
        assert said in end.error_detail
    assert web.asked == ["/away"] * 3 + ["/broken"] * 3 + ["/cut"] * 3
    assert site.pilots[0].log.count("the software was not fetched") == 8


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
def test_a_server_that_hangs_is_left_in_time(
    drips: bool, site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.drips = drips
    if not drips:
        web.gate.clear()
    number = dispatcher.add("reco", pilot_settings={"copytools.timeout_seconds": "1"}, **named(web))
    began = time.monotonic()
    end = run(site, number, **ONCE)
    assert end.error == "SOFTWARE_NOT_FETCHED"
    assert "not there within 1 s" in end.error_detail
    assert time.monotonic() - began < 10


def test_a_job_that_is_cancelled_waits_for_its_software_no_longer(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.gate.clear()
    dispatcher.queue.heartbeat_seconds = 1
    number = dispatcher.add("reco", **named(web))
    pilot = site.start()
    wait_until(lambda: web.asked, 20, "the request")
    dispatcher.attempt(number).stop = True
    assert pilot.wait(20) == 0
    assert dispatcher.attempt(number).end is None


def test_software_that_does_not_come_holds_up_no_other_slot(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.gate.clear()
    stuck = dispatcher.add("reco", **named(web))
    other = dispatcher.add("true")
    pilot = site.start("--slots", "2", "--max-jobs", "2")
    wait_until(lambda: dispatcher.attempt(other).end, 20, "the other job's end")
    assert dispatcher.attempt(stuck).end is None
    web.gate.set()
    assert pilot.wait() == 0
    assert dispatcher.attempt(stuck).end.error == ""


def test_b6_an_evil_archive_is_refused_though_it_is_what_the_task_names(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.files["/evil"] = archive({"x": b""}, top="../../")
    number = dispatcher.add("true", **named(web, "/evil", web.files["/evil"]))
    end = run(site, number)
    assert (end.error, "which leads out of it" in end.error_detail) == ("SOFTWARE_UNUSABLE", True)


def test_software_that_is_too_large_is_refused(site: Site, dispatcher: Dispatcher, web: Web) -> None:
    content = bytes(3 << 20)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:  # as it is
        file.writestr("zeros", content)
    web.files.update({"/packed": packed.getvalue(), "/unpacked": archive({"zeros": content})})
    numbers = [
        dispatcher.add("true", **named(web, path, web.files[path])) for path in ("/packed", "/unpacked")
    ]
    site.run("--max-jobs", "2", PILOTAGE_LIMITS__SOFTWARE_MB="2")
    ends = [dispatcher.attempt(number).end for number in numbers]
    assert [end.error for end in ends] == ["SOFTWARE_UNUSABLE"] * 2
    assert "2097152 are allowed" in ends[0].error_detail and "bytes unpacked" in ends[1].error_detail


def test_a_redirection_is_followed_and_a_url_may_be_a_file_too(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.redirects["/latest"] = "/reco.tar.gz"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        info = zipfile.ZipInfo("bin/reco")
        info.external_attr = 0o755 << 16
        file.writestr(info, PROGRAM)
    (site.place / "reco.zip").write_bytes(packed.getvalue())
    by_file = {
        "software": f"file://{site.place}/reco.zip",
        "software_checksum": checksum(packed.getvalue()),
    }
    numbers = [dispatcher.add("reco", **named(web, "/latest")), dispatcher.add("reco", **by_file)]
    site.run("--max-jobs", "2")
    assert [dispatcher.attempt(number).end.error for number in numbers] == ["", ""]
    assert web.asked == ["/latest", "/reco.tar.gz"]


@pytest.mark.parametrize("trusted", [True, False])
def test_https_is_spoken_with_servers_that_the_system_trusts(
    trusted: bool, site: Site, dispatcher: Dispatcher
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(site.place / "ca.pem")
    web = Web(context)
    number = dispatcher.add("reco", **named(web))
    end = run(site, number, SSL_CERT_FILE=str(site.place / "ca.pem"), **ONCE)
    web.close()
    assert end.error == ("" if trusted else "SOFTWARE_NOT_FETCHED")
    assert trusted or "certificate verify failed" in end.error_detail


def test_b25_software_is_fetched_from_nowhere_else(site: Site, dispatcher: Dispatcher, web: Web) -> None:
    """The server refuses such addresses; but a redirection may lead there."""
    web.redirects = {
        "/ftp": "ftp://host/x",
        "/self": "http://0.0.0.0:1/x",
        "/round": "/round",
        "/odd": "http://[::1/",
    }
    numbers = [dispatcher.add("true", **named(web, path)) for path in web.redirects]
    numbers.append(dispatcher.add("true", software="file:///etc/passwd", software_checksum=checksum(b"x")))
    ini = site.place / "pilot.ini"
    ini.write_text(f"[copytool:cp]\ndirectories = {site.place}\n[copytool:nfs]\ndirectories = {site.place}\n")
    site.run("--config", str(ini), "--max-jobs", "5", **ONCE)
    ends = [dispatcher.attempt(number).end for number in numbers]
    said = (
        *("no address of the web", "refused", "more than 5 redirections", "a redirection to http://[::1/"),
        "none of the allowed directories",
    )
    for end, words in zip(ends, said):
        assert end.error in ("BAD_PATH", "SOFTWARE_NOT_FETCHED") and words in end.error_detail
    assert "/reco.tar.gz" not in web.asked


def test_a_checksum_that_is_none_never_becomes_a_path(site: Site, dispatcher: Dispatcher, web: Web) -> None:
    wrong = ("", "sha256:../../../x", f"md5:{'0' * 32}", f"adler32:{'0' * 64}")
    numbers = [dispatcher.add("true", **{**named(web), "software_checksum": text}) for text in wrong]
    site.run("--max-jobs", "4")
    assert [dispatcher.attempt(number).end.error for number in numbers] == ["SOFTWARE_UNUSABLE"] * 4
    assert not web.asked


# -- set up -------------------------------------------------------------------------------------------------------------------


def test_a_set_up_that_fails_is_told_apart_from_the_payload(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    web.files["/fails"] = archive({"setup.sh": b"echo no licence >&2; return 3\n"})
    web.files["/works"] = archive({"setup.sh": SETUP})
    web.files["/fails-in-step"] = archive({"setup.sh": b"[ -z $PILOTAGE_STEP ]\n"})
    wanted = {
        "SETUP_FAILED": [("/fails", "true", []), ("/fails-in-step", "true", [Step(StepKind.PRE, ["true"])])],
        "TRANSFORM_NOT_FOUND": [("/works", "reco", [])],
        "PAYLOAD_FAILED": [("/works", "false", [])],
    }
    numbers = [
        (dispatcher.add(command, steps=steps, **named(web, path, web.files[path])), error)
        for error, cases in wanted.items()
        for path, command, steps in cases
    ]
    site.run("--max-jobs", "4")
    assert [dispatcher.attempt(number).end.error for number, _ in numbers] == [error for _, error in numbers]
    assert "no licence" in dispatcher.attempt(numbers[0][0]).end.error_detail


# -- on the node --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(site: Site) -> Path:
    """A directory of software as CVMFS would show it."""
    place = site.place / "cvmfs" / "spd.example"
    (place / "reco" / "bin").mkdir(parents=True)
    (place / "reco" / "setup.sh").write_bytes(SETUP)
    (place / "reco" / "bin" / "reco").write_bytes(PROGRAM)
    (place / "reco" / "bin" / "reco").chmod(0o755)
    site.environment["PILOTAGE_PAYLOAD__SOFTWARE_PATHS"] = f"/cvmfs, {site.place / 'cvmfs'}"
    return place


def test_software_of_the_node_is_set_up_where_it_lies(
    site: Site, dispatcher: Dispatcher, repository: Path
) -> None:
    place = repository / "reco"
    numbers = [
        dispatcher.add("reco", "{software}", software=str(path)) for path in (place, place / "setup.sh")
    ]
    site.run("--max-jobs", "2")
    for number in numbers:
        assert site.archive(number)["payload.stdout"] == f"{place}/data {place} {place}\n"


def test_software_that_the_node_does_not_have_sends_the_job_elsewhere(
    site: Site, dispatcher: Dispatcher
) -> None:
    missing = dispatcher.add("true", software="/cvmfs/nowhere.example/reco/1.2")
    outside = [dispatcher.add("true", software=path) for path in ("/etc/ssl", "/cvmfs/../etc/ssl", "/cvmfs")]
    site.run("--max-jobs", "4")
    ends = [dispatcher.attempt(number).end for number in (missing, *outside)]
    assert [end.error for end in ends] == ["NO_SOFTWARE_DIRECTORY"] * 4
    assert "No such file or directory" in ends[0].error_detail
    assert all("the queue has software below /cvmfs" in end.error_detail for end in ends[1:])


@pytest.mark.component("bubblewrap")
def test_software_can_be_read_in_a_container_and_not_changed(
    site: Site, dispatcher: Dispatcher, repository: Path, web: Web
) -> None:
    change = "reco; echo evil >>{software}/bin/reco && echo changed"
    numbers = [
        dispatcher.add("sh", "-c", change, software=str(repository / "reco")),
        dispatcher.add("sh", "-c", change, **named(web)),
    ]
    site.run("--max-jobs", "2", PILOTAGE_PAYLOAD__EXECUTOR="bubblewrap")
    for number in numbers:
        text = site.archive(number)["payload.stdout"]
        assert "/data " in text and "changed" not in text, site.archive(number)
    assert b"evil" not in (repository / "reco" / "bin" / "reco").read_bytes()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another; run the tests as root")
def test_software_is_handed_over_to_the_account_that_the_payload_runs_as() -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name, content in {"setup.sh": SETUP, "bin/original": PROGRAM}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            file.addfile(info, io.BytesIO(content))
        twin = tarfile.TarInfo("bin/reco")
        twin.type, twin.linkname = tarfile.LNKTYPE, "bin/original"
        file.addfile(twin)
    with house_of(SetUp(OTHER_ACCOUNT)) as (site, dispatcher, settings, _):
        (site.place / "reco.tar.gz").write_bytes(packed.getvalue())
        fields = {
            "software": f"file://{site.place}/reco.tar.gz",
            "software_checksum": checksum(packed.getvalue()),
        }
        number = dispatcher.add("sh", "-c", "reco; id -un", **fields)
        site.run(**settings)
        assert dispatcher.attempt(number).end.error == "", site.archive(number)
        assert site.archive(number)["payload.stdout"].endswith("nobody\n")


@pytest.mark.component("bubblewrap")
def test_software_cannot_be_exchanged_for_a_link_that_shows_the_next_step_the_token(
    site: Site, dispatcher: Dispatcher, web: Web
) -> None:
    """Not by renaming what lies around its one directory either."""
    swap = "mv software old; mkdir -p software; rm -rf software/*; ln -s ../../../.. software/reco-1.2; ls software/reco-1.2"
    look = f"cat software/reco-1.2/token {site.token}; reco step"
    number = dispatcher.add("sh", "-c", swap, steps=[Step(StepKind.POST, ["sh", "-c", look])], **named(web))
    assert run(site, number, **ISOLATED).error == ""
    kept = site.archive(number)
    assert kept["payload.stdout"].splitlines()[-2:] == ["bin", "setup.sh"]
    assert kept["post-1.stdout"].endswith(" step\n") and TOKEN not in kept["post-1.stdout"]
