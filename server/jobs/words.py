"""What pilots say about their attempts: moves, outcomes, outputs. A word is taken once, from the attempt's holder, or not at all.

Each word is checked by itself, then taken by one conditional statement that looks at token, `seq` and state together
(`statements.move`); several words with the same moves share it. Only a word that was not taken is looked into: it was a
repeat, brings the log of an attempt that has ended, or is refused with the reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocol.errors import BY_NAME, ErrorEntry, PilotageError, shorten
from protocol.files import check_checksums
from protocol.messages.pilots import AttemptUpdate, LogReport, OutputReport, UpdateReply
from protocol.states import HELD, PILOT_OWNED, JobState
from server import replicas
from server.access import tokens
from server.brokerage import nodes
from server.core import Core
from server.jobs import benchmarks, copies, moves, replication, retrying, statements
from server.jobs.claiming import outputs_of
from server.jobs.moves import TAKEN_AWAY, is_taken, reply
from server.jobs.places import physical_name
from server.jobs.statements import MOVED
from server.models import STATE_TIMES, Attempt, now
from server.recent import storage_url

PILOT_MAY_REPORT = {state.value: state for state in (*PILOT_OWNED, JobState.COMPLETED, JobState.FAILED)}
NOT_TRIED = ("NOT_SUPPORTED", "GIVEN_BACK")
"""Errors that say nothing about the node: another pilot there may do the job."""
_RANK = {state: rank for rank, state in enumerate(PILOT_MAY_REPORT.values())}


@dataclass(frozen=True)
class Word:
    """A word of a pilot whose shape is right and whose token this server has given out."""

    said: AttemptUpdate
    nonce: str
    states: tuple[JobState, ...]

    @property
    def target(self) -> JobState | None:
        return self.states[-1] if self.states else None

    @property
    def is_plain(self) -> bool:
        """Whether taking it is one statement: no outputs to be published, no verdict on a failed job, nothing to be kept."""
        said = self.said
        return self.target is not JobState.FAILED and not said.outputs and said.benchmark is None

    @property
    def is_brief(self) -> bool:
        said = self.said
        return said.exit_code is None and not said.error and said.metrics is None and said.log is None


def update(core: Core, said: AttemptUpdate) -> UpdateReply:
    """Take one word about an attempt; STALE_ATTEMPT, and nothing changed, if the attempt is not the sender's any more."""
    answer = update_all(core, [said])[0]
    if isinstance(answer, PilotageError):
        raise answer
    return answer


def update_all(core: Core, said: Sequence[AttemptUpdate]) -> list[UpdateReply | PilotageError]:
    """Take several words, at most one about each attempt; each is taken or refused by itself."""
    check_once(said)
    answers: dict[int, UpdateReply | PilotageError] = {}
    plain: dict[tuple[tuple[JobState, ...], bool], list[Word]] = {}
    single: list[Word] = []
    for each in said:
        try:
            word = _checked(core, each)
        except PilotageError as error:
            answers[each.attempt_id] = error
            continue
        if word.is_plain:
            plain.setdefault((word.states, word.is_brief), []).append(word)
        else:
            single.append(word)
    with core.database.reading():
        for words in plain.values():
            answers |= _take_plain(core, words)
        for word in single:
            answers[word.said.attempt_id] = _take_in_transaction(core, word)
    return [answers[word.attempt_id] for word in said]


def check_once(said: Sequence[AttemptUpdate]) -> None:
    """BAD_REQUEST for two words about one attempt: which of them is the later one?"""
    if len({word.attempt_id for word in said}) != len(said):
        raise PilotageError(
            "BAD_REQUEST", "updates: there are two words about one attempt; send them one after the other"
        )


def _take_in_transaction(core: Core, word: Word) -> UpdateReply | PilotageError:
    try:
        answer, job_id = core.database.write(lambda: _take_single(core, word))
    except PilotageError as error:
        return error
    if word.target is JobState.FAILED and job_id is not None:
        moves.tell_ready(core, [job_id])
    return answer


# -- checking ---------------------------------------------------------------------------------------------------------------


def _checked(core: Core, said: AttemptUpdate) -> Word:
    """The word, or the error for which it is refused whatever the state of its attempt."""
    nonce = tokens.nonce_in(core.key, said.attempt_id, said.attempt_token)
    if nonce is None:
        raise PilotageError("STALE_ATTEMPT", f"attempt {said.attempt_id}: there is none with this token")
    states = tuple(_state(move.state) for move in said.moves)
    if any(_RANK[later] <= _RANK[earlier] for earlier, later in itertools.pairwise(states)):
        raise PilotageError(
            "BAD_REQUEST",
            f"moves: {', '.join(state.value for state in states)} are not in the order of the states",
        )
    last = states[-1] if states else None
    if said.error and last is not JobState.FAILED:
        raise PilotageError("BAD_REQUEST", "error: only with a move to FAILED as the last one")
    if said.error in TAKEN_AWAY:
        raise PilotageError("BAD_REQUEST", f"error: {said.error} is for the server to say")
    if last is JobState.FAILED and not said.error:
        raise PilotageError("BAD_REQUEST", "error: FAILED needs the name of an error of the catalogue")
    if said.outputs is not None and last is not JobState.COMPLETED:
        raise PilotageError("BAD_REQUEST", "outputs: only with a move to COMPLETED as the last one")
    moves.check_metrics(said.metrics)
    benchmarks.check(said.benchmark)
    if said.log is not None:
        check_checksums(said.log.checksums)
    for report in said.outputs or ():
        check_checksums(report.checksums)
    return Word(said, nonce, states)


def _state(name: str) -> JobState:
    state = PILOT_MAY_REPORT.get(name)
    if state is None:
        raise PilotageError(
            "BAD_REQUEST",
            f"moves: {name[:40]!a} is no state that a pilot reports; those are {', '.join(PILOT_MAY_REPORT)}",
        )
    return state


# -- taking -----------------------------------------------------------------------------------------------------------------


def _take_plain(core: Core, words: Sequence[Word]) -> dict[int, UpdateReply | PilotageError]:
    """Words with the same moves, by one statement; those that were not taken are looked into."""
    moved = core.database.write(lambda: _move(core, words), atomic=False)
    answers: dict[int, UpdateReply | PilotageError] = {row[0]: UpdateReply(row[0], row[3]) for row in moved}
    for word in words:
        if word.said.attempt_id not in answers:
            answers[word.said.attempt_id] = _look_into(core, word)
    return answers


def _look_into(core: Core, word: Word) -> UpdateReply | PilotageError:
    """A plain word that was not taken with others; an end may be that of one of several copies."""
    if word.target is JobState.COMPLETED:
        return _take_in_transaction(core, word)
    try:
        return _not_taken(core, word)
    except PilotageError as error:
        return error


def _take_single(core: Core, word: Word) -> tuple[UpdateReply, int | None]:
    """A word that ends an attempt with outputs or with a failure, and its job if it was taken; inside `Database.write`."""
    moved, copied = _move(core, [word]), None
    if not moved and (copied := copies.locked(core, word.said.attempt_id)) is not None:
        moved = _move(core, [word], copy=True)
    if not moved:
        return _not_taken(core, word), None
    row = dict(zip(MOVED, moved[0], strict=True))
    if word.said.benchmark is not None:
        benchmarks.keep(row["id"], row["job_id"], row["pilot_id"], word.said.benchmark)
    if word.target is JobState.COMPLETED:
        _publish(core, row, word.said.outputs or [])
        if copied is not None:
            copies.win(copied, row["id"])
    elif word.target is JobState.FAILED:
        entry = _entry(word.said.error)
        elsewhere = _condemn(row, word.said)
        if copied is None or not copies.goes_on(copied, without=row["id"]):
            retrying.end_failed(core, row, word.said, entry, other_replica=elsewhere)
        if entry.name not in NOT_TRIED:
            seconds = now() - row["extracted_at"]
            nodes.note_failure(core, row["id"], row["queue"], row["node"], seconds, entry.suspect)
    return UpdateReply(row["id"], row["state"]), row["job_id"]


def _move(core: Core, words: Sequence[Word], *, copy: bool = False) -> list[Any]:
    """Take what can be taken of words with the same moves; the rows of statements.MOVED."""
    first = words[0]
    full = not first.is_brief
    chain = statements.move(first.states, full=full, outputs=bool(first.said.outputs), copy=copy)
    # In the order of a heartbeat: or on Postgres the two may wait for each other's attempts.
    rows = [_row(word, full) for word in sorted(words, key=lambda word: word.said.attempt_id)]
    return core.database.run(chain, words=rows, now=now())


def _row(word: Word, full: bool) -> list[Any]:
    said = word.said
    times = [move.at for move, state in zip(said.moves, word.states, strict=True) if state in STATE_TIMES]
    row = [said.attempt_id, word.nonce, said.seq, *times]
    if full:
        row += [
            said.exit_code,
            _entry(said.error).name if said.error else None,
            shorten(said.error_detail) if said.error else None,
            json.dumps(said.metrics) if said.metrics is not None else None,
            *_log_columns(said.log),
        ]
    return row


def _log_columns(log: LogReport | None) -> tuple[int | None, str | None]:
    return (log.size, json.dumps(check_checksums(log.checksums))) if log else (None, None)


def _entry(name: str) -> ErrorEntry:
    return BY_NAME.get(name, BY_NAME["GENERAL_ERROR"])


def _not_taken(core: Core, word: Word) -> UpdateReply:
    """Why a word was not taken: a repeat gets its answer again, a late log is added, anything else is refused."""
    said = word.said
    attempt = Attempt.get_or_none(Attempt.id == said.attempt_id, Attempt.nonce == word.nonce)
    if attempt is None or is_taken(attempt):
        why = attempt.error if attempt else "there is none with this token"
        raise PilotageError("STALE_ATTEMPT", f"attempt {said.attempt_id}: {why}")
    if said.seq <= attempt.seq:
        return reply(attempt)
    if attempt.ended_at is not None:
        return _add_log(core, attempt, word)
    if word.target is JobState.COMPLETED and JobState(attempt.state) in HELD and not said.outputs:
        _refuse_outputs(_declared(core, attempt.job_id).keys(), set(), 0)
    wanted = word.target.value if word.target else "this word"
    raise PilotageError(
        "WRONG_STATE", f"attempt {attempt.id} is in {attempt.state}; {wanted} does not follow from there"
    )


def _add_log(core: Core, attempt: Attempt, word: Word) -> UpdateReply:
    """An attempt that its pilot has ended changes no more; the pilot may still add the log archive, once."""
    size, checksums = _log_columns(word.said.log)

    def work() -> int:
        return int(
            Attempt.update(seq=word.said.seq, log_size=size, log_checksums=checksums)
            .where(Attempt.id == attempt.id, Attempt.seq < word.said.seq, Attempt.log_size.is_null())
            .execute()
        )

    if word.states or size is None or not core.database.write(work):
        raise PilotageError("STALE_ATTEMPT", f"attempt {attempt.id} has ended as {attempt.state}")
    return reply(attempt)


def _condemn(row: dict[str, Any], said: AttemptUpdate) -> bool:
    """Note against a replica that it was not as registered; whether its file has another one that is good."""
    if not said.input_url or said.error not in replicas.AGAINST_IT:
        return False
    where = f"attempt {row['id']} of job {row['job_id']} on node {row['node']}"
    return replicas.suspect(row["job_id"], said.input_url, f"{said.error}: {said.error_detail} ({where})")


# -- ends -------------------------------------------------------------------------------------------------------------------


def _publish(core: Core, row: dict[str, Any], reports: Sequence[OutputReport]) -> None:
    """The outputs: the declared names, all of them and no others, become available where this attempt wrote them."""
    declared = _declared(core, row["job_id"])
    reported = {report.lfn: report for report in reports}
    if not declared and (target := replication.target_of(row["job_id"])):
        files = replication.files_of(core, row["job_id"])
        _refuse_outputs({file.lfn for file in files}, reported.keys(), len(reports) - len(reported))
        replication.publish(core, row["id"], target, files, reports)
        return
    _refuse_outputs(declared.keys(), reported.keys(), len(reports) - len(reported))
    storage = storage_url(core.recent, row["storage_id"])
    outputs = []
    for lfn, report in reported.items():
        file_id, dataset = declared[lfn]
        checksums = json.dumps(check_checksums(report.checksums))
        url = physical_name(storage, dataset, lfn, row["id"])
        outputs.append((file_id, report.size, checksums, row["storage_id"], url))
    core.database.run(statements.PUBLISH, outputs=outputs, now=now())


def _declared(core: Core, job_id: int) -> dict[str, tuple[int, str]]:
    return outputs_of(core, [job_id]).get(job_id, {})


def _refuse_outputs(declared: Any, reported: Any, n_twice: int) -> None:
    """BAD_REQUEST unless each declared output is reported once and no other."""
    if n_twice or declared != reported:
        missing, extra = sorted(declared - reported), sorted(reported - declared)
        raise PilotageError(
            "BAD_REQUEST",
            f"outputs: COMPLETED needs each declared output once; missing: {missing[:5]}, not declared: {extra[:5]}",
        )
