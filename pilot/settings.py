"""The settings tables of the pilot, of the daemon that starts pilots on a node, and of the bridge that speaks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from protocol.logs import LOGGING_ROWS
from protocol.pilot_settings import CONNECTION_ROWS, NODE_ROWS, ROWS
from protocol.settings import Setting, Settings, Table, load_program, with_defaults
from protocol.values import Type

# fmt: off
_DAEMON = (
    Setting("node_settings", "SCRIPT_DELAY", Type.NUMBER, 10, "seconds between the starts of two pilots",
            minimum=0, maximum=86_400),
    Setting("daemon", "pilots", Type.INTEGER, 1, "pilots kept running at the same time", minimum=1, maximum=1024),
    Setting("daemon", "wrapper", Type.PATH, "",
            "run_pilot.sh: each pilot is then the one that the server has at the time; empty: the one that is installed here"),
    Setting("daemon", "pilot_settings", Type.PATH, "", "ini file given to each pilot (--config); empty: pilots look for theirs"),
)
_BRIDGE = (
    *(row for row in NODE_ROWS if row.key in ("SERVER_ADDRESS", "PORT", "TOKEN_FILE", "CA_FILE", "CA_PATH")),
    Setting("node_settings", "BRIDGE_DIRECTORY", Type.PATH, "",
            "directory that the nodes see too; it is made if it is not there", options=("--directory",)),
)
# fmt: on

_RABBIT = ("USERNAME", "PASSWORD", "HOST", "EXCHANGE", "VIRTUAL_HOST", "PORT")
_BROKER = {"rabbit_settings": tuple(f"rabbitmq_{key.lower()}" for key in _RABBIT)}
_NO_BROKER = "pilots fetch their jobs from the server over HTTP, there is no message broker"

TABLE = Table(
    "pilot",
    ROWS,
    ignored=_BROKER,
    ignored_because=_NO_BROKER,
    open_sections=("copytool:", "utility:"),
    sisters=_DAEMON,
)

DAEMON_TABLE = Table(
    "daemon",
    (*_DAEMON, *LOGGING_ROWS),
    ignored=_BROKER,
    ignored_because=_NO_BROKER,
    sisters=ROWS,
)

_OF_BRIDGE = ("connect_timeout_seconds", "read_timeout_seconds", "directory_poll_seconds")
"""A bridge repeats nothing by itself, and waits for the server as long as it runs."""
BRIDGE_TABLE = Table(
    "bridge",
    (*_BRIDGE, *(row for row in CONNECTION_ROWS if row.key in _OF_BRIDGE), *LOGGING_ROWS),
    sisters=(*ROWS, *_DAEMON),
)


def load(
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
) -> Settings:
    """The pilot's settings, with the defaults of its workflow; `command_line` maps `Setting.parameter` to the option's value."""
    from pilot.plugins import workflows  # late: --help needs none

    settings = load_program(TABLE, command_line, config, environ, start)
    name = settings.text("node_settings", "workflow")
    return with_defaults(settings, workflows.load(name).defaults, f"workflow {name}")


def load_daemon(
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
) -> Settings:
    return load_program(DAEMON_TABLE, command_line, config, environ, start)


def load_bridge(
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
) -> Settings:
    return load_program(BRIDGE_TABLE, command_line, config, environ, start)


def server_url(settings: Settings) -> str:
    """SERVER_ADDRESS, with PORT in the place of its port if one was set."""
    address = settings.text("node_settings", "server_address")
    port = settings.integer("node_settings", "port")
    if not port:
        return address
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return parts._replace(netloc=f"{host}:{port}").geturl()
