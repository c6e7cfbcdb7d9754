"""Accounts of the node that payloads run as, one for each slot, where the pilot is root and its queue names some.

Such a payload can read nothing of the pilot, signal neither it nor a payload of another slot, and write where its account may.
"""

from __future__ import annotations

import functools
import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from protocol.errors import PilotageError
from protocol.settings import Settings

if TYPE_CHECKING:
    from filelock import FileLock


class Account(NamedTuple):
    """As the kernel and programs know it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def of_slot(settings: Settings, slot: int) -> Optional[Account]:
    """Whose rights the payloads of a slot have; None: the pilot's."""
    names = settings.items("payload", "users")
    if not names:
        return None
    account = find(names[slot - 1])
    if account is None or account.uid == 0:  # it was there when the pilot began
        raise PilotageError("NODE_UNFIT", f"there is no account {names[slot - 1]} on this node")
    return account


def why_not(settings: Settings, work: Path) -> Optional[str]:
    """None, or in words why payloads cannot run as the settings say; tried before the first job."""
    names = settings.items("payload", "users")
    slots = settings.integer("node_settings", "slots")
    if not names:
        return None
    if os.geteuid() != 0:
        return "a pilot that is not root cannot run payloads as others"
    if len(set(names)) < slots:
        return f"{slots} slots need an account each; {', '.join(names)} are {len(set(names))}"
    for name in names[:slots]:
        account = find(name)
        if account is None or account.uid == 0:
            return f"there is no account {name} on this node" if account is None else f"{name} is root"
        closed = next((place for place in (work, *work.parents) if not _may_enter(account, place)), None)
        if closed is not None:
            return f"the account {name} does not get into {closed}"
        try:
            subprocess.run(["true"], check=True, **rights(account))
        except (OSError, subprocess.SubprocessError) as error:  # root of a container, say
            return f"this pilot may not run anything as {name}: {error}"
    accounts = [account for name in names[:slots] for account in [find(name)] if account is not None]
    return _why_not_ours(accounts, settings.path("payload", "users_locks"))


def rights(account: Optional[Account]) -> dict[str, Any]:
    """For subprocess."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


@functools.cache
def find(name: str) -> Optional[Account]:
    import pwd  # late: few pilots need it

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(name, entry.pw_gid)))


def give(directory: Path, account: Account) -> None:
    """All in a job's directory to the account, before anything of the job has run; never through a link.

    The directory itself comes last: nobody but root could enter it before, so that no leftover of the account exchanges a folder for
    a link meanwhile. A file that has another name as well is somebody else's.
    """
    folders = [str(directory)]
    for folder in folders:  # it grows
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder:
                    folders.append(entry.path)
                if is_folder or status.st_nlink == 1:
                    os.lchown(entry.path, account.uid, account.gid)
    os.lchown(directory, account.uid, account.gid)


_locks: dict[str, FileLock] = {}
"""Of the accounts that this process uses, by their files; held until it ends."""


def _why_not_ours(accounts: Sequence[Account], locks: Path) -> Optional[str]:
    """None once these accounts are this pilot's alone on this node; else in words why not.

    Payloads of two pilots with one account could read and signal each other.
    """
    # Late: few pilots need it, and `pilot.api.container` has the standard library alone.
    from filelock import FileLock, Timeout

    try:
        locks.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = locks.stat()
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others than root may write in {locks} (users_locks)"
        for account in accounts:
            path = str(locks / f"{account.uid}.lock")  # two names may be one account
            if path not in _locks:
                lock = FileLock(path, mode=0o600, thread_local=False)
                lock.acquire(timeout=0)
                _locks[path] = lock
    except Timeout:
        return f"another pilot on this node uses the account {account.name}"
    except OSError as error:
        return f"no lock can be held in {locks} (users_locks): {error.strerror or error}"
    return None


def _may_enter(account: Account, place: Path) -> bool:
    status = place.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in account.groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
