"""The one file that knows all parts of the pilot: build them, start them, watch them, and end them in order."""

from __future__ import annotations

import logging
import math
import os
import queue
import secrets as randomness
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Callable, NamedTuple, Optional

from pilot import building, channels, node, process
from pilot.bundles import Cache
from pilot.context import Context, Event, JobsChanged, Signalled, ThreadEnded, are_isolated
from pilot.control import data, payload, steps
from pilot.control import slot as slot_control
from pilot.control.heartbeat import heartbeat
from pilot.control.job import Asking, Why, finish_jobs
from pilot.control.monitor import watch_payloads
from pilot.control.reporter import Reporter
from pilot.jobrun import Jobs
from pilot.node import fitness
from pilot.outbox import Outbox
from pilot.plugins import executors, monitors, workflows
from pilot.plugins.workflows.base import Steps, Workflow
from pilot.server_client import CREDENTIALS, PILOT_TOKEN, Backoff, ServerClient, insist, is_passing, last_word
from pilot.workdir import JobLogs, PilotDirectory
from protocol import __version__
from protocol.errors import BY_NAME, PilotageError, PilotExit
from protocol.logs import bound
from protocol.messages import to_wire
from protocol.messages.pilots import CacheReport, PilotEnd, PilotRegistration, QueueForPilot
from protocol.redaction import Secrets
from protocol.settings import Settings

logger = logging.getLogger(__name__)

END_SECONDS = 7.0
"""After a signal: for payloads to end, their failure to be told, their logs to be stored. Batch systems often give 10."""
LAST_WORD_SECONDS = 0.7
"""For each of the very last requests."""
LOOK_SECONDS = 1.0
"""A signal that comes just before the main thread begins to wait wakes nobody: it is seen at the next look."""
JOIN_SECONDS = 1.0
"""For threads that have nothing left to do; one that hangs in a request or on a storage is left behind."""
BUNDLES, OUTBOX = "bundles", "outbox"

ALWAYS_HEARD = (signal.SIGTERM, signal.SIGINT)
HEARD_UNLESS_IGNORED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
"""Who starts a pilot with nohup means it."""

ASKING = "asking"
"""The control that ends by itself; any other one ends only when the pilot does."""


class Ending(NamedTuple):
    """How a pilot ends. Jobs that it still holds fail with `error`; None: it holds none that it could still end."""

    code: PilotExit
    reason: str
    error: Optional[PilotageError] = None


class Interrupted(Exception):
    """A signal came while the pilot was still waiting for the server's first answer."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def run(settings: Settings, environ: Mapping[str, str], secrets: Secrets) -> PilotExit:
    """A pilot's whole life. A thread that does not end in time is left behind: the caller then ends the process."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with Signals(events) as signals, process.adopting_orphans():
        try:
            return _run(settings, environ, secrets, events, signals)
        except PilotageError as error:
            code = _exit_for(error)
            logger.error(
                "the pilot cannot work",
                extra={**error.facts(), "exit_code": code.value},
            )
            return code
        except Interrupted as interrupted:
            logger.warning("told to end before the first job", extra={"signal": interrupted.number})
            return _signal_ending(interrupted.number).code


def _run(
    settings: Settings,
    environ: Mapping[str, str],
    secrets: Secrets,
    events: queue.SimpleQueue[Event],
    signals: Signals,
) -> PilotExit:
    started = time.monotonic()
    found = building.look_around(settings, environ)
    here, given = found
    mine = settings.text("node_settings", "pilot_id")
    pilot_id = node.pilot_name(mine, here.name, os.getpid(), randomness.token_hex(3))
    client = building.client_for(settings, environ, secrets)
    work = settings.path("node_settings", "work_directory")
    directory = PilotDirectory(work, pilot_id, settings.flag("limits", "keep_work_directories"))
    with ExitStack() as places:
        places.enter_context(bound(pilot_id=pilot_id))
        places.enter_context(_opened(directory))
        job_logs = JobLogs(secrets)
        logger.info("pilot begins", extra={"version": __version__, "server": client.url, "work": str(work)})
        logger.info("the node is known", extra=found.facts())
        registration = building.registration(settings, here, pilot_id, work, given)
        with signals.raised():
            answer = _register(client, registration, settings)
        places.enter_context(_end_told(client, pilot_id))
        logger.info("the server knows the pilot", extra={"queue": answer.name})
        if answer.token_role:
            logger.warning(
                "the token is no pilot's: who gets hold of it here can do all that its role may",
                extra={"role": answer.token_role, "advice": PILOT_TOKEN},
            )
        settings, plugin = building.as_others_say(settings, answer)
        kept = settings.optional_path("node_settings", "outbox_directory") or work / OUTBOX
        outbox = places.enter_context(_opened(Outbox(kept, pilot_id, client.url)))
        cached = settings.optional_path("node_settings", "cache_directory") or work / BUNDLES
        if settings.items("payload", "users"):
            directory.let_through()
        tools = building.tools(settings, environ, answer.storage_url)
        steps.utilities(settings)  # a wrong one ends the pilot here, and not each of its jobs
        executor = executors.load(settings.items("payload", "executor"), environ)
        context = Context(
            settings=settings,
            environ=environ,
            pilot_id=pilot_id,
            registration=registration,
            computing_queue=answer,
            node=here,
            client=client,
            plugin=plugin,
            executor=executor,
            monitors=monitors.load(settings.items("limits", "monitors")),
            tools=tools.usable,
            unusable_tools=tools.unusable,
            directory=directory,
            outbox=outbox,
            bundles=Cache(cached, client.fetch_bundle, settings.integer("limits", "bundle_cache_mb")),
            secrets=secrets,
            channels=channels.make(settings.integer("node_settings", "slots")),
            jobs=Jobs(lambda: events.put(JobsChanged())),
            job_logs=job_logs,
            events=events,
            started=started,
            collector=building.collector_for(settings, environ, secrets),
            allocation=given,
            cache=building.cache_of(settings, are_isolated(executor, settings)),
        )
        workflow = workflows.load(settings.text("node_settings", "workflow"))
        logging.getLogger().addHandler(job_logs)
        try:
            return Pilot(context, workflow).live()
        finally:
            logging.getLogger().removeHandler(job_logs)


# -- the pilot at work ------------------------------------------------------------------------------------------------------


class Pilot:
    """The threads of a pilot and the main thread, which is the pilot monitor: it sleeps until one of them, or a signal, calls."""

    def __init__(self, context: Context, workflow: Workflow) -> None:
        self._context = context
        self._workflow = workflow
        self._asking = Asking(context)
        self._reporter = Reporter(context, self._asking)
        self._asking_ended = False
        self._waiting_since: Optional[float] = None
        """Since when only the delivery of results keeps the pilot."""
        self._threads: list[threading.Thread] = []

    def live(self) -> PilotExit:
        try:
            _check_node(self._context)
        except PilotageError as error:
            ending = Ending(_exit_for(error), str(error))
            logger.error("the node is not fit for work", extra=error.facts())
        else:
            self._start()
            ending = self._watch()
        return self._end(ending)

    def _start(self) -> None:
        context = self._context
        usual = Steps(
            prepare=lambda job: payload.prepare(context.of(job), job),
            stage_in=lambda job: data.stage_in(context.of(job), job),
            run=lambda job: payload.run(context.of(job), job),
            stage_out=lambda job: data.stage_out(context.of(job), job),
        )
        steps = self._workflow.steps(context, usual)
        self._thread("reporter", self._reporter.run)
        self._thread("heartbeat", lambda: heartbeat(context))
        self._thread("monitor", lambda: watch_payloads(context))
        if context.collector is not None:
            self._thread("collector", context.collector.run)
        if context.cache is not None:
            self._thread("cache", partial(context.cache.look_after, context.silence))
        stages_ahead = context.settings.integer("get_job", "stage_ahead") > 0
        for slot in range(1, context.settings.integer("node_settings", "slots") + 1):
            if stages_ahead:
                self._thread(f"prepare-{slot}", lambda: payload.prepare_jobs(context, steps.prepare))
                self._thread(f"stage-in-{slot}", lambda: data.stage_in_jobs(context, steps.stage_in))
            self._thread(f"payload-{slot}", partial(slot_control.run_jobs, context, slot, steps))
            self._thread(f"stage-out-{slot}", lambda: data.stage_out_jobs(context, steps.stage_out))
        self._thread("finish", lambda: finish_jobs(context, self._asking))
        for name, work in self._workflow.threads(context).items():
            self._thread(f"workflow-{name}", work)
        self._thread(ASKING, self._asking.run)

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        def top() -> None:
            with bound(pilot_id=self._context.pilot_id):
                try:
                    work()
                except BaseException as error:
                    self._context.thread_ended(name, error)
                    advice = BY_NAME["PILOT_EXCEPTION"].advice
                    logger.exception("a control died", extra={"control": name, "advice": advice})
                else:
                    self._context.thread_ended(name)

        thread = threading.Thread(target=top, name=name)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> Ending:
        """Sleep until there is a reason to end."""
        while True:
            event = self._next_event(self._seconds_until_look())
            if isinstance(event, Signalled):
                return _signal_ending(event.number)
            if isinstance(event, ThreadEnded):
                if event.name != ASKING or event.error is not None:
                    return _broken_ending(event)
                self._asking_ended = True
            if self._asking_ended and not self._context.jobs.all():
                return _normal_ending(self._asking)
            if self._context.seconds_left() <= 0:
                return _lifetime_ending(self._asking)
            if self._waits_in_vain():
                return _normal_ending(self._asking)  # results that are left speak for themselves in `_close`

    def _seconds_until_look(self) -> float:
        """Without an event: until the lifetime is over, or a server that does not take the last results is given up."""
        left = self._context.seconds_left()
        if self._only_results_wait():
            left = min(left, self._give_up_at() - time.monotonic())
        return max(0.0, left) + 0.01

    def _only_results_wait(self) -> bool:
        waits = self._asking_ended and not self._context.jobs.in_work()
        if waits and self._waiting_since is None:
            self._waiting_since = time.monotonic()
        return waits

    def _give_up_at(self) -> float:
        """When to leave the results to the next pilot; at once if the server was given up by job control already."""
        if self._asking.why is Why.UNREACHABLE or self._waiting_since is None:
            return -math.inf  # never the time of this look: the one that it is compared with was taken before
        return self._waiting_since + self._context.settings.integer("connection", "give_up_seconds")

    def _waits_in_vain(self) -> bool:
        return self._only_results_wait() and time.monotonic() >= self._give_up_at()

    def _next_event(self, seconds: float) -> Optional[Event]:
        try:
            return self._context.events.get(timeout=min(seconds, LOOK_SECONDS))
        except queue.Empty:
            return None

    def _end(self, ending: Ending) -> PilotExit:
        """In order: no new job, running jobs end and are told, threads end, the server hears the last word."""
        context = self._context
        deadline = time.monotonic() + END_SECONDS
        context.stop.set(ending.error)
        if ending.error is not None:
            logger.info("the pilot has to end", extra={"reason": ending.reason})
            for job in context.jobs.all():
                with job.logged():
                    job.fail(ending.error)
            self._await_jobs(deadline)
        code = self._close(ending, deadline)
        report = context.cache.report() if context.cache is not None else None
        if report is not None:
            logger.info("inputs of the cache", extra=to_wire(report))
        logger.info("pilot ends", extra={"reason": ending.reason, "exit_code": code.value})
        _say_goodbye(context.client, context.pilot_id, code, ending.reason, report)
        self._join(time.monotonic() + JOIN_SECONDS)
        context.client.close()
        return code

    def _await_jobs(self, deadline: float) -> None:
        """Until each job has gone through its controls and the server has its end, or the time is over."""
        while self._context.jobs.all() and time.monotonic() < deadline:
            if not any(thread.is_alive() for thread in self._threads):
                break
            self._next_event(max(0.0, deadline - time.monotonic()))

    def _close(self, ending: Ending, deadline: float) -> PilotExit:
        context = self._context
        for job in context.jobs.all():
            job.kill_payload()
        self._reporter.last_words(LAST_WORD_SECONDS)
        for job in context.jobs.all():
            job.told.set()
        context.channels.close()
        context.watches.close()
        if context.collector is not None:
            context.collector.close()
        context.silence.set()
        self._reporter.close()
        left = [job for job in context.jobs.held() if job.has_ended]
        if left and ending.code in (PilotExit.DONE, PilotExit.NO_JOBS, PilotExit.UPDATE):
            return PilotExit.SERVER_UNREACHABLE
        return ending.code

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            logger.warning("controls that did not end in time are left", extra={"threads": ", ".join(stuck)})


@contextmanager
def _end_told(client: ServerClient, pilot_id: str) -> Iterator[None]:
    """What keeps a pilot that the server knows from its work is told to it; without that it would count as one that lives."""
    try:
        yield
    except PilotageError as error:
        _say_goodbye(client, pilot_id, _exit_for(error), str(error))
        raise


def _say_goodbye(
    client: ServerClient, pilot_id: str, code: PilotExit, reason: str, cache: Optional[CacheReport] = None
) -> None:
    with last_word():
        client.end_pilot(PilotEnd(pilot_id, int(code), reason, cache), LAST_WORD_SECONDS)


def _check_node(context: Context) -> None:
    """Before the first request for a job; raise NODE_UNFIT, with all that is wrong, for the operator and the server."""
    findings = fitness.examine(
        context.settings,
        context.node,
        context.directory.path,
        tools=context.tools,
        unusable_tools=context.unusable_tools,
        plugin=context.plugin,
        executor=context.executor,
        clock_skew=context.client.clock_skew,
    )
    fitness.log(findings)
    fitness.judge(findings)


# -- building ---------------------------------------------------------------------------------------------------------------


class Signals:
    """Turns signals that end a pilot into events. While `raised`, they also break into what the main thread is doing."""

    def __init__(self, events: queue.SimpleQueue[Event]) -> None:
        self._events = events
        self._breaks = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (*ALWAYS_HEARD, *HEARD_UNLESS_IGNORED):
            if number in ALWAYS_HEARD or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def raised(self) -> Iterator[None]:
        self._breaks = True
        try:
            yield
        finally:
            self._breaks = False

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        # A SimpleQueue may be written to from a signal handler; nothing else is done here, also at a second signal.
        self._events.put(Signalled(number))
        if self._breaks:
            self._breaks = False
            raise Interrupted(number)


@contextmanager
def _opened(place: Any) -> Iterator[Any]:
    place.open()
    try:
        yield place
    finally:
        place.close()


def _register(client: ServerClient, word: PilotRegistration, settings: Settings) -> QueueForPilot:
    """The pilot's first word, again and again while the server does not answer, until it is given up or the lifetime is over."""
    backoff = Backoff(
        settings.number("connection", "backoff_seconds"), settings.number("connection", "backoff_max_seconds")
    )
    seconds = min(
        settings.integer("connection", "give_up_seconds"), settings.integer("limits", "lifetime_seconds")
    )
    until = time.monotonic() + seconds
    return insist(lambda: client.register(word, until - time.monotonic()), backoff, seconds)


# -- how it ends ------------------------------------------------------------------------------------------------------------


def _signal_ending(number: int) -> Ending:
    detail = f"the pilot got {signal.Signals(number).name}"
    if number == signal.SIGINT:
        return Ending(PilotExit.INTERRUPTED, detail, PilotageError("PILOT_SIGINT", detail))
    name = "PILOT_SIGTERM" if number == signal.SIGTERM else "KILL_SIGNAL"
    return Ending(PilotExit.TERMINATED, detail, PilotageError(name, detail))


def _broken_ending(event: ThreadEnded) -> Ending:
    what = f"{type(event.error).__name__}: {event.error}" if event.error else "it ended"
    reason = f"the control {event.name} died: {what}"
    return Ending(PilotExit.BROKEN, reason, PilotageError("PILOT_EXCEPTION", reason))


def _lifetime_ending(asking: Asking) -> Ending:
    code = PilotExit.DONE if asking.obtained else PilotExit.NO_JOBS
    reason = "the pilot's lifetime is over"
    return Ending(code, reason, PilotageError("KILL_SIGNAL", f"{reason}; it gives the job back"))


_EXIT_BY_WHY = {
    Why.UNREACHABLE: PilotExit.SERVER_UNREACHABLE,
    Why.CREDENTIALS: PilotExit.NO_CREDENTIALS,
    Why.UNFIT: PilotExit.NODE_UNFIT,
    Why.REFUSED: PilotExit.BAD_SETTINGS,
    Why.UPDATED: PilotExit.UPDATE,
}


def _normal_ending(asking: Asking) -> Ending:
    why = asking.why or Why.STOPPED
    code = _EXIT_BY_WHY.get(why, PilotExit.DONE if asking.obtained else PilotExit.NO_JOBS)
    tells = (
        asking.detail and why is not Why.UPDATED and (why in _EXIT_BY_WHY or why in (Why.IDLE, Why.WALLTIME))
    )
    return Ending(code, f"{why.value}: {asking.detail}" if tells else why.value)


def _exit_for(error: PilotageError) -> PilotExit:
    """The exit code of a pilot that could not begin."""
    if error.name in CREDENTIALS:
        return PilotExit.NO_CREDENTIALS
    if error.name == "NODE_UNFIT":
        return PilotExit.NODE_UNFIT
    if is_passing(error):
        return PilotExit.SERVER_UNREACHABLE
    if error.name in (
        "BAD_SETTINGS",
        "BAD_REQUEST",
        "NOT_FOUND",
        "WRONG_STATE",
        "ALREADY_EXISTS",
        "UNKNOWN_COPYTOOL",
    ):
        return PilotExit.BAD_SETTINGS
    return PilotExit.FAILED
