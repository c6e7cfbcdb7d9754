"""The server's settings table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from protocol.errors import PilotageError
from protocol.logs import LOGGING_ROWS
from protocol.settings import Setting, Settings, Table, load_program
from protocol.values import Type

# fmt: off
TABLE = Table("server", (
    Setting("server", "host", Type.TEXT, "127.0.0.1", "address to listen on; only this machine can reach the default",
            options=("--host",)),
    Setting("server", "port", Type.INTEGER, 8080, "port to listen on; 0: a free one", minimum=0, maximum=65535, options=("--port",)),
    Setting("server", "state_directory", Type.PATH, "~/.local/share/pilotage",
            "database, first token, bundles and logs; on a disk of this machine", options=("--state",)),
    Setting("server", "threads", Type.INTEGER, 16, "requests worked on at the same time, per worker", minimum=1, maximum=1024),
    Setting("server", "workers", Type.INTEGER, 1, "gunicorn workers; more than one only on Postgres", minimum=1, maximum=256),
    Setting("server", "max_body_mb", Type.INTEGER, 16, "largest body of a request", minimum=1, maximum=1024),
    Setting("server", "bundle_limit_mb", Type.INTEGER, 64, "largest bundle of user code (--ship)", minimum=1, maximum=4096),
    Setting("server", "certfile", Type.PATH, "", "the server's certificate (PEM); with it, https is spoken", options=("--certfile",)),
    Setting("server", "keyfile", Type.PATH, "", "its private key (PEM, mode 0600)", options=("--keyfile",)),

    Setting("database", "url", Type.DATABASE_URL, "",
            "sqlite:///FILE or postgresql://USER@HOST/NAME; empty: SQLite in the state directory. "
            "A file that holds one with a password must have mode 0600",
            secret=True, options=("--database",)),

    Setting("queue", "lease_seconds", Type.INTEGER, 60,
            "a pilot silent for longer loses its jobs, in queues that do not say otherwise", minimum=1, maximum=604_800),
    Setting("queue", "heartbeat_seconds", Type.INTEGER, 20,
            "how often pilots are told to speak, in queues that do not say otherwise", minimum=1, maximum=86_400),
    Setting("queue", "acknowledge_seconds", Type.INTEGER, 60,
            "a job that was handed out and not acknowledged is free again after this", minimum=1, maximum=86_400),

    Setting("executor", "ready_stock", Type.INTEGER, 1000, "jobs of equal needs and priority that are READY ahead of the pilots",
            minimum=1, maximum=1_000_000),
    Setting("executor", "period_seconds", Type.NUMBER, 1, "between two passes of the task-executor", minimum=0.05, maximum=3600),
    Setting("reaper", "period_seconds", Type.NUMBER, 5, "between two passes of the reaper; each lets leases age by as much",
            minimum=0.05, maximum=3600),
    Setting("closer", "period_seconds", Type.NUMBER, 1, "between two passes of the closer", minimum=0.05, maximum=3600),

    *LOGGING_ROWS,
))
# fmt: on


def load(
    command_line: Mapping[str, object] | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    start: Path | None = None,
) -> Settings:
    """The server's settings; what is right alone but wrong together is refused here."""
    settings = load_program(TABLE, command_line, config, environ, start)
    certificate, key = (settings.optional_path("server", name) for name in ("certfile", "keyfile"))
    if (certificate is None) != (key is None):
        given = "certfile" if certificate else "keyfile"
        raise PilotageError(
            "BAD_SETTINGS",
            f"{settings.origin('server', given)}: certfile and keyfile go together, only {given} is set",
        )
    lease, heartbeat = (settings.integer("queue", f"{name}_seconds") for name in ("lease", "heartbeat"))
    if lease < 2 * heartbeat:
        raise PilotageError(
            "BAD_SETTINGS",
            f"[queue] lease_seconds = {lease} ({settings.origin('queue', 'lease_seconds')}) must be at least twice "
            f"heartbeat_seconds = {heartbeat} ({settings.origin('queue', 'heartbeat_seconds')}): "
            "one lost heartbeat must not cost a job",
        )
    return settings
