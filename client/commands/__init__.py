"""The tree of commands: which there are and in which module each lies; a module is loaded when its command is used.

So a worker node without Flask runs `pilotage pilot run`, and `pilotage --help` loads nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import click

from client.interruption import interrupted
from protocol import __version__
from protocol.errors import PilotageError
from protocol.redaction import one_line
from protocol.values import nearest


class Lazy(NamedTuple):
    """A command that lies elsewhere: "module:attribute", its line in the list, and the extra of pip that it needs."""

    place: str
    help: str
    extra: str = "client"


class Group(click.Group):
    """A group that lists its commands in the order in which they are used, and knows what a misspelt one may mean."""

    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            path = self._with_option(ctx, error.option_name, [word for word in given if word[:1] != "-"])
            if path is None:
                raise
            option = error.option_name
            raise click.UsageError(f"put {option} after the verb: {path} {option} …", ctx) from None

    def _with_option(self, ctx: click.Context, option: str, words: List[str]) -> Optional[str]:
        """The command among these words that has this option, which stands too far ahead; None where there is none."""
        group: Optional[click.Command] = self
        path = ctx.command_path
        for word in words:
            if isinstance(group, click.Group) and word in group.list_commands(ctx):
                group, path = group.get_command(ctx, word), f"{path} {word}"
        has_it = group is not None and group is not self and any(option in each.opts for each in group.params)
        return path if has_it else None

    def resolve_command(
        self, ctx: click.Context, args: List[str]
    ) -> Tuple[Optional[str], Optional[click.Command], List[str]]:
        known = self.list_commands(ctx)
        near = None if args[0] in known or args[0].startswith("-") else nearest(args[0], known)
        if near:
            ctx.fail(f"No such command '{one_line(args[0])}'; did you mean '{near}'?")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose commands are imported when somebody uses them."""

    def __init__(self, *args: Any, lazy: Optional[Dict[str, Lazy]] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        return _load(self.lazy[cmd_name], f"{ctx.command_path} {cmd_name}") if cmd_name in self.lazy else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.help) for name, each in self.lazy.items()])


def _load(lazy: Lazy, path: str) -> click.Command:
    module, _, attribute = lazy.place.partition(":")
    try:
        command: click.Command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise _missing(error, path, lazy.extra) from error
    except (SyntaxError, TypeError) as error:
        if sys.version_info >= (3, 10):
            raise
        raise _missing(error, path, lazy.extra) from error
    return command


def _missing(error: Exception, path: str, extra: str) -> PilotageError:
    if sys.version_info < (3, 10):
        return PilotageError(
            "MISSING_EXTRA", f"{path} needs Python 3.10 or newer; this is {sys.version.split()[0]}"
        )
    return PilotageError("MISSING_EXTRA", f"{path} needs more ({error}): pip install 'pilotage[{extra}]'")


class Root(LazyGroup):
    """`pilotage` itself: an error of the catalogue becomes a line or two on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # Not left to click, which would add an empty line. A command that cleaned up says what it did.
            return ctx.exit(interrupted(str(error)))
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001, the top of the program: whatever it was, it is told and ends
            if ctx.params["debug"] or os.environ.get("PILOTAGE_DEBUG"):
                traceback.print_exc()
            if isinstance(error, ModuleNotFoundError):
                used = ctx.invoked_subcommand or ""
                extra = self.lazy[used].extra if used in self.lazy else "all"
                error = _missing(error, f"{ctx.command_path} {used}", extra)
            show_error(error)
            return ctx.exit(1)


def show_error(error: Exception) -> None:
    """One line that says what is wrong, a line for each thing that is wrong in the same way, and what to do next if that is known."""
    problems: Iterable[object] = ()
    if isinstance(error, PilotageError):
        what, advice = str(error), error.next_step
        problems = error.fields.get("problems", ())
    elif isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        advice = "look at that file or directory, its rights and its disk"
    else:
        what = f"a fault of this program: {type(error).__name__}: {error}"
        advice = "report it, with what the same command says with --debug: pilotage --debug ..."
    following = [f"next: {advice}"] if advice else []
    for line in (f"Error: {what}", *(f"  {problem}" for problem in problems), *following):
        click.echo(one_line(line), err=True)


COMMANDS = {
    "demo": Lazy("client.commands.demo:demo", "the main job on this machine, from start to end"),
    "server": Lazy("server.cli:server", "start, stop and look after a server", "server"),
    "audit": Lazy(
        "server.commands.audit:audit", "check that jobs, datasets and files are as they must be", "server"
    ),
    "db": Lazy("server.commands.db:db", "schema, backup, restore, and what becomes of old data", "server"),
    "pilot": Lazy("client.commands.pilot:pilot", "run a pilot; see which there are"),
    "task": Lazy("client.commands.tasks:task", "submit, watch and cancel tasks"),
    "job": Lazy("client.commands.jobs:job", "jobs, their attempts and their logs"),
    "dataset": Lazy("client.commands.datasets:dataset", "register, look into and fetch datasets"),
    "data": Lazy("pilot.commands.data:data", "copy files to and from storages, without a server", "fast"),
    "file": Lazy("client.commands.files:file", "find files in all datasets"),
    "usage": Lazy("client.commands.usage:usage", "core-hours and bytes by owner, group and queue"),
    "queue": Lazy("client.commands.queues:queue", "computing queues: make, see, open and close them"),
    "site": Lazy("client.commands.sites:site", "sites: see, open and close them"),
    "node": Lazy("client.commands.nodes:node", "worker nodes that were put aside"),
    "storage": Lazy("client.commands.storages:storage", "storages that take the outputs"),
    "token": Lazy("client.commands.tokens:token", "tokens: make, see and revoke them"),
    "account": Lazy(
        "client.commands.accounts:account", "accounts: who owns tasks, in which group, with which quota"
    ),
    "group": Lazy("client.commands.groups:group", "working groups: the tree of shares, and quotas"),
    "trail": Lazy("client.commands.trail:trail", "what was done by whom"),
    "bench": Lazy("server.bench.cli:bench", "measure how fast this version is on this machine", "server"),
    "daq": Lazy("daq.cli:daq", "the DAQ emulator, and a reader of .spd files", "daq"),
    "config": Lazy("client.commands.config:config", "settings, their values and where each comes from"),
}

EXAMPLES = """\b
Begin with:
  pilotage demo
  pilotage server start
  pilotage task submit --from etc/examples/hello.json
  pilotage pilot run -q CPU
  pilotage task watch hello
"""


@click.group(
    cls=Root, lazy=COMMANDS, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--debug", is_flag=True, help="Show a trace back with an error (also: PILOTAGE_DEBUG=1).")
@click.version_option(__version__, "-V", "--version", prog_name="pilotage", message="%(prog)s %(version)s")
def root(debug: bool) -> None:
    """Pilotage: tasks over datasets, run by pilots that pull the jobs.

    A server holds tasks, jobs and datasets; pilots on worker nodes pull the jobs that fit them.
    Without --server, the commands speak with the server that runs on this machine.
    """
