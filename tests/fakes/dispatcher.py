"""A small dispatcher that speaks protocol.messages and can be told to misbehave: for faults that the real server never shows."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from protocol.errors import PilotageError
from protocol.messages import from_wire, to_wire
from protocol.messages.pilots import (
    AttemptUpdate,
    AttemptUpdates,
    Command,
    DebugOrder,
    DebugReport,
    GetJobReply,
    GetJobRequest,
    Heartbeat,
    HeartbeatReply,
    InputFile,
    JobSpec,
    OutputFile,
    QueueForPilot,
    UpdateReplies,
    UpdateReply,
)
from protocol.messages.views import ErrorReply
from protocol.resources import ResourceType
from protocol.states import FINAL, JobState

TOKEN = "pilot-token-of-the-tests"
STATUS = {"UNAUTHENTICATED": 401, "NOT_FOUND": 404, "STALE_ATTEMPT": 409, "BAD_REQUEST": 400}
FINAL_WORDS = {state.value for state in FINAL}


class Said(NamedTuple):
    """One request as it came in."""

    verb: str
    body: Dict[str, Any]
    headers: Dict[str, str]
    at: float


@dataclass
class Fault:
    """What happens to the next `times` requests of one verb. A fault `after` is one whose reply alone goes wrong."""

    verb: str
    times: int
    status: int = 0
    page: bytes = b""
    """What the body is instead of the server's own error: a page of something in between."""
    seconds: float = 0.0
    drop: bool = False
    after: bool = False
    headers: Dict[str, str] = field(default_factory=dict)


@dataclass
class Held:
    """An attempt as the dispatcher sees it."""

    spec: JobSpec
    words: List[AttemptUpdate] = field(default_factory=list)
    states: List[str] = field(default_factory=list)
    seq: int = 0
    stop: bool = False
    soft_stop: bool = False
    debug: Optional[DebugOrder] = None
    """What somebody wants to see; inspections are asked until they are answered."""
    reports: List[DebugReport] = field(default_factory=list)
    times: Dict[str, float] = field(default_factory=dict)
    """State → when the dispatcher heard of it (time.monotonic)."""

    @property
    def state(self) -> str:
        return self.states[-1] if self.states else JobState.EXTRACTED.value

    @property
    def end(self) -> Optional[AttemptUpdate]:
        return next((word for word in self.words if word.moves and word.moves[-1].state in FINAL_WORDS), None)

    @property
    def log(self) -> Any:
        return next((word.log for word in self.words if word.log), None)


class Dispatcher:
    """Hands out the jobs that a test puts in, and keeps every word that it hears."""

    def __init__(self, storage: Path, tls: Optional[ssl.SSLContext] = None) -> None:
        self.storage = storage
        self.queue = QueueForPilot("CPU", "LOCAL", ResourceType.CPU, lease_seconds=60, heartbeat_seconds=20)
        self.wait_seconds = 0.2
        self.wait_url = ""
        """Where a pilot may wait with the ticket that it then gets; "": an old server, which knows no tickets."""
        self.drain = False
        self.update = False
        """With drain: the pilot is to be replaced."""
        self.waiting: List[JobSpec] = []
        self.held: Dict[int, Held] = {}
        self.said: List[Said] = []
        self.bundles: Dict[str, bytes] = {}
        self.by_request: Dict[str, List[JobSpec]] = {}
        self.faults: List[Fault] = []
        self.token = TOKEN
        self.connections = 0
        self.clock_ahead = 0.0
        """Seconds by which the date of the answers is ahead of the time."""
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Dispatcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- what tests do ------------------------------------------------------------------------------------------------------

    def add(
        self,
        *command: str,
        inputs: Optional[List[InputFile]] = None,
        outputs: Optional[List[str]] = None,
        **fields: Any,
    ) -> int:
        """Put a job in; its attempt's id. Outputs are names; they get a URL in the storage."""
        number = next(self._numbers)
        declared = [
            OutputFile(lfn, "test", "out", f"file://{self.storage}/{lfn}.{number}") for lfn in outputs or []
        ]
        spec = JobSpec(
            job_id=1000 + number, job_nr=number, task_id=7, attempt_id=number, attempt_nr=1,
            attempt_token=f"attempt-token-{number}-secret", command=list(command), inputs=inputs or [], outputs=declared,
            log_url=f"file://{self.storage}/log/{number}.tar.gz",
        )  # fmt: skip
        self.waiting.append(replace(spec, **fields))
        return number

    def misbehave(self, verb: str, times: int = 1, **how: Any) -> Fault:
        fault = Fault(verb, times, **how)
        with self._lock:
            self.faults.append(fault)
        return fault

    def behave(self) -> None:
        with self._lock:
            self.faults.clear()

    def attempt(self, number: int) -> Held:
        return self.held.get(number) or Held(JobSpec(0, 0, 0, number, 0, "", []))

    def bodies(self, verb: str) -> List[Dict[str, Any]]:
        return [said.body for said in list(self.said) if said.verb == verb]

    # -- what pilots ask ----------------------------------------------------------------------------------------------------

    def answer(self, verb: str, body: Dict[str, Any], token: str) -> Any:
        with self._lock:
            if token != self.token:
                raise PilotageError("UNAUTHENTICATED", "no such token")
            work: Optional[Callable[[Dict[str, Any]], Any]] = {
                "registerPilot": lambda _: self.queue,
                "getJob": self._get_job,
                "updateJob": self._update,
                "updateJobs": self._update_all,
                "heartbeat": self._heartbeat,
                "endPilot": lambda _: {},
            }.get(verb)
            if work is None:
                raise PilotageError("NOT_FOUND", verb)
            return work(body)

    def _get_job(self, body: Dict[str, Any]) -> GetJobReply:
        request = from_wire(GetJobRequest, body)
        if request.request_id not in self.by_request:
            specs, self.waiting = self.waiting[: request.n_jobs], self.waiting[request.n_jobs :]
            self.by_request[request.request_id] = specs
            self.held.update({spec.attempt_id: Held(spec) for spec in specs})
        specs = self.by_request[request.request_id]
        if specs:
            return GetJobReply(specs)
        ticket = "the-ticket" if self.wait_url else None
        return GetJobReply(
            [], self.wait_seconds, self.drain, self.update, ticket=ticket, wait_url=self.wait_url or None
        )

    def _update(self, body: Dict[str, Any]) -> UpdateReply:
        word = from_wire(AttemptUpdate, body)
        reply = self._take(word)
        reply.next = self._get_job(to_wire(word.next)) if word.next else None
        return reply

    def _update_all(self, body: Dict[str, Any]) -> UpdateReplies:
        words = from_wire(AttemptUpdates, body)
        answers = []
        for word in words.updates:
            try:
                answers.append(self._take(word))
            except PilotageError as error:
                answers.append(UpdateReply(word.attempt_id, "", error=error.name, detail=error.detail))
        return UpdateReplies(answers, self._get_job(to_wire(words.next)) if words.next else None)

    def _take(self, word: AttemptUpdate) -> UpdateReply:
        held = self.held.get(word.attempt_id)
        if held is None or held.spec.attempt_token != word.attempt_token or held.stop:
            raise PilotageError("STALE_ATTEMPT", f"attempt {word.attempt_id} is not yours")
        if word.seq > held.seq:
            if held.end and (word.moves or not word.log):
                raise PilotageError("STALE_ATTEMPT", "it has ended")
            held.seq = word.seq
            held.words.append(word)
            for move in word.moves:
                held.states.append(move.state)
                held.times[move.state] = time.monotonic()
        return UpdateReply(word.attempt_id, held.state)

    def _heartbeat(self, body: Dict[str, Any]) -> HeartbeatReply:
        answers = []
        for named in from_wire(Heartbeat, body).attempts:
            held = self.held.get(named.attempt_id)
            command = Command.STOP if held is None or held.stop else Command.CONTINUE
            answer = UpdateReply(named.attempt_id, held.state if held else "", command)
            if held is not None:
                answer.debug, answer.soft_stop = held.debug, held.soft_stop
                held.reports += [named.debug] if named.debug else []
            answers.append(answer)
        return HeartbeatReply(answers, self.drain, self.update)

    def fault_for(self, verb: str) -> Optional[Fault]:
        with self._lock:
            for fault in self.faults:
                if fault.verb == verb and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a pilot that was killed, or a connection that we cut ourselves


_NAMES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    409: "STALE_ATTEMPT",
}


def _error_body(status: int) -> bytes:
    """A failure as the server words it."""
    name = _NAMES.get(status, "SERVER_UNAVAILABLE" if status in (429, 503) else "SERVER_ERROR")
    return json.dumps({"error": name, "detail": "the test wants it so"}).encode()


def _handler(dispatcher: Dispatcher) -> type:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            dispatcher.connections += 1

        disable_nagle_algorithm = True

        def date_time_string(self, timestamp: Optional[float] = None) -> str:
            return super().date_time_string(time.time() + dispatcher.clock_ahead)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            verb = self.path.rpartition("/")[2]
            dispatcher.said.append(Said(verb, body, dict(self.headers), time.monotonic()))
            fault = dispatcher.fault_for(verb)
            if fault and not fault.after and self._go_wrong(fault):
                return
            try:
                token = (self.headers["Authorization"] or "").rpartition(" ")[2]
                reply, status = dispatcher.answer(verb, body, token), 200
            except PilotageError as error:
                entry = error.entry
                reply = ErrorReply(entry.name, entry.code, entry.text, error.detail, entry.advice)
                status = STATUS.get(entry.name, 500)
            if fault and fault.after and self._go_wrong(fault):
                return
            self._send(status, json.dumps(to_wire(reply)).encode())

        def do_GET(self) -> None:
            digest = self.path.rpartition("/")[2]
            dispatcher.said.append(Said("bundles", {"digest": digest}, dict(self.headers), time.monotonic()))
            data = dispatcher.bundles.get(digest)
            self._send(404 if data is None else 200, data or b"{}")

        def _go_wrong(self, fault: Fault) -> bool:
            """True if nothing further is to be answered."""
            if fault.seconds:
                time.sleep(fault.seconds)  # the fault itself: a server that hangs
            if fault.drop:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return True
            if fault.status:
                self._send(fault.status, fault.page or _error_body(fault.status), fault.headers)
                return True
            return False

        def _send(self, status: int, data: bytes, headers: Optional[Dict[str, str]] = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
