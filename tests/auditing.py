"""The standing checker as the end of a test: nothing is lost, twice, or without an owner, in the database and on the disk.

assert_clean(url)                              # of a database; or the state directory of a server, running or not
assert_clean(server.installation, task="t")    # of a RunningServer, on whichever database
"""

from __future__ import annotations

from pathlib import Path

from server.audit import Options, audit
from server.auditing.findings import Report
from server.auditing.storage_checks import Options as StorageOptions

PAUSE_SECONDS = 0.5
"""Between the two looks at what seems wrong on a disk."""


def look(
    installation: str | Path,
    *,
    task: str = "",
    storages: bool = True,
    data_root: str = "",
    grace_seconds: float = 3600.0,
) -> Report:
    """Audit an installation, by the URL of its database or by its state directory; every file is read, every finding kept."""
    url = (
        f"sqlite:///{installation.absolute()}/pilotage.db" if isinstance(installation, Path) else installation
    )
    thorough = StorageOptions(None, data_root, grace_seconds, PAUSE_SECONDS)
    return audit(url, Options(task=task, storages=thorough if storages else None, limit=0))


def assert_clean(
    installation: str | Path,
    *,
    task: str = "",
    storages: bool = True,
    data_root: str = "",
    grace_seconds: float = 3600.0,
) -> Report:
    """The same, and fail with a sentence for each finding; garbage of attempts that failed lately is none."""
    report = look(
        installation, task=task, storages=storages, data_root=data_root, grace_seconds=grace_seconds
    )
    found = [f"{each.check}: {each.sentence}" for each in report.findings if not each.is_note]
    assert not found, "the audit found:\n" + "\n".join(found)
    return report
