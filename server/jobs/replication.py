"""Jobs that copy files to another storage: what such a job writes is no new file, but a further replica of what it has read.

A pilot does with them as with any other job: inputs, a payload that copies them into its directory, outputs of the same names.
Each writes under its attempt's own name, and only the end of the job publishes that, so nothing is ever there twice. `Job.copies`
is 0 for them, and not NULL, so that no end of one is taken without a look at its outputs (see `copies`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from protocol.errors import PilotageError
from protocol.files import check_checksums
from protocol.messages.pilots import InputFile, OutputFile, OutputReport
from protocol.states import ReplicaState
from server.core import Core
from server.jobs.places import attempt_of, is_on_disk, physical_name
from server.models import Dataset, File, Garbage, Job, JobInput, Replica, Task, now
from server.recent import TaskFacts, storage_url


def outputs(core: Core, task: TaskFacts, inputs: Sequence[InputFile], attempt_id: int) -> list[OutputFile]:
    """What a job of such a task is to write."""
    target = storage_url(core.recent, task.spec.replicate_to)
    return [
        OutputFile(
            file.lfn,
            file.scope,
            file.dataset,
            physical_name(target, file.dataset, file.lfn, attempt_id),
            storage=target,
        )
        for file in inputs
    ]


def target_of(job_id: int) -> str:
    """The storage to which this job copies; "" for any other job."""
    row = Task.select(Task.target_storage).join(Job).where(Job.id == job_id).first()
    return (row.target_storage or "") if row is not None else ""


def files_of(core: Core, job_id: int) -> list[File]:
    """What a job reads, by number; locked: of two tasks that copy a file to the same storage one is the first."""
    of_job = JobInput.select(JobInput.file).where(JobInput.job == job_id)
    query = File.select(File, Dataset).join(Dataset).where(File.id.in_(of_job)).order_by(File.id)
    return list(core.database.locked(query, File))


def publish(
    core: Core, attempt_id: int, target: str, files: Sequence[File], reports: Sequence[OutputReport]
) -> None:
    """The copies become replicas; inside `Database.write`, with the attempt taken. One for each of the files is there.

    A copy in vain, since there is a good one by now, is the sweeper's to remove, and so is a bad one in whose place this comes.
    """
    url = storage_url(core.recent, target)
    reported = {report.lfn: report for report in reports}
    there: dict[int, list[Replica]] = {file.id: [] for file in files}
    for replica in Replica.select().where(Replica.file.in_(list(there)), Replica.storage == target):
        there[replica.file_id].append(replica)
    for file in files:
        is_proven = _check_same(file, reported[file.lfn])
        copy = physical_name(url, file.dataset.name, file.lfn, attempt_id)
        old = there[file.id]
        if any(replica.state == ReplicaState.GOOD.value for replica in old):
            _leave(attempt_id, copy)
            continue
        if old and not is_proven:
            raise PilotageError(
                "BAD_REQUEST",
                f"outputs: no checksum says that the copy of {file.lfn} is that file; {old[0].url} stays in its place",
            )
        for replica in old:
            _leave(attempt_of(replica.url), replica.url)
            replica.delete_instance()
        Replica.create(file=file.id, storage=target, url=copy, created=now())


def _check_same(file: File, report: OutputReport) -> bool:
    """BAD_REQUEST unless the copy has the size and the checksums that are registered; whether one of these was known of both."""
    registered, found = json.loads(file.checksums), check_checksums(report.checksums)
    compared = registered.keys() & found.keys()
    wrong = [name for name in compared if registered[name] != found[name]]
    if report.size != file.size or wrong:
        what = f"{wrong[0]} {found[wrong[0]]}" if wrong else f"{report.size} bytes"
        raise PilotageError(
            "BAD_REQUEST", f"outputs: the copy of {file.lfn} has {what}; that is another file"
        )
    return bool(compared)


def _leave(attempt_id: int, url: str) -> None:
    """The sweeper removes it, if it can; one without an attempt's number was written by nobody of ours."""
    if attempt_id and is_on_disk(url):
        Garbage.create(attempt_id=attempt_id, url=url, due=now())
