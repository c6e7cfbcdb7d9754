"""The Environment API: what this node has, and what the batch system gave of it; for programs that run in a batch job as pilots do.

    from pilot.api import environment
    here = environment.look()
    here.node.cores, here.node.memory_mb, here.allocation.batch_id, here.allocation.nodes, here.allocation.seconds_left
    here.node.share(slot=1, slots=4)          # cores, memory and GPUs of a quarter of it
    environment.gpu_variables(here.node.gpus) # what makes a process see these GPUs and no others

Cores and memory are the least of what the node has, what control groups and affinity leave, and what the batch system says. In a
shell, also from the pilot's one file:

    PYTHONPATH=pilot.pyz python3 -m pilot.api.environment
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple, Optional

from pilot import node
from pilot.node import Node, Share, free_disk_mb
from pilot.node.allocation import Allocation
from pilot.node.gpus import Gpu
from pilot.node.gpus import environment as gpu_variables
from pilot.plugins import resources
from protocol.errors import PilotageError

__all__ = ["Allocation", "Environment", "Gpu", "Node", "Share", "free_disk_mb", "gpu_variables", "look"]


class Environment(NamedTuple):
    """A node, as far as it is ours, and who gave it to us."""

    node: Node
    allocation: Allocation

    def facts(self) -> dict[str, object]:
        """What was found, for logs and for operators; without what is not known."""
        here, given = self
        shown = {
            "cores": here.cores,
            "memory_mb": here.memory_mb,
            "gpus": "; ".join(str(gpu) for gpu in here.gpus),
            "batch_system": given.system,
            "batch_id": given.batch_id,
            "batch_queue": given.queue,
            "batch_nodes": ",".join(given.nodes),
            "batch_seconds_left": None if given.seconds_left is None else round(given.seconds_left),
        }
        return {name: value for name, value in shown.items() if value not in (None, "")}


def look(
    environ: Optional[Mapping[str, str]] = None,
    *,
    batch_system: str = resources.AUTO,
    processor_type: str = "auto",
    name: str = "",
) -> Environment:
    """Look at the node and ask its batch system; nothing is kept, and what cannot be read is left out.

    `batch_system`: auto, or the name of a resource plugin, BAD_SETTINGS for one that nobody knows. `processor_type`: cpu looks for no
    GPU. `name`: what the node is called; "": its host name.
    """
    environ = os.environ if environ is None else environ
    given = resources.ask(batch_system, environ)
    return Environment(node.inspect(processor_type, environ, name, given), given)


def main() -> int:
    """All of it as JSON."""
    try:
        here = look()
    except PilotageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump({"node": asdict(here.node), "allocation": asdict(here.allocation)}, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
