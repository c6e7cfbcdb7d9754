"""What a pilot is made of before it works: its node, the way to its server, who it is, its settings as others want them, its tools."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

import copytools
from copytools.base import FileTool
from pilot import addresses, certificates, node, plugins, workdir
from pilot.api import environment
from pilot.api.data import Tools, find_tools
from pilot.api.environment import Environment
from pilot.collector import Collector
from pilot.node import Node, gpus
from pilot.node.allocation import Allocation
from pilot.plugins.base import ExperimentPlugin
from pilot.server_client import ServerClient
from pilot.settings import server_url
from protocol import __version__
from protocol.errors import PilotageError
from protocol.messages.pilots import JobSpec, PilotRegistration, QueueForPilot
from protocol.redaction import Secrets
from protocol.settings import EXPERIMENT, QUEUE, TASK, Settings, override, read_secret

if TYPE_CHECKING:
    from pilot.cache import InputCache

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
SECRET_FILES = (
    *("X509_USER_PROXY", "X509_USER_KEY", "BEARER_TOKEN_FILE", "XrdSecSSSKT"),
    *("XrdSecGSIUSERPROXY", "XrdSecGSIUSERKEY"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS"),
)
"""Variables that name files with the pilot's credentials."""
QUEUE_SAYS = "queue "
"""How the origin of a setting begins that the queue has set."""


def look_around(settings: Settings, environ: Mapping[str, str]) -> Environment:
    """This node, as far as the batch system gave it to us."""
    return environment.look(
        environ,
        batch_system=settings.text("node_settings", "batch_system"),
        processor_type=settings.text("node_settings", "processor_type"),
        name=settings.text("node_settings", "node_name"),
    )


def client_for(settings: Settings, environ: Mapping[str, str], secrets: Secrets) -> ServerClient:
    """The server, or the bridge that speaks for this node: then no token is needed here, and none is read."""
    directory = settings.optional_path("node_settings", "bridge_directory")
    if directory is None:
        return server_client(settings, environ, secrets)
    from pilot.letterbox import Letterbox  # late: most pilots need none

    return ServerClient(
        directory.as_uri(),
        "",
        None,
        settings.number("connection", "connect_timeout_seconds"),
        settings.number("connection", "read_timeout_seconds"),
        letterbox=Letterbox(directory, settings.number("connection", "directory_poll_seconds")),
    )


def server_client(
    settings: Settings, environ: Mapping[str, str], secrets: Secrets, connections: int = 4
) -> ServerClient:
    url, token, token_file = server_and_token(settings)
    secrets.add(token)

    def token_now() -> str:
        address, renewed, _ = server_and_token(settings)
        secrets.add(renewed)
        return renewed if address == url else token

    tls = None
    if url.startswith("https:"):
        trust = _trust(settings, environ)
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
        connections,
        token_now=token_now,
        token_file=token_file,
    )


def _trust(settings: Settings, environ: Mapping[str, str]) -> certificates.Trust:
    return certificates.search(
        settings.optional_path("node_settings", "ca_file"),
        settings.optional_path("node_settings", "ca_path"),
        environ,
        os.geteuid(),
    )


def server_and_token(settings: Settings) -> tuple[str, str, Path]:
    """Where to ask, with what, and the file that this stands in; without a token file, the first token of the user's own server, and then that server only.

    Whoever else listens at the default address must not be shown that token.
    """
    named = settings.optional_path("node_settings", "token_file")
    if named is not None:
        return server_url(settings), read_secret(named), named
    state = Path.home() / ".local" / "share" / "pilotage"
    if not (state / "pilot.token").exists():
        raise PilotageError("UNAUTHENTICATED", "no token: name its file with --token-file (TOKEN_FILE)")
    if not settings.is_default("node_settings", "server_address") or settings.integer(
        "node_settings", "port"
    ):
        return server_url(settings), read_secret(state / "pilot.token"), state / "pilot.token"
    try:
        url = str(json.loads((state / "server.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise PilotageError(
            "SERVER_UNREACHABLE", f"no server runs in {state}; name one with --url and --token-file"
        ) from None
    return url, read_secret(state / "pilot.token"), state / "pilot.token"


def collector_for(settings: Settings, environ: Mapping[str, str], secrets: Secrets) -> Optional[Collector]:
    """None where the settings name none. It is not shown who we are: no certificate of ours."""
    url = settings.text("services", "collector")
    if not url:
        return None
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_good = False
    if not is_good:
        raise PilotageError(
            "BAD_SETTINGS",
            "[services] collector is no address such as http://elastic:9200/pilotage/_doc, without a password in it",
        )
    named = settings.optional_path("services", "collector_token_file")
    token = read_secret(named) if named is not None else ""
    secrets.add(token)
    tls = None
    if url.startswith("https:"):
        tls = certificates.context(replace(_trust(settings, environ), client_file=None))
    return Collector(url, token, settings.number("services", "collector_timeout_seconds"), tls)


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
        gpu_kinds=gpus.kinds(here.gpus),
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
    return override(settings, QUEUE, wanted, f"{QUEUE_SAYS}{answer.name}")


def as_task_says(settings: Settings, spec: JobSpec) -> Settings:
    """The settings for the jobs of a task. What the queue says stays as it is: its operator knows the nodes."""
    wanted = dict(spec.pilot_settings)
    for name in spec.pilot_settings:
        section, _, key = name.partition(".")
        if settings.origins.get((section, key), "").startswith(QUEUE_SAYS):
            logger.info("the queue says otherwise than the task", extra={"setting": name})
            del wanted[name]
    return override(settings, TASK, sections(wanted), f"task {spec.task_id}")


def sections(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """section.key → value, sorted into sections."""
    found: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


def tools(settings: Settings, environ: Mapping[str, str], storage_url: str = "") -> Tools:
    """Those that the settings name, else the usual ones; what is the pilot's own they do not take for a file of a job.

    `storage_url`: where the outputs of the queue go.
    """
    rules = addresses.rules(
        settings.items("copytools", "addresses")
    )  # a wrong one ends the start, and no job
    storage_url = addresses.directory(storage_url, rules)
    names = settings.items("copytools", "names")
    found = configured_tools(settings, names)
    secrets = [
        path
        for name in names or copytools.usual()
        for path in _secrets_in(settings.open_section(f"copytool:{name}"))
    ]
    own = _own_paths(settings, environ, secrets)
    for tool in found.usable:
        if isinstance(tool, FileTool):
            tool.not_for_jobs = own
            tool.storage = storage_url if storage_url.startswith("file:") else ""
    return found


def configured_tools(settings: Settings, names: Sequence[str]) -> Tools:
    """These, else the usual ones, with the options of their sections."""
    data_root = settings.optional_path("node_settings", "script_prefix")
    prefix = {"data_root": str(data_root)} if data_root is not None else {}
    names = names or copytools.usual()
    return find_tools(
        names, {name: {**prefix, **settings.open_section(f"copytool:{name}")} for name in names}
    )


def cache_of(settings: Settings, isolates: bool) -> Optional[InputCache]:
    """Where inputs are kept, if the settings name a place; payloads that are isolated cannot write to their inputs."""
    directory = settings.optional_path("cache", "directory")
    if directory is None:
        return None
    from pilot.cache import Bounds, InputCache  # late: most pilots have none

    hours = settings.number("cache", "verify_hours")
    bounds = Bounds(
        settings.integer("cache", "max_mb") * MIB,
        settings.integer("cache", "free_mb") * MIB,
        hours * 3600 if hours else math.inf,
    )
    return InputCache(directory, bounds, links=isolates)


def _secrets_in(section: Mapping[str, str]) -> list[str]:
    """The files with credentials that a copytool is given."""
    return [path for key, path in section.items() if key.endswith("_file") or key == "keytab"]


def _own_paths(
    settings: Settings, environ: Mapping[str, str], of_copytools: Sequence[str]
) -> tuple[str, ...]:
    work = os.path.realpath(settings.path("node_settings", "work_directory"))
    outbox = settings.optional_path("node_settings", "outbox_directory")
    home = Path(environ.get("HOME", "/root"))
    state = home / ".local" / "share" / "pilotage"
    secret: list[object] = [
        *(settings.optional_path("node_settings", name) for name in ("token_file", "bridge_directory")),
        *(state / name for name in ("pilot.token", "admin.token", "server.key")),
        *of_copytools,
        *(environ.get(name) for name in SECRET_FILES),
        *(home / name for name in (".aws", ".config/gcloud", ".globus")),
        *(f"/tmp/{name}{os.geteuid()}" for name in ("x509up_u", "bt_u", "krb5cc_")),
        Path(environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}"), f"bt_u{os.geteuid()}"),
        settings.optional_path("services", "collector_token_file"),
        outbox or Path(work, "outbox"),
        settings.optional_path("cache", "directory"),
    ]
    return (
        os.path.join(work, workdir.PREFIX),
        *(f"{os.path.realpath(str(path))}/" for path in secret if path),
    )
