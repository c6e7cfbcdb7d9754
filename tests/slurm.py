"""A real Slurm of one node for tests: munged, slurmctld and slurmd as root, on free ports of the loopback interface."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Dict, Iterator, Optional

from tests.waiting import wait_until

PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "salloc", "scancel", "sinfo")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldLogFile={place}/log/slurmctld.log
SlurmdLogFile={place}/log/slurmd.log
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
ReturnToService=2
MpiDefault=none
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=60 State=UP
"""


def missing() -> Optional[str]:
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"not on PATH: {', '.join(absent)}"
    return None if os.getuid() == 0 else "slurmd needs root"


@contextmanager
def running(place: Path) -> Iterator[Dict[str, str]]:
    """The environment that Slurm's commands need, in an allocation of four cores. Other accounts must get into `place`."""
    _prepare(place)
    environment = {"PATH": PATH, "SLURM_CONF": str(place / "slurm.conf")}
    munge = pwd.getpwnam("munge")
    own = [f"--{what}={place}/munge/{name}" for what, name in (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"), ("key-file", "key"))]  # fmt: skip
    who = ["setpriv", f"--reuid={munge.pw_uid}", f"--regid={munge.pw_gid}", "--clear-groups"]
    try:
        for command in ([*who, "munged", *own, "--group-update-time=-1"], ["slurmctld", "-c"], ["slurmd"]):
            subprocess.run(command, env=environment, check=True, timeout=20, capture_output=True)
        wait_until(lambda: _said(environment, "sinfo", "-h", "-o", "%T") == "idle", 20, "an idle node")
        said = subprocess.run(
            ["salloc", "--no-shell", "-n4", "--job-name=pilot"], env=environment, capture_output=True, text=True,
            timeout=20, check=True,
        ).stderr  # fmt: skip
        job = said.split("Granted job allocation ")[1].split()[0]
        yield {**environment, "SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "1"}
    finally:
        _said(environment, "scancel", "--full", "-u", "root")
        for pid_file in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            _end(place / pid_file)
        _end_steps(environment)


def _prepare(place: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    control, node = _free_ports()
    for name in ("state", "spool", "log", "munge"):
        (place / name).mkdir()
    (place / "slurm.conf").write_text(CONF.format(place=place, host=host, control=control, node=node))
    (place / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (place / "munge" / "key").write_bytes(os.urandom(128))
    (place / "munge" / "key").chmod(0o400)
    (place / "munge").chmod(0o711)
    for folder, account in (("munge", "munge"), ("state", "slurm"), ("log", "slurm")):
        user = pwd.getpwnam(account)
        for path in (place / folder, *(place / folder).iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _said(environment: Dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip()


def _end(pid_file: Path) -> None:
    """Only what was started here: its number stands in its own file."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: _is_gone(pid), 20, f"{pid_file.name} to end")


def _is_gone(pid: int) -> bool:
    """Or dead, where nobody waits for orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def _end_steps(environment: Dict[str, str]) -> None:
    """Step daemons outlive slurmd; ours are known by the configuration in their environment."""
    mark = f"SLURM_CONF={environment['SLURM_CONF']}".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0") and int(name) != os.getpid():
                os.kill(int(name), signal.SIGKILL)
