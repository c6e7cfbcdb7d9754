"""The validation of a node by itself: what a pilot would find before its first request for a job, as a report for an operator."""

from __future__ import annotations

import contextlib
import os
import secrets as randomness
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

from pilot import building, node
from pilot.api.environment import Environment
from pilot.node import Node, fitness
from pilot.node.allocation import Allocation
from pilot.node.fitness import Finding, Level
from pilot.plugins import executors
from pilot.server_client import ServerClient
from protocol.errors import PilotageError, PilotExit
from protocol.messages.pilots import PilotEnd, QueueForPilot
from protocol.redaction import Secrets
from protocol.settings import Settings

LAST_WORD_SECONDS = 5.0
ROOT = Path("/")


class Report(NamedTuple):
    """What this node has, and what each check came to."""

    node: Node
    given: Allocation
    findings: list[Finding]

    @property
    def is_fit(self) -> bool:
        return not any(finding.level is Level.UNFIT for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        checks = [
            {"check": finding.check, "result": finding.level.value, "detail": finding.detail}
            for finding in self.findings
        ]
        here = {"name": self.node.name, "resourceType": self.node.resource_type.value}
        return {
            "fit": self.is_fit,
            "node": {**here, **Environment(self.node, self.given).facts()},
            "checks": checks,
        }

    def as_text(self) -> str:
        rows = [
            ("check", "result", "detail"),
            *((each.check, each.level.value, each.detail) for each in self.findings),
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{check:<{widths[0]}}  {result:<{widths[1]}}  {detail}" for check, result, detail in rows]
        n_wrong = sum(finding.level is Level.UNFIT for finding in self.findings)
        verdict = f"not fit: {n_wrong} of {len(self.findings)} checks failed" if n_wrong else "fit for work"
        found = "  ".join(
            f"{name}={value}" for name, value in Environment(self.node, self.given).facts().items()
        )
        return "\n".join([f"{self.node.name} ({self.node.resource_type})  {found}", "", *lines, "", verdict])


def look(settings: Settings, environ: Mapping[str, str], secrets: Secrets) -> Report:
    """Look at everything, also where the server cannot be reached: then with this node's own settings alone."""
    here, given = building.look_around(settings, environ)
    mine = settings.text("node_settings", "pilot_id")
    pilot_id = node.pilot_name(mine, here.name, os.getpid(), randomness.token_hex(3))
    work = settings.path("node_settings", "work_directory")
    client: Optional[ServerClient] = None
    answer: Optional[QueueForPilot] = None
    findings: list[Finding] = []
    with contextlib.suppress(OSError):  # what is wrong with it is found below
        work.mkdir(parents=True, exist_ok=True)
    try:
        client = building.client_for(settings, environ, secrets)
        answer = client.register(
            building.registration(settings, here, pilot_id, work if work.exists() else ROOT, given)
        )
    except PilotageError as error:
        findings.append(Finding("server", Level.UNFIT, str(error)))
    else:
        findings.append(Finding("server", Level.OK, f"{client.url} takes pilots of the queue {answer.name}"))
    settings, plugin = building.as_others_say(settings, answer)
    tools = building.tools(settings, environ, answer.storage_url if answer else "")
    findings += fitness.examine(
        settings,
        here,
        work,
        tools=tools.usable,
        unusable_tools=tools.unusable,
        plugin=plugin,
        executor=executors.load(settings.items("payload", "executor"), environ),
        clock_skew=client.clock_skew if client else None,
    )
    report = Report(here, given, findings)
    if client is not None and answer is not None:
        _say_goodbye(client, pilot_id, report)
    return report


def _say_goodbye(client: ServerClient, pilot_id: str, report: Report) -> None:
    """The server keeps what was found, with the pilot that never worked."""
    wrong = "; ".join(each.detail for each in report.findings if each.level is Level.UNFIT)
    code = PilotExit.NODE_UNFIT if wrong else PilotExit.DONE
    try:
        client.end_pilot(
            PilotEnd(pilot_id, int(code), f"a check of the node: {wrong or 'fit'}"[:4000]), LAST_WORD_SECONDS
        )
    except PilotageError as error:
        report.findings.append(Finding("server", Level.WARNING, f"it did not hear the last word: {error}"))
    finally:
        client.close()
