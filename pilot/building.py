"""What a pilot is made of before it works: its node, the way to its server, who it is, its settings as others want them, its tools."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Optional

import copytools
from copytools.base import CopyTool
from pilot import certificates, node, plugins
from pilot.node import Node
from pilot.node.allocation import Allocation
from pilot.plugins import resources
from pilot.plugins.base import ExperimentPlugin
from pilot.server_client import ServerClient
from pilot.settings import server_url
from protocol import __version__
from protocol.errors import PilotageError
from protocol.messages import PilotRegistration, QueueForPilot
from protocol.redaction import Secrets
from protocol.settings import EXPERIMENT, QUEUE, Settings, override, read_secret

logger = logging.getLogger(__name__)


def look_around(settings: Settings, environ: Mapping[str, str]) -> tuple[Node, Allocation]:
    """This node, as far as the batch system gave it to us."""
    given = resources.ask(settings.text("node_settings", "batch_system"), environ)
    kind, name = (settings.text("node_settings", key) for key in ("processor_type", "node_name"))
    return node.inspect(kind, environ, name, given), given


def facts(here: Node, given: Allocation) -> dict[str, object]:
    """What was found, for the log and for operators; without what is not known."""
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


def client_for(settings: Settings, environ: Mapping[str, str], secrets: Secrets) -> ServerClient:
    url, token = server_and_token(settings)
    secrets.add(token)
    tls = None
    if url.startswith("https:"):
        trust = certificates.search(
            settings.optional_path("node_settings", "ca_file"),
            settings.optional_path("node_settings", "ca_path"),
            environ,
            os.geteuid(),
        )
        logger.info(
            "certificates are found", extra={"origin": trust.origin, "client": str(trust.client_file or "")}
        )
        tls = certificates.context(trust)
    return ServerClient(
        url,
        token,
        tls,
        settings.number("connection", "connect_timeout_seconds"),
        settings.number("connection", "read_timeout_seconds"),
    )


def server_and_token(settings: Settings) -> tuple[str, str]:
    """Where to ask, and with what; without a token file, the first token of the user's own server, and then that server only.

    Whoever else listens at the default address must not be shown that token.
    """
    named = settings.optional_path("node_settings", "token_file")
    if named is not None:
        return server_url(settings), read_secret(named)
    state = Path.home() / ".local" / "share" / "pilotage"
    if not (state / "pilot.token").exists():
        raise PilotageError("UNAUTHENTICATED", "no token: name its file with --token-file (TOKEN_FILE)")
    if not settings.is_default("node_settings", "server_address"):
        return server_url(settings), read_secret(state / "pilot.token")
    try:
        url = str(json.loads((state / "server.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise PilotageError(
            "SERVER_UNREACHABLE", f"no server runs in {state}; name one with --url and --token-file"
        ) from None
    return url, read_secret(state / "pilot.token")


def registration(
    settings: Settings, here: Node, pilot_id: str, work: Path, given: Allocation
) -> PilotRegistration:
    return PilotRegistration(
        pilot_id=pilot_id,
        node=here.name[:255],
        version=__version__,
        resource_type=here.resource_type,
        queue=settings.text("node_settings", "queue"),
        site_name=settings.text("node_settings", "site"),
        slots=settings.integer("node_settings", "slots"),
        cores=here.cores,
        memory_mb=here.memory_mb,
        disk_mb=node.free_disk_mb(work),
        gpus=len(here.gpus),
        batch_system=given.system,
        batch_id=given.batch_id,
    )


def as_others_say(settings: Settings, answer: Optional[QueueForPilot]) -> tuple[Settings, ExperimentPlugin]:
    """The settings with what experiment and queue want otherwise, and the experiment's plugin, which the queue may choose.

    The queue's word is the last: its operator knows the nodes. Where neither names anything, ours stay. None: no server was asked.
    """
    wanted = _as_queue_says(settings, answer)
    name = wanted.text("experiment", "plugin")
    plugin = plugins.load(name, wanted)
    own = override(settings, EXPERIMENT, sections(plugin.pilot_settings()), f"plugin {name}")
    return _as_queue_says(own, answer), plugin


def _as_queue_says(settings: Settings, answer: Optional[QueueForPilot]) -> Settings:
    if answer is None:
        return settings
    wanted: dict[str, dict[str, object]] = {"heartbeat": {"heartbeat_seconds": answer.heartbeat_seconds}}
    if answer.timefloor_seconds:
        wanted["limits"] = {"timefloor_seconds": answer.timefloor_seconds}
    if answer.copytools:
        wanted["copytools"] = {"names": answer.copytools}
    for section, keys in sections(answer.pilot_settings).items():
        wanted.setdefault(section, {}).update(keys)
    return override(settings, QUEUE, wanted, f"queue {answer.name}")


def sections(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """section.key → value, sorted into sections."""
    found: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


class Tools(NamedTuple):
    """The copytools that may be used, in the order of preference."""

    usable: tuple[CopyTool, ...]
    unusable: dict[str, str]
    """Name → why it does not work on this node."""


def tools(settings: Settings) -> Tools:
    """Those that the settings name, else all there are."""
    data_root = settings.optional_path("node_settings", "script_prefix")
    prefix = {"data_root": str(data_root)} if data_root is not None else {}
    usable: list[CopyTool] = []
    unusable: dict[str, str] = {}
    for name in settings.items("copytools", "names") or copytools.names():
        tool = copytools.load(name, {**prefix, **settings.open_section(f"copytool:{name}")})
        reason = tool.unusable()
        if reason is None:
            usable.append(tool)
        else:
            unusable[name] = reason
    return Tools(tuple(usable), unusable)
