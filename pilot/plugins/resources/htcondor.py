"""HTCondor: the ads of job and machine, which lie as files beside each job; also in a glidein, whose end stands in the machine ad."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from pilot.plugins.resources.base import ResourcePlugin


class Plugin(ResourcePlugin):
    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self._job = read_ad(self.text("_CONDOR_JOB_AD"))
        self._machine = read_ad(self.text("_CONDOR_MACHINE_AD"))

    @classmethod
    def is_here(cls, environ: Mapping[str, str]) -> bool:
        return "_CONDOR_JOB_AD" in environ

    def batch_id(self) -> str:
        """As condor_rm takes it."""
        cluster, process = self._job.get("clusterid", ""), self._job.get("procid", "0")
        return f"{cluster}.{process}" if cluster else ""

    def nodes(self) -> tuple[str, ...]:
        name = self._machine.get("machine", "")
        return (name,) if name else ()

    def cores(self) -> int:
        return int(_value(self._machine, "cpus") or _value(self._job, "cpusprovisioned", "requestcpus"))

    def memory_mb(self) -> int:
        return int(_value(self._machine, "memory") or _value(self._job, "memoryprovisioned", "requestmemory"))

    def gpus(self) -> Optional[tuple[str, ...]]:
        given = self.text("_CONDOR_AssignedGPUs") or self._machine.get("assignedgpus", "")
        if given:
            return tuple(word.strip() for word in given.split(","))
        return () if self._machine else None  # a slot that names none has none

    def seconds_left(self) -> Optional[float]:
        """The first of the ends that job and glidein have."""
        began = _value(self._job, "jobcurrentstartdate", "jobstartdate") or time.time()
        ends = [
            began + _value(self._job, name) * unit
            for name, unit in (
                ("allowedjobduration", 1),
                ("allowedexecuteduration", 1),
                ("maxwalltimemins", 60),
            )
            if _value(self._job, name)
        ]
        glidein = _value(self._machine, "glidein_todie")
        return min((end - time.time() for end in (*ends, *([glidein] if glidein else []))), default=None)

    def queue(self) -> str:
        return self._machine.get("glidein_entry_name", "")


def read_ad(name: str) -> dict[str, str]:
    """A ClassAd in its long form; names in small letters, as HTCondor takes no notice of their size. Quotes are taken away."""
    if not name:
        return {}
    try:
        text = Path(name).read_text(errors="replace")
    except OSError:
        return {}
    pairs = re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE)
    return {key.lower(): value.strip('"') for key, value in pairs}


def _value(ad: Mapping[str, str], *names: str) -> float:
    """The first of these that is a number; 0 where none is, as with an expression that only HTCondor can reckon out."""
    for name in names:
        if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", ad.get(name, "")):
            return float(ad[name])
    return 0.0
