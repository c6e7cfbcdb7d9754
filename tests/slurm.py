"""A real Slurm of two nodes for tests: munged, slurmctld and two slurmd as root, on free ports of the loopback interface.

Each slurmd lives in namespaces of its own with another host name, for Debian's cannot be told by `-N` which node it is. Both nodes
share processes, files and network with this machine; what tells them apart is host name and address.
"""

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

PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scancel", "sinfo", "unshare")
NODES = {"node1": "127.0.0.2", "node2": "127.0.0.3"}
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
SlurmdSpoolDir={place}/spool-%n
SlurmctldLogFile={place}/log/slurmctld.log
SlurmdLogFile={place}/log/slurmd-%n.log
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
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
{nodes}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> Optional[str]:
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"not on PATH: {', '.join(absent)}"
    return None if os.getuid() == 0 else "slurmd needs root"


@contextmanager
def running(place: Path) -> Iterator[Dict[str, str]]:
    """The environment of a batch job that has two cores on each of two nodes. Other accounts must get into `place`."""
    _prepare(place)
    environment = {"PATH": PATH, "SLURM_CONF": str(place / "slurm.conf")}
    munge = pwd.getpwnam("munge")
    own = [f"--{what}={place}/munge/{name}" for what, name in (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"), ("key-file", "key"))]  # fmt: skip
    who = ["setpriv", f"--reuid={munge.pw_uid}", f"--regid={munge.pw_gid}", "--clear-groups"]
    nodes = [["unshare", "--uts", "--mount", "sh", "-ec", NODE, name, str(place)] for name in NODES]
    try:
        for command in ([*who, "munged", *own, "--group-update-time=-1"], ["slurmctld", "-c"], *nodes):
            subprocess.run(command, env=environment, check=True, timeout=20, capture_output=True)
        wait_until(lambda: _said(environment, "sinfo", "-h", "-o", "%T %D") == "idle 2", 20, "two idle nodes")
        yield {**environment, **_batch_job(environment, place)}
    finally:
        _said(environment, "scancel", "--full", "-u", "root")
        for pid_file in (*(f"slurmd-{name}.pid" for name in NODES), "slurmctld.pid", "munge/pid"):
            _end(place / pid_file)
        _end_steps(environment)


NODE = 'mount --bind "$1/hosts" /etc/hosts; hostname "$0"; exec slurmd'


def _batch_job(environment: Dict[str, str], place: Path) -> Dict[str, str]:
    """What Slurm tells a job of ours that sleeps: a pilot of the tests runs in its place."""
    script = place / "job.sh"
    script.write_text(
        f"#!/bin/sh\nenv -0 > {place}/env.part; mv {place}/env.part {place}/env; exec sleep 604\n"
    )
    wanted = [
        "--nodes=2",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--job-name=pilot",
        f"--output={place}/log/job.log",
    ]
    subprocess.run(
        ["sbatch", *wanted, script], env=environment, check=True, timeout=20, capture_output=True, cwd=place
    )
    said = wait_until((place / "env").read_bytes, 20, "the batch job")
    pairs = (pair.decode().partition("=") for pair in said.split(b"\0"))
    return {name: value for name, _, value in pairs if name.startswith("SLURM_")}


def _prepare(place: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    control, node = _free_ports()
    for name in ("state", "log", "munge"):
        (place / name).mkdir()
    nodes = "\n".join(
        f"NodeName={name} NodeAddr={at} CPUs=4 RealMemory=8000 State=UNKNOWN" for name, at in NODES.items()
    )
    (place / "slurm.conf").write_text(
        CONF.format(place=place, host=host, control=control, node=node, nodes=nodes)
    )
    hosts = {"localhost": "127.0.0.1", host: "127.0.0.1", **NODES}
    (place / "hosts").write_text("".join(f"{at} {name}\n" for name, at in hosts.items()))
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
