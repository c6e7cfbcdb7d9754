"""Whether the replicas on the storages of this machine are as the catalogue says: `pilotage storage check`.

The audit asks whether outputs are right; this asks the same of every replica, also of files that users registered, storage by
storage, and compares what it finds with the state that the catalogue has of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import PilotageError
from protocol.files import local_path
from protocol.states import ReplicaState
from server.auditing.database_checks import Progress, ranges
from server.auditing.snapshot import Row, Snapshot
from server.auditing.storage_checks import Options, Suspects, Unseen, addresses, compare, sampler

BY_ADDRESS = ""
"""What stands for a storage where a user has registered an address that lies in none."""
PROBLEMS = ("lost-file", "wrong-size", "wrong-checksum")


@dataclass(frozen=True)
class Fault:
    """A replica that is not as registered."""

    storage: str
    check: str
    dataset: str
    lfn: str
    url: str
    words: str
    replica_id: int
    state: str
    """What the catalogue has of it until now."""
    n_good: int
    """Other replicas of the file that are good, as far as the catalogue knows."""

    @property
    def reason(self) -> str:
        return f"{self.check}: it{self.words}"


@dataclass
class Tally:
    """What came of the replicas of one storage."""

    name: str
    url: str
    n_replicas: int = 0
    n_compared: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROBLEMS, 0))
    unseen: str = ""
    """Why this host cannot look into it."""


@dataclass
class Report:
    tallies: dict[str, Tally]
    faults: list[Fault] = field(default_factory=list)
    right_again: list[tuple[int, str]] = field(default_factory=list)
    """Replicas, by number and address, that are not good in the catalogue and were found right, bytes and all."""
    not_looked_at: list[str] = field(default_factory=list)

    def pass_over(self, reason: str) -> None:
        """Say once what was not looked at; of a thousand such places the first are enough."""
        if reason not in self.not_looked_at and len(self.not_looked_at) < 100:
            self.not_looked_at.append(reason)


def look(snapshot: Snapshot, names: Sequence[str], options: Options, progress: Progress) -> Report:
    """Look at the replicas on the storages of these names, or everywhere; NOT_FOUND for a name that there is not."""
    report = Report(_tallies(snapshot, names, options))
    _Replicas(snapshot, report, options).look(progress)
    return report


def _tallies(snapshot: Snapshot, names: Sequence[str], options: Options) -> dict[str, Tally]:
    known = addresses(snapshot, names)
    tallies = {name: Tally(name, url) for name, url in known.items()}
    for tally in tallies.values():
        tally.unseen = _why_unseen(snapshot, tally, options.data_root)
    return tallies if names else {**tallies, BY_ADDRESS: Tally(BY_ADDRESS, "")}


def _why_unseen(snapshot: Snapshot, tally: Tally, data_root: str) -> str:
    """Why the storage cannot be looked into here, or "". All of its files are missing where it is only not mounted."""
    if not tally.url.startswith("file:"):
        return f"this host cannot look into {tally.url.partition(':')[0]}: addresses, only into file: ones"
    try:
        root = Path(local_path(tally.url, data_root))
        with os.scandir(root) as entries:
            is_empty = next(entries, None) is None
    except PilotageError as error:
        return error.detail
    except OSError as error:
        return f"{root}: {error.strerror}; is it mounted here?"
    used = """
        SELECT r.id FROM replica r WHERE r.storage_id = :name
            OR (r.storage_id IS NULL AND substr(r.url, 1, length(:url)) = :url) LIMIT 1
    """
    if is_empty and snapshot.one(used, name=tally.name, url=f"{tally.url}/"):
        return f"there is nothing at all in {root}; is it mounted here?"
    return ""


_FACTS = "r.id, r.url, r.state, r.storage_id AS storage, f.size, f.checksums"
_FROM = "FROM file f JOIN replica r ON r.file_id = f.id"
_FIRST = f"SELECT {_FACTS} {_FROM} WHERE f.state = 'available' AND f.id BETWEEN :low AND :high"
_AGAIN = f"""
    SELECT {_FACTS}, f.lfn, d.name AS dataset,
        (SELECT COUNT(*) FROM replica o WHERE o.file_id = f.id AND o.id <> r.id AND o.state = 'good') AS n_good
    {_FROM} JOIN dataset d ON d.id = f.dataset_id
    WHERE f.state = 'available' AND r.id IN :ids ORDER BY r.id
"""
"""With what is told of the few that are wrong."""


class _Replicas:
    def __init__(self, snapshot: Snapshot, report: Report, options: Options) -> None:
        self._snapshot, self._report, self._options = snapshot, report, options
        self._suspects: Suspects[int] = Suspects(snapshot, options.pause_seconds, self._again)
        self._read: set[int] = set()
        """Those among the suspects whose bytes were read at the first look."""
        self._longest_first = sorted(
            snapshot.rows("SELECT name, url FROM storage"), key=lambda row: -len(row["url"])
        )

    def look(self, progress: Progress) -> None:
        sql = "SELECT COUNT(*) AS n, COALESCE(SUM(size), 0) AS size FROM file WHERE state = 'available'"
        is_read = sampler(self._options, self._snapshot.one(sql) or {"n": 0, "size": 0})
        for low, high, _ in ranges(self._snapshot, "file", None, progress):
            for row in self._snapshot.rows(_FIRST, low=low, high=high):
                if tally := self._tally_of(row):
                    self._first(row, tally, is_read)
            self._suspects.settle_if_many()
        self._suspects.settle()

    def _tally_of(self, row: Row) -> Tally | None:
        """That of the storage on which it lies, if that is one to be looked at and this host can."""
        name = row["storage"]
        if name is None:
            inside = (
                each["name"] for each in self._longest_first if row["url"].startswith(f"{each['url']}/")
            )
            name = next(inside, BY_ADDRESS)
        tally = self._report.tallies.get(name)
        if tally is None or tally.unseen:
            return None
        if reason := self._why_not(row["url"], name):
            self._report.pass_over(reason)
            return None
        return tally

    def _why_not(self, url: str, storage: str) -> str:
        """Of a file outside of all storages it is not known where its mount begins."""
        if not url.startswith("file:"):
            return f"files at {url.partition(':')[0]}: addresses: this host cannot look there"
        if storage != BY_ADDRESS:
            return ""
        try:
            directory = Path(local_path(url, self._options.data_root)).parent
        except PilotageError as error:
            return error.detail
        return "" if directory.is_dir() else f"files in {directory}: there is no such directory here"

    def _first(self, row: Row, tally: Tally, is_sampled: Callable[[], bool]) -> None:
        # What was found wrong before is read in any case: it may be right again.
        is_read = is_sampled() or row["state"] != ReplicaState.GOOD.value
        tally.n_replicas += 1
        tally.n_compared += int(is_read)
        came = compare(row["url"], row["size"], row["checksums"], self._options.data_root, is_read)
        if isinstance(came, Unseen):
            self._report.pass_over(came.reason)
            tally.n_compared -= int(is_read)
        elif came is not None:
            self._suspects.note(row["id"])
            if is_read:
                self._read.add(row["id"])
        elif row["state"] != ReplicaState.GOOD.value:
            self._report.right_again.append((row["id"], row["url"]))

    def _again(self, ids: list[int]) -> None:
        """The second look: a server that runs changes the catalogue and the disk while one looks."""
        for row in self._snapshot.rows(_AGAIN, ids=ids):
            is_read = row["id"] in self._read
            self._read.discard(row["id"])
            came = compare(row["url"], row["size"], row["checksums"], self._options.data_root, is_read)
            tally = self._tally_of(row)
            if came is None or isinstance(came, Unseen) or tally is None:
                continue
            tally.faults[came.check] += 1
            facts = {name: row[name] for name in ("dataset", "lfn", "url", "state", "n_good")}
            self._report.faults.append(
                Fault(tally.name, came.check, words=came.words, replica_id=row["id"], **facts)
            )
