"""The server's settings table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from protocol.errors import PilotageError
from protocol.logs import LOGGING_ROWS
from protocol.settings import Setting, Settings, Table, load_program
from protocol.values import Bounds, Places, Type, parse
from server.urls import URL_SCHEMES

# fmt: off
TABLE = Table("server", (
    Setting("server", "host", Type.TEXT, "127.0.0.1", "address to listen on; only this machine can reach the default",
            options=("--host",)),
    Setting("server", "port", Type.INTEGER, 8080, "port to listen on; 0: a free one", minimum=0, maximum=65535, options=("--port",)),
    Setting("server", "state_directory", Type.PATH, "~/.local/share/pilotage",
            "database, first token, bundles and logs; on a disk of this machine", options=("--state",)),
    Setting("server", "threads", Type.INTEGER, 16, "requests worked on at the same time, per worker", minimum=1, maximum=1024),
    Setting("server", "workers", Type.INTEGER, 1, "gunicorn workers; more than one only on Postgres", minimum=1, maximum=256),
    Setting("server", "one_core_per_worker", Type.FLAG, True,
            "keep the threads of each worker on one core, which halves what a request costs"),
    Setting("server", "max_body_mb", Type.INTEGER, 16, "largest body of a request", minimum=1, maximum=1024),
    Setting("server", "bundle_limit_mb", Type.INTEGER, 64, "largest bundle of user code (--ship)", minimum=1, maximum=4096),
    Setting("server", "certfile", Type.PATH, "", "the server's certificate (PEM); with it, https is spoken", options=("--certfile",)),
    Setting("server", "keyfile", Type.PATH, "", "its private key (PEM, mode 0600)", options=("--keyfile",)),
    Setting("server", "proxies", Type.LIST, "",
            "addresses of balancers before this server; a client's own address is then the last one in X-Forwarded-For"),
    Setting("server", "wait_port", Type.INTEGER, 0, "port at which pilots without work wait for some; 0: a free one",
            minimum=0, maximum=65535),
    Setting("server", "wait_url", Type.TEXT, "",
            "the server's address for pilots whose /v1/wait a balancer leads to wait_port; empty: they go to that port themselves"),

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
    Setting("queue", "metrics_seconds", Type.NUMBER, 60,
            "between two points that are kept of a running job's numbers, at most 120 per attempt; 0: only the last ones are kept",
            minimum=0, maximum=86_400),

    Setting("executor", "ready_stock", Type.INTEGER, 1000, "jobs of equal needs and priority that are READY ahead of the pilots",
            minimum=1, maximum=1_000_000),
    Setting("executor", "period_seconds", Type.NUMBER, 1, "between two passes of the task-executor", minimum=0.05, maximum=3600),
    Setting("reaper", "period_seconds", Type.NUMBER, 5, "between two passes of the reaper; each lets leases age by as much",
            minimum=0.05, maximum=3600),
    Setting("brokerage", "chain_boost", Type.INTEGER, 0, "added to a task's priority for each step of its chain that lies before it",
            minimum=-1_000_000, maximum=1_000_000),
    Setting("brokerage", "tag_boosts", Type.LIST, "", "tags of tasks and what each adds to the priority: smb:100, calibration:50"),
    Setting("availability", "period_seconds", Type.NUMBER, 10, "between two looks at what the queues' attempts came to",
            minimum=0.05, maximum=3600),
    Setting("availability", "attempts", Type.INTEGER, 20, "a queue is judged by so many of its last attempts", minimum=20, maximum=10_000),
    Setting("availability", "failed_percent", Type.NUMBER, 50,
            "if more of them failed by the fault of node, site or storage, the queue is set to test; 100: never",
            minimum=1, maximum=100),
    Setting("availability", "test_successes", Type.INTEGER, 5, "jobs that must complete, one after the other, to set it online again",
            minimum=1, maximum=1000),
    Setting("healing", "rules", Type.PATH, "",
            "ini file that says for errors how jobs are tried again; else it is as the catalogue says (docs/errors.md)"),
    Setting("healing", "memory_factor", Type.NUMBER, 2, "a job that ran out of memory gets so many times what it asked for or used",
            minimum=1.1, maximum=16),
    Setting("healing", "memory_limit_mb", Type.INTEGER, 0, "but no more than this; 0: than the largest pilot has for one job now",
            minimum=0, maximum=100_000_000),
    Setting("healing", "memory_first_mb", Type.INTEGER, 2000,
            "what such a job is taken to have used whose task asks for no memory, if its pilot has not measured it",
            minimum=1, maximum=100_000_000),
    Setting("catalogue", "allowed_paths", Type.LIST, "",
            "directories below which files may be registered by file: URLs; empty: everywhere but in /etc, /proc, /dev and the like"),
    Setting("catalogue", "url_schemes", Type.LIST, ", ".join(URL_SCHEMES), "what the URLs of registered files may begin with"),
    Setting("closer", "period_seconds", Type.NUMBER, 1, "between two passes of the closer", minimum=0.05, maximum=3600),
    Setting("archive", "after_seconds", Type.NUMBER, 3600, "after the end of a task its jobs stay in the hot tables for so long",
            minimum=0, maximum=31_536_000),
    Setting("archive", "period_seconds", Type.NUMBER, 1, "between two passes of the archiver, and of the sweeper",
            minimum=0.05, maximum=3600),
    Setting("archive", "garbage_hours", Type.NUMBER, 24,
            "files of attempts that failed or were lost are removed so long after their job went into the archive",
            minimum=0, maximum=87_600),

    *LOGGING_ROWS,
))
# fmt: on


LARGEST_BOOST = 1_000_000


def tag_boosts(settings: Settings) -> tuple[tuple[str, int], ...]:
    """`[brokerage] tag_boosts` as tags and numbers; BAD_SETTINGS for an entry that is none."""
    boosts = []
    for entry in settings.items("brokerage", "tag_boosts"):
        tag, _, number = (part.strip() for part in entry.rpartition(":"))
        digits = number[1:] if number[:1] in ("+", "-") else number
        if not (
            tag and digits.isascii() and digits.isdigit() and len(digits) < 9 and int(digits) <= LARGEST_BOOST
        ):
            raise PilotageError(
                "BAD_SETTINGS",
                f"{settings.origin('brokerage', 'tag_boosts')}: {entry[:80]!a} is no TAG:NUMBER, as smb:100;"
                f" at most {LARGEST_BOOST:,}",
            )
        boosts.append((tag, int(number)))
    return tuple(boosts)


def _check_wait_url(settings: Settings) -> None:
    """BAD_SETTINGS for what is neither empty nor an address."""
    text = settings.text("server", "wait_url")
    try:
        if text:
            parse(Type.URL, text, Bounds(), Places(None, None))
    except ValueError as error:
        raise PilotageError(
            "BAD_SETTINGS", f"{settings.origin('server', 'wait_url')}: wait_url {error}"
        ) from None


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
    tag_boosts(settings)
    _check_wait_url(settings)
    lease, heartbeat = (settings.integer("queue", f"{name}_seconds") for name in ("lease", "heartbeat"))
    if lease < 2 * heartbeat:
        raise PilotageError(
            "BAD_SETTINGS",
            f"[queue] lease_seconds = {lease} ({settings.origin('queue', 'lease_seconds')}) must be at least twice "
            f"heartbeat_seconds = {heartbeat} ({settings.origin('queue', 'heartbeat_seconds')}): "
            "one lost heartbeat must not cost a job",
        )
    return settings
