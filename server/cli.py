"""The operator's commands: start, stop and look after a server."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from protocol import logs
from protocol.errors import PilotageError
from protocol.settings import Settings
from server import settings as server_settings
from server import state_directory

START_SECONDS = 30
_OPTION_OF = {row.parameter: row.options[0] for row in server_settings.TABLE.options()} | {
    "config": "--config"
}
"""The command line's option for each parameter, to start the same server in the background."""
STOP_SECONDS = 30


@click.group()
def server() -> None:
    """Start, stop and look after a server.

    \b
    Examples:
      pilotage server start                 # in the background, on 127.0.0.1:8080
      pilotage server status
      pilotage server stop
    """


_STATE = click.option(
    "--state",
    "--state-directory",
    "server__state_directory",
    type=click.Path(path_type=Path),
    help="state directory (default: ~/.local/share/pilotage)",
)
_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), help="settings file, after the usual ones"
)


@server.command()
@_STATE
@_CONFIG
@click.option("--host", "server__host", help="address to listen on (default: 127.0.0.1)")
@click.option("--port", "server__port", help="port to listen on (default: 8080; 0: a free one)")
@click.option(
    "--database",
    "database__url",
    metavar="URL",
    help="postgresql://USER@HOST/NAME, or sqlite:////FILE (default: SQLite in the state directory)",
)
@click.option("--certfile", "server__certfile", help="certificate (PEM): speak https")
@click.option("--keyfile", "server__keyfile", help="private key of the certificate (PEM)")
@click.option(
    "--foreground",
    is_flag=True,
    help="stay in the foreground, log to the terminal; for systemd and containers",
)
def start(foreground: bool, **options: Any) -> None:
    """Start the server with its daemons.

    \b
    Examples:
      pilotage server start
      pilotage server start --state /srv/pilotage --port 9000
      pilotage server start --foreground --database postgresql://pilotage@db/pilotage
    """
    settings = _load(**options)
    directory = state_directory.prepare(settings.path("server", "state_directory"))
    state_directory.database_url(directory, settings.text("database", "url"))  # OTHER_DATABASE is said here
    if foreground:
        _serve(settings, directory)
    else:
        _start_in_background(settings, directory, options)


def _load(config: Path | None = None, **options: Any) -> Settings:
    """The settings; the options are named as the table names them."""
    return server_settings.load(options, config)


def _serve(settings: Settings, directory: Path) -> None:
    from server import dispatcher  # gunicorn and Flask: only who serves waits for them

    logs.set_up_from(settings)
    logging.captureWarnings(True)
    dispatcher.serve(settings)


def _start_in_background(settings: Settings, directory: Path, options: dict[str, Any]) -> None:
    """Start the server in a session of its own, and wait until it answers or ends.

    It keeps and rotates its log itself; what it says beside that, as the reason why it cannot start, goes to a file of its own.
    """
    with state_directory.locked(directory):
        pass  # taken already: said here and now, not in the log of a process that ends at once
    log = settings.optional_path("logging", "log_file") or directory / "server.log"
    command = [sys.executable, "-m", "server", "start", "--foreground"]
    rows = server_settings.TABLE.names
    environment = {**os.environ, rows[("logging", "log_file")].environment: str(log)}
    for parameter, value in options.items():
        if parameter == "database__url" and value is not None:
            environment[rows[("database", "url")].environment] = (
                value  # it may hold a password, and argv is for everybody
            )
        elif value is not None:
            command += [_OPTION_OF[parameter], str(value)]
    said = directory / "server.out"
    with open(said, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    try:
        is_up = _answers(process, directory)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_given_up(process)) from None
    if not is_up:
        process.terminate()
        lines = said.read_text(errors="replace").strip().splitlines()
        said_so = [line.partition(": ")[2] for line in lines if line.startswith(("Error: ", "Next: "))]
        raise PilotageError("SERVER_NOT_STARTED", f"{'; '.join(said_so or lines[-5:])} (log: {log})")
    click.echo(f"State and tokens: {directory}; log: {log}")


def _given_up(process: subprocess.Popen[bytes]) -> str:
    """End a server that somebody did not want to wait for, as it is in a session of its own; what became of it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return f"process {process.pid}, which was to be the server, has been told to end and does not yet"
    return "the server that was being started has ended"


def _answers(process: subprocess.Popen[bytes], directory: Path) -> bool:
    """Wait until the server says where it is; False if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        running = state_directory.read_running(directory)
        if running is not None and running.pid == process.pid:
            click.echo(f"The server is at {running.url} (process {running.pid}).")
            click.echo(f"Database: {running.database}")
            return True
        time.sleep(0.05)
    return False


@server.command(short_help="Stop the server; running jobs go on.")
@_STATE
@_CONFIG
def stop(**options: Any) -> None:
    """Stop the server; running jobs go on and their pilots wait for its return.

    \b
    Example:
      pilotage server stop
    """
    directory = _load(**options).path("server", "state_directory").expanduser()
    running = state_directory.read_running(directory)
    if running is None:
        click.echo(f"No server runs in {directory}.")
        return
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while state_directory.start_time(running.pid) == running.start_time:
        if time.monotonic() > deadline:
            raise PilotageError(
                "SERVER_UNAVAILABLE", f"process {running.pid} did not end within {STOP_SECONDS} s"
            )
        time.sleep(0.05)
    click.echo(f"The server at {running.url} has stopped.")


@server.command()
@_STATE
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.pass_context
def status(context: click.Context, as_json: bool, **options: Any) -> None:
    """Say whether a server runs here; exit code 1 if not.

    \b
    Example:
      pilotage server status --json
    """
    directory = _load(**options).path("server", "state_directory").expanduser()
    running = state_directory.read_running(directory)
    if as_json:
        facts = {"running": running is not None, "state": str(directory)}
        if running is not None:
            facts |= {"url": running.url, "pid": running.pid, "database": running.database}
        click.echo(json.dumps(facts))
    elif running is None:
        click.echo(
            f"No server runs in {directory}. Start one: pilotage server start --state {shlex.quote(str(directory))}"
        )
    else:
        click.echo(
            f"The server is at {running.url} (process {running.pid}, {running.database}); state: {directory}"
        )
    if running is None:
        context.exit(1)


def main() -> None:
    """`python -m server`: the same commands where the `pilotage` command is not on the PATH."""
    try:
        code = server.main(standalone_mode=False)
    except PilotageError as error:
        click.echo(f"Error: {error}" + (f"\nNext: {error.next_step}" if error.next_step else ""), err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort as error:
        click.echo(f"Interrupted: {error.__cause__}".rstrip(": "), err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
