"""What an audit looks for: the table of checks, a finding, and the count of them.

The table is the documentation too: docs/audit.md is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SUBJECTS = ("task", "job", "attempt", "pilot", "dataset", "file", "storage", "path")
"""What a finding may be about."""


@dataclass(frozen=True)
class Check:
    """One thing that is true of every sound installation."""

    name: str
    over: str
    """What is looked at and counted, in the plural."""
    holds: str
    advice: str
    is_note: bool = False
    """What it finds is to be known, and no damage."""


_CALL = "report it with this output, for nothing that the server does leads there"
AGAIN = (
    "restore the file from a backup of its storage, or make it again: submit a task over the inputs of the job that made it"
    " ('pilotage job show ID')"
)
_VERDICT = f"{_CALL}; the history of the job is in 'pilotage job show ID'"

# fmt: off
CHECKS: dict[str, Check] = {check.name: check for check in (
    Check("job-numbers", "tasks",
          "the jobs of a task are as many as it has formed, with the numbers from 1 on, without gap or twin",
          f"{_CALL}; jobs were lost or made twice: put back a backup from before, or submit the task's missing files again"),
    Check("job-inputs", "tasks",
          "each file that a task has come past in its input dataset is read by exactly one of its jobs, unless it is where the task copies it",
          "submit a task over the files that were passed over, and report it with this output"),
    Check("counters", "tasks",
          "a task's numbers of completed, failed and cancelled jobs and of their attempts are those of its jobs",
          f"{_CALL}; the jobs are right, what is shown of the task is not"),
    Check("job-state", "jobs",
          "each job is in one of the states; those that have ended, and no others, have the time of their end",
          _CALL),
    Check("verdict", "jobs",
          "a job that failed or was cancelled says why, and one that completed has no error",
          _VERDICT),
    Check("queued", "jobs",
          "READY jobs, and no others, wait in the queue or for the end of a pause",
          f"cancel the job if it is READY and its task must end ('pilotage task cancel NAME'); {_CALL}"),
    Check("held", "jobs",
          "a job that a pilot holds has a live attempt, in the same state",
          f"cancel its task if it must end ('pilotage task cancel NAME'); {_CALL}"),
    Check("ended-task", "jobs",
          "no job is open when its task has ended",
          _CALL),
    Check("one-attempt", "attempts",
          "only the last attempt of a job may live, of one with copies several, and none does when the job has ended",
          _VERDICT),
    Check("attempt-numbers", "jobs",
          "the attempts of a job have the numbers from 1 on, without gap or twin, and the job knows the last one, of several copies the one that leads",
          _VERDICT),
    Check("completed-attempt", "jobs",
          "exactly one attempt of a job that completed has, the one that it names, and none of any other job",
          _VERDICT),
    Check("history", "attempts",
          "the times of an attempt lead to its state, and none comes after it",
          _VERDICT),
    Check("lease", "attempts",
          "a job is held by a pilot that there is, and given back when the lease has run out",
          "is the server running? 'pilotage server status'; its reaper gives such jobs back within seconds"),
    Check("ended-pilot", "attempts",
          "the pilot that holds a job has not ended",
          "nothing: when the lease has run out, another pilot gets the job", is_note=True),
    Check("outputs", "jobs",
          "a job that completed has exactly the outputs that its task declares, all of them available",
          "submit a task over the job's inputs again ('pilotage job show ID'), and report it with this output"),
    Check("published", "files",
          "a file that a job made is in the catalogue only if that job completed",
          f"do not use the file; {_CALL}"),
    Check("replicas", "files",
          "each available file has a place where it lies, one that a job made one on a storage at most, and a declared one has none",
          _CALL),
    Check("attempt-in-name", "files",
          "the physical name of an output carries the attempt that completed, but on storages to which it was copied since",
          f"compare its checksum before you use it; {_CALL}"),
    Check("output-dataset", "datasets",
          "the output dataset of a task is open until the task has ended, and closed from then on",
          _CALL),
    Check("dataset-size", "datasets",
          "a dataset's numbers of files and bytes are those of its files",
          f"{_CALL}; the files are right, what is shown of the dataset is not"),
    Check("closed-dataset", "files",
          "a closed dataset holds no file that is only declared",
          f"do not start a task over that dataset; {_CALL}"),
    Check("lost-storage", "storages",
          "the directory of a storage with outputs is there",
          "mount it on this machine and look again, or look at the database alone: --no-storage"),
    Check("lost-file", "files",
          "each output of the catalogue is a plain file on its storage",
          AGAIN),
    Check("wrong-size", "files",
          "its size is the registered one",
          f"the storage has cut it or somebody has changed it: {AGAIN}"),
    Check("wrong-checksum", "files",
          "its bytes have the registered checksum",
          f"the storage has damaged it or somebody has changed it: {AGAIN}"),
    Check("orphan", "files on disk",
          "each file on a storage is an output or a log of an attempt, or registered by its address",
          "if it is somebody else's, give storages a directory of their own; if not, nothing refers to it: "
          "'pilotage db reconcile' says where it comes from, and with --quarantine DIR moves it away"),
    Check("garbage", "files on disk",
          "no file was left behind by an attempt that failed or was cancelled",
          "nothing: nothing refers to it, and the server removes it a while after its job went into the archive", is_note=True),
)}
# fmt: on


@dataclass(frozen=True)
class Finding:
    """A place where a check does not hold; `subject` names what it is about."""

    check: str
    sentence: str
    subject: dict[str, Any]

    @property
    def is_note(self) -> bool:
        return CHECKS[self.check].is_note


def finding(check: str, sentence: str, facts: dict[str, Any]) -> Finding:
    """A finding whose sentence is a template, and whose subject is picked out of the same facts."""
    subject = {name: facts[name] for name in SUBJECTS if facts.get(name) is not None}
    return Finding(check, sentence.format_map(facts), subject)


@dataclass
class Tally:
    """What came of one check: how much was looked at, how many findings, and the first of them."""

    looked_at: int = 0
    n_findings: int = 0
    shown: list[Finding] = field(default_factory=list)


@dataclass
class Report:
    """What came of an audit. Only the first `limit` findings of each check are kept (0: all), all are counted."""

    limit: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    not_looked_at: list[str] = field(default_factory=list)

    def looked(self, check: str, n: int) -> None:
        self.tallies.setdefault(check, Tally()).looked_at += n

    def add(self, found: Finding) -> None:
        tally = self.tallies.setdefault(found.check, Tally())
        tally.n_findings += 1
        if not self.limit or len(tally.shown) < self.limit:
            tally.shown.append(found)

    def pass_over(self, reason: str) -> None:
        """Say once what was not looked at; of a thousand such places the first are enough."""
        if reason not in self.not_looked_at and len(self.not_looked_at) < 100:
            self.not_looked_at.append(reason)

    @property
    def n_findings(self) -> int:
        """Without what is only to be known."""
        return sum(tally.n_findings for name, tally in self.tallies.items() if not CHECKS[name].is_note)

    @property
    def n_outputs(self) -> int:
        """Outputs that were looked for on the storages."""
        return self.tallies["lost-file"].looked_at if "lost-file" in self.tallies else 0

    @property
    def n_compared(self) -> int:
        """Those of them whose bytes were compared with their checksums."""
        return self.tallies["wrong-checksum"].looked_at if "wrong-checksum" in self.tallies else 0

    @property
    def findings(self) -> list[Finding]:
        """Those that were kept, in the order of the checks."""
        return [found for name in CHECKS if name in self.tallies for found in self.tallies[name].shown]
