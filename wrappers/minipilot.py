#!/usr/bin/env python3
"""MiniPilot: a pilot in one file, for tests and for nodes that have nothing but a Python from 3.6 on.

    curl -fsSO http://SERVER:8080/v1/minipilot.py
    python3 minipilot.py --url http://SERVER:8080 --token-file pilot.token -q CPU -a /scratch

As pilot.pyz, but one job at a time, and less. Its fences are there: a word is said again until it is answered,
heartbeats keep the lease, cancelled jobs are stopped, SIGTERM gives the job back. It takes jobs that ask for no
memory or disk; gives back those with steps, containers, shipped code, software or addresses other than file:///PATH;
ends payloads for their wall time, not for memory, disk or looping, nor what left their session; tells the end of what
a failed one printed, and stores no log; has no outbox; cleans up after itself only.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import logging
import os
import random
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from urllib.parse import unquote, urlsplit

SIGNALS = {signal.SIGTERM: (143, "PILOT_SIGTERM"), signal.SIGINT: (130, "PILOT_SIGINT")}
REQUEST_SECONDS, LAST_SECONDS, FAREWELL_SECONDS = 15.0, 2.0, 5.0
GIVE_UP_SECONDS, GRACE_SECONDS, POLL_SECONDS, LAST_WORDS, LARGEST_REPLY = 600.0, 3.0, 5.0, 2000, 1 << 24
LASTING, NO_TOKEN = (400, 404, 405, 409, 413), (401, 403)  # the token may be renewed in its file
OS_ERRORS = {"STAGE-IN": "STAGE_IN_FAILED", "RUNNING": "TRANSFORM_NOT_FOUND", "STAGE-OUT": "STAGE_OUT_FAILED"}
IDS = {"task_id": "taskId", "job_id": "jobId", "job_nr": "jobNr", "attempt_nr": "attemptNr"}
FIELDS = "attemptId attemptToken command environment inputs outputs logUrl dataType cores prodSourceLabel"
KNOWN = {*IDS.values(), *FIELDS.split(), "walltimeSeconds"}
URL = re.compile(r"https?://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:[1-5]?\d{1,4}|:6[0-4]\d{3})?(/\S*)?")
PRIVATE = re.compile("^PILOTAGE_|^X509_USER_PROXY$|TOKEN|PASSW|SECRET|CREDENTIAL", re.IGNORECASE)
NO_SECRET = {"usedforsecurity": False} if sys.version_info >= (3, 9) else {}  # md5 on nodes in FIPS mode


class Failure(Exception):
    """A name of the server's catalogue, and what happened. The server's own word `passes` or lasts; None: the job's."""

    def __init__(self, name, detail, passes=None):
        super().__init__(f"{name}: {detail}")
        self.name, self.detail, self.passes = name, str(detail)[:4000], passes


def path_of(file):
    parts, lfn = urlsplit(file["url"]), file["lfn"]
    path = unquote(parts.path)
    is_odd = not lfn.strip(".") or re.search(r"^-|[/\0]", lfn) or re.search(r"^[^/]|/\.\.(/|$)|\0", path)
    if parts.scheme != "file" or parts.netloc or is_odd:
        raise Failure("NOT_SUPPORTED", f"it takes plain files at file:///PATH only, not {parts.geturl()!r}")
    return path


def copy(source, target, check):
    """Size and checksums of a plain file, copied to a new name and on the disk when this returns."""
    size, adler32, md5 = 0, 1, hashlib.md5(**NO_SECRET)
    number = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(number, "rb") as coming, open(target, "xb") as going:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(f"{source} is no plain file")
        for block in iter(lambda: coming.read(1 << 20), b""):
            check()
            going.write(block)
            md5.update(block)
            size, adler32 = size + len(block), zlib.adler32(block, adler32)
        going.flush()
        os.fsync(going.fileno())
    return size, {"md5": md5.hexdigest(), "adler32": f"{adler32:08x}"}


class Pilot:
    """The server, and the one job that is held: `fence` is None while there is none."""

    def __init__(self, options, token):
        self.options, self.token, self.url = options, token, urlsplit(options.url.rstrip("/"))
        # https is verified; SSL_CERT_FILE may name the authorities. No proxy is used, no redirection followed.
        self.connect = getattr(http.client, f"{self.url.scheme.upper()}Connection")
        self.fence, self.stopped, self.drain, self.signal, self.until = None, 0, False, 0, float("inf")
        name = re.sub("[^A-Za-z0-9._-]", "-", os.uname().nodename)[:100]
        self.me = {"pilotId": f"mini-{name}-{os.getpid()}-{os.urandom(3).hex()}", "node": name}
        self.me.update(queue=options.queue, cores=len(os.sched_getaffinity(0)), prodSourceLabel=options.label)

    def end(self, number, frame):
        """A signal: what is said from now on has little time."""
        self.signal, self.until = self.signal or number, min(self.until, time.monotonic() + FAREWELL_SECONDS)

    def pause(self, seconds):
        until = time.monotonic() + seconds * random.uniform(0.8, 1.2)
        while not self.signal and time.monotonic() < until:
            time.sleep(0.1)

    def ask(self, verb, body, patience=GIVE_UP_SECONDS):
        """Again and again until there is an answer; a Failure that `passes` when the patience is over (seconds)."""
        give_up_at, wait = time.monotonic() + patience, 0.5
        while True:
            try:
                timeout = LAST_SECONDS if self.signal else REQUEST_SECONDS
                connection = self.connect(self.url.hostname, self.url.port, timeout=timeout)
                with contextlib.closing(connection):
                    text, token = json.dumps({**self.me, **body}), self.token
                    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
                    connection.request("POST", f"{self.url.path}/v1/{verb}", text, headers)
                    answer = connection.getresponse()
                    status, data = answer.status, json.loads(answer.read(LARGEST_REPLY).decode())
                if status == 200 and isinstance(data, dict):
                    return data
                if status in NO_TOKEN:
                    with contextlib.suppress(OSError), open(self.options.token_file.name) as file:
                        self.token = file.read().strip()
                refused = status in NO_TOKEN and verb != "updateJob" and self.token == token
                failure = Failure(data["error"], data["detail"], not refused and status not in LASTING)
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                failure = Failure("SERVER_UNREACHABLE", f"{error!r}; is {self.options.url} right?", True)
            logging.info(f"{verb}: {failure}")
            if not failure.passes or time.monotonic() > min(give_up_at, self.until):
                raise failure
            wait = min(30.0, 2 * wait)
            time.sleep(1.0) if self.signal else self.pause(wait)

    def tell(self, *states, **more):
        """A word about the attempt, which enters these states."""
        logging.info(f"job {self.spec['jobId']}, attempt {self.spec['attemptNr']}: {', '.join(states)}")
        self.state, self.seq = states[-1], self.seq + 1
        moves = [{"state": state, "at": time.time()} for state in states]
        answer = self.ask("updateJob", {**self.fence, "seq": self.seq, "moves": moves, **more}, float("inf"))
        if answer["command"] == "stop":
            raise Failure("STALE_ATTEMPT", answer.get("detail"), False)

    def beat(self, seconds):
        while True:
            time.sleep(seconds * random.uniform(0.9, 1.1))
            fence = self.fence
            with contextlib.suppress(Failure):
                reply = self.ask("heartbeat", {"attempts": [fence] if fence else []}, 0)
                self.drain = self.drain or reply.get("drain")
                if "stop" in [answer.get("command") for answer in reply.get("answers", ())]:
                    self.stopped = fence["attemptId"]

    def work(self):
        answer = self.ask("registerPilot", {"version": "minipilot"})
        threading.Thread(target=self.beat, args=(answer["heartbeatSeconds"],), daemon=True).start()
        n_jobs, idle_since = 0, time.monotonic()
        while not self.signal and not self.drain and n_jobs < self.options.max_jobs:
            reply = self.ask("getJob", {"requestId": os.urandom(12).hex(), "images": False})
            self.drain = self.drain or reply["drain"]
            for self.spec in reply["jobs"]:
                self.run()
                n_jobs, idle_since = n_jobs + 1, time.monotonic()
            if not reply["jobs"]:
                if time.monotonic() - idle_since >= self.options.idle:
                    break
                self.pause(max(POLL_SECONDS, reply["waitSeconds"]))
        return SIGNALS[self.signal][0] if self.signal else 0 if n_jobs else 82

    def run(self):
        """One attempt, to an end that the server knows, unless it is not ours any more."""
        self.fence = {key: self.spec[key] for key in ("attemptId", "attemptToken")}
        self.seq, self.code, self.text = 0, None, b""
        self.place = os.path.abspath(f"{self.options.work_directory}/minipilot-{os.urandom(8).hex()}")
        try:
            self.do()
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must not be lost in silence
            name = OS_ERRORS.get(self.state) if isinstance(error, OSError) else None
            failure = error if isinstance(error, Failure) else Failure(name or "PILOT_EXCEPTION", repr(error))
            logging.info(failure)
            if failure.passes is None:  # else it is not ours any more
                with contextlib.suppress(Failure):
                    self.tell("FAILED", error=failure.name, errorDetail=failure.detail, exitCode=self.code)
                    self.pause(POLL_SECONDS if failure.name == "NOT_SUPPORTED" else 0)  # more are of its kind
        finally:
            self.fence = None
            with contextlib.suppress(RecursionError):  # it is deeper than this can remove
                shutil.rmtree(self.place, ignore_errors=True)

    def do(self):
        inputs, outputs = self.spec["inputs"], self.spec["outputs"]
        self.tell("OBTAINED")
        further = sorted(name for name, value in self.spec.items() if value and name not in KNOWN)
        if further:
            raise Failure("NOT_SUPPORTED", f"minipilot cannot do what the job asks for: {', '.join(further)}")
        for file in inputs + outputs:
            path_of(file)
        self.tell("PRE-PROCESSING", "STAGE-IN")
        os.makedirs(f"{self.place}/inputs", 0o700)
        for file in inputs:
            self.stage_in(file["lfn"], file["size"], file["checksums"], path_of(file))
        self.tell("RUNNING")
        self.payload([file["lfn"] for file in inputs], [f"{self.place}/{file['lfn']}" for file in outputs])
        self.tell("FINISHED", "POST-PROCESSING", "STAGE-OUT")
        reports = [self.stage_out(file["lfn"], path_of(file)) for file in outputs]
        self.tell("COMPLETED", exitCode=0, outputs=reports)

    def check(self, ran=0.0):
        """Raise what ends the job from outside; `ran`: seconds for which its payload does."""
        if self.stopped == self.spec["attemptId"]:
            raise Failure("STALE_ATTEMPT", "the server says stop", False)
        if self.signal:
            raise Failure(SIGNALS[self.signal][1], "the pilot was told to end")
        if 0 < self.spec["walltimeSeconds"] < ran:
            raise Failure("WALLTIME_EXCEEDED", f"the payload ran for {ran:.0f} s")

    def stage_in(self, lfn, size, wanted, source):
        arrived, found = copy(source, f"{self.place}/inputs/{lfn}", self.check)
        if arrived != size:
            raise Failure("INPUT_SIZE_MISMATCH", f"{lfn}: {size} bytes are registered, {arrived} arrived")
        if wanted and not found.keys() & wanted.keys():
            raise Failure("CHECKSUM_NOT_SUPPORTED", f"{lfn}: minipilot calculates {', '.join(found)}")
        for name in found.keys() & wanted.keys():
            if found[name] != wanted[name].lower():
                raise Failure(f"STAGE_IN_{name.upper()}_MISMATCH", f"{lfn} arrived with {found[name]}")

    def stage_out(self, lfn, target):
        path = f"{self.place}/{lfn}"
        if os.path.islink(path) or not os.path.isfile(path):
            name = "OUTPUT_NOT_A_FILE" if os.path.lexists(path) else "MISSING_OUTPUT"
            raise Failure(name, f"{lfn} is no plain file in the work directory")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        size, found = copy(path, target, self.check)
        return {"lfn": lfn, "size": size, "checksums": found}

    def payload(self, lfns, outputs):
        inputs, lfn = [f"{self.place}/inputs/{lfn}" for lfn in lfns], "".join(lfns[:1])
        words = {name: str(self.spec[key]) for name, key in IDS.items()}
        environment = {name: text for name, text in os.environ.items() if not PRIVATE.search(name)}
        environment.update((f"PILOTAGE_{name.upper()}", text) for name, text in words.items())
        words.update(lfn=lfn, stem=re.sub(r"(?<=.)\.[^.]*$", "", lfn), workdir=self.place)
        words.update(python=sys.executable, input="".join(inputs[:1]), output="".join(outputs[:1]))
        words.update(inputs=" ".join(inputs), outputs=" ".join(outputs))
        several = {"{inputs}": inputs, "{outputs}": outputs}
        # The server has looked at the templates: whole names between braces, and doubled braces.
        filled = [several.get(word, [word.format_map(words)]) for word in self.spec["command"]]
        environment.update((name, text.format_map(words)) for name, text in self.spec["environment"].items())
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        options.update(cwd=self.place, env=environment, start_new_session=True)
        with subprocess.Popen(sum(filled, []), **options) as process:
            why = self.until_its_end(process)
        self.code = process.returncode
        if why or self.code:
            name, how = ("PAYLOAD_FAILED", "exit code") if self.code > 0 else ("PAYLOAD_KILLED", "signal")
            said = self.text.decode(errors="replace").strip()
            raise why or Failure(name, f"{how} {abs(self.code)}; its last words: {said}")

    def until_its_end(self, process):
        """What it was ended for, or None. It is reaped after the last signal: until then its number is its own."""
        began, why, told = time.monotonic(), None, 0.0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            now = time.monotonic()
            try:
                self.check(now - began)
            except Failure as error:
                if why is None or now - told > GRACE_SECONDS:
                    os.killpg(process.pid, signal.SIGKILL if why else signal.SIGTERM)
                why, told = why or error, told or now
            self.listen(process.stdout, 0.1)
        os.killpg(process.pid, signal.SIGKILL)
        self.listen(process.stdout, 0.0)
        return why

    def listen(self, pipe, seconds):
        if select.select([pipe], [], [], seconds)[0]:
            block = os.read(pipe.fileno(), 1 << 16)
            self.text = (self.text + block)[-LAST_WORDS:]
            time.sleep(0 if block else seconds)  # it has closed the pipe, and lives on


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s minipilot: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True, help="address of the server, as http://SERVER:8080")
    parser.add_argument("--token-file", type=argparse.FileType(), required=True, help="mode 0600")
    parser.add_argument("-q", "--queue", required=True, help="computing queue to pull jobs from")
    parser.add_argument("-j", "--label", default="user", help="job label (user)")
    parser.add_argument("-a", "--work-directory", default=os.getcwd(), help="place for jobs' directories (.)")
    parser.add_argument("--max-jobs", type=float, default=float("inf"), help="end after so many jobs")
    parser.add_argument("--idle", type=float, default=600, help="end after so long without a job (600 s)")
    options = parser.parse_args()
    if os.fstat(options.token_file.fileno()).st_mode & 0o077 or not URL.fullmatch(options.url):
        parser.error("--url is as http://SERVER:8080; nobody else may read the token (chmod 600)")
    pilot = Pilot(options, options.token_file.read().strip())
    for number in SIGNALS:
        signal.signal(number, pilot.end)
    try:
        code = pilot.work()
    except Failure as error:
        codes = {"UNAUTHENTICATED": 68, "FORBIDDEN": 68, "NOT_FOUND": 2, "WRONG_STATE": 2}
        code = 79 if error.passes else codes.get(error.name, 1)
    with contextlib.suppress(Failure):
        pilot.ask("endPilot", {"exitCode": code, "reason": f"exit code {code}"}, 0)
    sys.exit(code)
