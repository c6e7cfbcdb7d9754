"""The job monitor: one thread looks now and then at all payloads that run, keeps their numbers, and ends those that have to end."""

from __future__ import annotations

import logging
import math
import os
import threading
import time

from pilot.context import Context
from pilot.plugins.monitors import Look, Monitors, Payload
from pilot.watching import Watch
from protocol.errors import PilotageError
from protocol.logs import bound

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""After SIGKILL, for what was born at that very moment."""
DIAGNOSIS = "payload.diagnosis"


def watch_payloads(context: Context) -> None:
    """The control. If it dies, so do all payloads, which nobody watches now, and the pilot."""
    watches = context.watches
    context.stop.then(watches.wake)  # what was told to end may have less time now
    try:
        while due := watches.due():
            for watch in due:
                with bound(**watch.fields):
                    _attend(context, watch)
    except Exception as error:
        watches.close()
        for watch in watches.all():
            with bound(**watch.fields):
                _leave_alone(context, watch, error)
        raise


def _leave_alone(context: Context, watch: Watch, error: Exception) -> None:
    watch.job.fail(PilotageError("PILOT_EXCEPTION", f"job monitor: {type(error).__name__}: {error}"))
    ending = threading.Thread(
        target=watch.process.terminate,
        args=(context.grace_seconds(),),
        name=f"end-{watch.job.spec.attempt_id}",
    )
    ending.start()


def _attend(context: Context, watch: Watch) -> None:
    if watch.job.over.is_set():
        _end(context, watch)
        return
    with watch.looking:
        if not watch.is_left:
            _look(context, watch)


def _look(context: Context, watch: Watch) -> None:
    if watch.monitors is None:
        watch.monitors = _monitors(context, watch)
    _give_back(context, watch)
    look = Look(watch.monitors.payload)
    watches = context.watches
    watches.publish(watch, watch.monitors.sample(look, context.plugin.job_metrics(watch.job)))
    verdict = watch.monitors.verdict(look)
    if watch.process.ended.is_set():
        watch.due = math.inf  # it leaves in a moment; what was seen of it may be somebody else's
    elif verdict is None:
        period = context.settings.number("limits", "sample_seconds")
        watch.due = look.at + watch.monitors.seconds_to_next(look, period)
    elif watch.monitors.can_explain:
        watch.due = math.inf
        _explain_and_fail(context, watch, watch.monitors, look, verdict)
    else:
        watch.job.fail(verdict)  # ended at the next turn, which is now


def _give_back(context: Context, watch: Watch) -> None:
    """Jobs that were claimed for the second in which they would have begun, behind a payload that takes longer."""
    if not watch.job.lasts:
        return
    for job in context.jobs.behind(watch.job, context.settings.integer("get_job", "stage_ahead")):
        with job.logged():
            detail = f"it waited behind job {watch.job.spec.job_id}, whose payload takes longer than a second"
            job.fail(PilotageError("GIVEN_BACK", detail), logging.INFO)


def _monitors(context: Context, watch: Watch) -> Monitors:
    slots = context.settings.integer("node_settings", "slots")
    payload = Payload(
        job=watch.job,
        process=watch.process,
        settings=context.of(watch.job).settings,
        environ=context.environ,
        share=context.node.share(watch.job.slot, slots),
        isolated=context.isolates,
        is_step=watch.is_step,
    )
    return Monitors(context.monitors, payload)


def _end(context: Context, watch: Watch) -> None:
    """SIGTERM, and SIGKILL to what is left after the grace; in between the others are looked at."""
    now, grace = time.monotonic(), context.grace_seconds()
    if watch.told_to_end_at is None:
        logger.info("payload is told to end", extra={"grace_seconds": grace})
        watch.told_to_end_at = now
        watch.process.tell_to_end(grace)
        watch.due = now + grace
    elif now < watch.told_to_end_at + grace:
        watch.due = watch.told_to_end_at + grace
    else:
        watch.process.kill()
        watch.due = now + AGAIN_SECONDS


def _explain_and_fail(
    context: Context, watch: Watch, monitors: Monitors, look: Look, verdict: PilotageError
) -> None:
    """What a debugger says takes its time: the others are looked at meanwhile."""

    def work() -> None:
        with bound(**watch.fields):
            try:
                _keep(watch, context.secrets.hide(monitors.explanation(look)))
            except Exception as error:
                context.thread_ended(threading.current_thread().name, error)
                logger.exception("a monitor died")
            finally:
                watch.job.fail(verdict)

    threading.Thread(target=work, name=f"explain-{watch.job.spec.attempt_id}").start()


def _keep(watch: Watch, text: str) -> None:
    """For the log archive, in the job's directory; the payload may have put anything there."""
    path = watch.job.directory / DIAGNOSIS
    try:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        logger.warning("what the payload does cannot be kept", extra={"reason": str(error)})
        return
    watch.job.step_texts.append(path)
    logger.warning("the payload was looked into before its end", extra={"file": path.name})
