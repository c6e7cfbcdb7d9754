"""The settings table of the user's commands and of the Python API."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from protocol.settings import Setting, Settings, Table, load_program
from protocol.values import Type

# fmt: off
TABLE = Table("client", (
    Setting("client", "server", Type.URL, "http://127.0.0.1:8080", "address of the server", options=("--server",)),
    Setting("client", "token_file", Type.PATH, "",
            "file (mode 0600) with your token; empty: the first token in state_directory, if the server is your own",
            options=("--token-file",)),
    Setting("client", "state_directory", Type.PATH, "~/.local/share/pilotage", "state directory of a server of your own",
            options=("--state-directory",)),
    Setting("client", "ca_file", Type.PATH, "", "certificate authorities that vouch for the server; empty: the system's",
            options=("--cacert",)),
    Setting("client", "data_root", Type.PATH, "",
            "where file: addresses without a slash lie on this machine, as SCRIPT_PREFIX says on a node",
            options=("--data-root",)),
    Setting("client", "timeout_seconds", Type.NUMBER, 60, "to wait for an answer", minimum=0.1, maximum=3600),
))
# fmt: on


def load(
    command_line: Mapping[str, object] | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    start: Path | None = None,
) -> Settings:
    """The client's settings; `command_line` maps `Setting.parameter` to the option's value."""
    return load_program(TABLE, command_line, config, environ, start)
