"""Put files into datasets, many at a time: what may be registered, what is there already, and the rows themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import PilotageError
from protocol.files import check_checksums, check_lfn
from protocol.messages.requests import FileSpec
from server.core import Core
from server.database import Chain, Part, Rows
from server.models import Dataset, File, Replica, now
from server.urls import check_url

MEBIBYTE = 2**20

TAKEN = Chain(
    Rows("names", {"lfn": "text"}),
    Part(
        "taken",
        """SELECT lfn, id FROM (
               SELECT lfn, (SELECT file.id FROM file WHERE file.scope = :scope AND file.lfn = names.lfn) AS id FROM names
           ) AS each_name WHERE id IS NOT NULL""",
        {"lfn": "text", "id": "bigint"},
    ),
    result="taken",
    bulk=True,
)
"""Names that a scope has: looked up one by one, in the index, whatever a planner knows of so many new rows."""

ADD_FILES = Chain(
    Rows("new", {"position": "integer", "lfn": "text", "size": "bigint", "checksums": "text"}),
    Part(
        "added",
        """INSERT INTO file (dataset_id, scope, lfn, state, size, checksums, created)
           SELECT CAST(:dataset AS bigint), CAST(:scope AS text), lfn, 'available', size, checksums,
               CAST(:now AS double precision)
           FROM new ORDER BY position
           RETURNING id, lfn""",
        {"id": "bigint", "lfn": "text"},
    ),
    result="added",
    bulk=True,
)

ADD_REPLICAS = Chain(
    Rows("places", {"file_id": "bigint", "url": "text"}),
    Part(
        "placed",
        """INSERT INTO replica (file_id, url, created)
           SELECT file_id, url, CAST(:now AS double precision) FROM places ORDER BY file_id
           RETURNING id""",
        {},
    ),
    result="placed",
    bulk=True,
)


@dataclass(frozen=True)
class Facts:
    """What the catalogue keeps of a file, as it keeps it."""

    size: int
    checksums: Mapping[str, str]
    url: str

    def difference(self, other: Facts) -> str | None:
        """In which way this is another file; one may have checksums of kinds that the other has not."""
        if self.size != other.size:
            return f"{self.size} bytes"
        for name in self.checksums.keys() & other.checksums.keys():
            if self.checksums[name] != other.checksums[name]:
                return f"the {name} {self.checksums[name]}"
        return f"the address {self.url[:200]}" if self.url != other.url else None


def facts_of(core: Core, file: FileSpec) -> Facts:
    """BAD_LFN, BAD_PATH and their like for a file that cannot be registered."""
    check_lfn(file.lfn)
    check_url(file.url, core.limits.url_schemes, core.limits.allowed_paths)
    return Facts(file.size, check_checksums(file.checksums), file.url)


def all_new(core: Core, files: Sequence[FileSpec]) -> dict[str, Facts]:
    """Facts by name of files that must not be there yet; the error names the first that is wrong."""
    found: dict[str, Facts] = {}
    for index, file in enumerate(files):
        try:
            facts = facts_of(core, file)
        except PilotageError as error:
            raise PilotageError(error.name, f"files[{index}]: {error.detail}") from None
        if file.lfn in found:
            raise PilotageError("ALREADY_EXISTS", f"files[{index}]: {file.lfn!a} is there twice")
        found[file.lfn] = facts
    return found


def taken(core: Core, scope: str, lfns: Sequence[str]) -> dict[str, int]:
    """The files of a scope that have one of these names: their ids."""
    return dict(core.database.run(TAKEN, names=[(lfn,) for lfn in lfns], scope=scope))


def refuse_taken(core: Core, scope: str, lfns: Sequence[str]) -> None:
    """ALREADY_EXISTS if one of these names is there."""
    for lfn in taken(core, scope, lfns):
        raise PilotageError("ALREADY_EXISTS", f"scope {scope} has a file {lfn!a} already")


def missing(core: Core, dataset: Dataset, files: Mapping[str, Facts]) -> dict[str, Facts]:
    """Those of these files that the dataset lacks; ALREADY_EXISTS if a name belongs to another file."""
    lacking = dict(files)
    there = taken(core, dataset.scope, list(files))
    if not there:
        return lacking
    ids = list(there.values())
    replicas = (
        Replica.select(Replica.file, Replica.url).where(Replica.file.in_(ids)).order_by(Replica.id.desc())
    )
    urls = dict(replicas.tuples())  # the first one of each file comes last
    for file in File.select().where(File.id.in_(ids)):
        if file.dataset_id != dataset.id:
            raise PilotageError(
                "ALREADY_EXISTS", f"scope {dataset.scope} has a file {file.lfn!a} in another dataset already"
            )
        known = Facts(file.size, json.loads(file.checksums), urls.get(file.id, ""))
        difference = known.difference(lacking.pop(file.lfn))
        if difference:
            raise PilotageError(
                "ALREADY_EXISTS", f"dataset {dataset.name} has a file {file.lfn!a} already, with {difference}"
            )
    return lacking


def insert(core: Core, dataset: Dataset, files: Mapping[str, Facts]) -> None:
    """Inside `Database.write`, with the dataset's row locked."""
    if not files:
        return
    moment = now()
    rows = [
        (position, lfn, facts.size, json.dumps(facts.checksums))
        for position, (lfn, facts) in enumerate(files.items())
    ]
    added = core.database.run(ADD_FILES, new=rows, dataset=dataset.id, scope=dataset.scope, now=moment)
    places = [(file_id, files[lfn].url) for file_id, lfn in added]
    core.database.run(ADD_REPLICAS, places=places, now=moment)
    sizes = [facts.size for facts in files.values()]
    Dataset.update(
        n_files=Dataset.n_files + len(sizes),
        mebibytes=Dataset.mebibytes + sum(size // MEBIBYTE for size in sizes),
        bytes_more=Dataset.bytes_more + sum(size % MEBIBYTE for size in sizes),
    ).where(Dataset.id == dataset.id).execute()
