"""Kubernetes: what the pod's author hands down to the container; cores and memory are limits of its control group anyway.

env:
  - {name: POD_NAME,      valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: NODE_NAME,     valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: CPU_LIMIT,     valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
  - {name: MEMORY_LIMIT,  valueFrom: {resourceFieldRef: {resource: limits.memory}}}
  - {name: ACTIVE_DEADLINE_SECONDS, value: "86400"}   # the same as the pod's activeDeadlineSeconds
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from pilot.plugins.resources.base import ResourcePlugin

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
MIB = 1024 * 1024


class Plugin(ResourcePlugin):
    @classmethod
    def is_here(cls, environ: Mapping[str, str]) -> bool:
        return "KUBERNETES_SERVICE_HOST" in environ

    def batch_id(self) -> str:
        """As kubectl takes it, with the name space in front; a pod's host name is its name."""
        name = self.text("POD_NAME", "HOSTNAME")
        return f"{self.queue()}/{name}" if name and self.queue() else name

    def nodes(self) -> tuple[str, ...]:
        name = self.text("NODE_NAME")
        return (name,) if name else ()

    def cores(self) -> int:
        return self.number("CPU_LIMIT")

    def memory_mb(self) -> int:
        return self.number("MEMORY_LIMIT") // MIB

    def seconds_left(self) -> Optional[float]:
        """Pilots are what the pod starts with, so it has just begun."""
        return float(self.number("ACTIVE_DEADLINE_SECONDS")) or None

    def queue(self) -> str:
        """The name space."""
        return self.text("POD_NAMESPACE") or _read(NAMESPACE)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
