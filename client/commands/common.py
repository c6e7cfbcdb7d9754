"""What the commands share: the server's options, --json, limits of lists, and how examples stand in the help."""

from __future__ import annotations

import functools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from client import settings, tables
from client.session import Session
from protocol.errors import PilotageError
from protocol.messages import wire_name
from protocol.messages.views import Explanation
from protocol.redaction import one_line
from protocol.values import in_seconds

_QUEUES = (
    tables.Column("queue", lambda fit: fit.queue),
    tables.Column("site", lambda fit: fit.site),
    tables.Column("state", lambda fit: fit.state),
    tables.Column("pilots", lambda fit: fit.n_pilots, right=True),
    tables.Column("could take it", lambda fit: fit.n_fitting, right=True),
    tables.Column("what is missing", lambda fit: "; ".join(fit.missing)),
)
MANY_QUEUES = 5
"""So many that lack the same are counted, not listed."""
F = TypeVar("F", bound=Callable[..., Any])

_CONFIG = "settings_file"
_METAVARS = {
    "server": "URL",
    "token_file": "FILE",
    "state_directory": "DIR",
    "ca_file": "FILE",
    "data_root": "DIR",
}


class Duration(click.ParamType):
    """A time above zero as 4w, 30d, 12h, 45m or 90s, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        seconds = in_seconds(text)
        if seconds == text or not int(seconds):
            self.fail(f"{value!a} is no time; write it as 30d, 4w, 12h, 45m or 90s", param, ctx)
        return int(seconds)


class Seconds(click.ParamType):
    """Seconds as a number, or a time as 45m or 12h; whether it may be so long is the server's to say."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(in_seconds(str(value).strip()))
        except ValueError:
            self.fail(f"{value!a} is no time; write seconds, or 90s, 45m, 12h, 30d", param, ctx)


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def with_session(function: F) -> F:
    """Give a command the options that say which server is meant, and the session as its first argument."""

    @functools.wraps(function)
    def command(**options: Any) -> Any:
        config = options.pop(_CONFIG)
        given = {row.parameter: options.pop(row.parameter) for row in settings.TABLE.options()}
        with Session.find(settings.load(given, config)) as session:
            try:
                return function(session, **options)
            except PilotageError as error:
                raise _by_options(error) from None

    for row in reversed(list(settings.TABLE.options())):
        command = click.option(
            *row.options, row.parameter, metavar=_METAVARS.get(row.key, "TEXT"), help=f"{_capital(row.help)}."
        )(command)
    return config_option(command)  # type: ignore[return-value]


def _by_options(error: PilotageError) -> PilotageError:
    """The server's refusal of a field, naming the option that it was given with: "nJobs: " becomes "--jobs: ".

    Also an element of a list: "outputs[0] is …" becomes "--output is …", and "command[1]: " becomes "the command: ".
    """
    context = click.get_current_context()
    if error.name != "BAD_REQUEST":
        return error
    detail = error.detail
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given:
            shown = parameter.opts[0] if isinstance(parameter, click.Option) else f"the {name}"
            field = rf"(?:the )?{re.escape(wire_name(name))}(?:\[[0-9]+\])?"
            detail = re.sub(rf"(^|; |(?<= in )){field}(?=[.: ])", rf"\1{shown}", detail)
    return PilotageError(error.name, detail, **error.fields)


def pilot_settings(texts: Iterable[str]) -> dict[str, str]:
    """What the option --pilot-setting was given; whether there are such settings is the server's and the pilots' to say."""
    pairs = [text.partition("=") for text in texts]
    wrong = ["".join(pair) for pair in pairs if not pair[1]]
    if wrong:
        raise click.UsageError(
            f"--pilot-setting {one_line(wrong[0])}: write SECTION.KEY=VALUE, as limits.looping_seconds=3600"
        )
    return {name.strip(): value.strip() for name, _, value in pairs}


def say_next(command: str) -> None:
    """The command that comes next, `pilotage NOUN VERB ...`, with the options that said which server is meant."""
    given = click.get_current_context().params
    names = {row.parameter: row.options[0] for row in settings.TABLE.options()} | {_CONFIG: "--config"}
    which = [f"{option} {shlex.quote(str(given[name]))}" for name, option in names.items() if given.get(name)]
    # Behind the verb: what stands behind `--` is the task's.
    words = command.split(" ", 3)
    tables.say(" ".join(["next:", *words[:3], *which, *words[3:]]))


def config_option(function: F) -> F:
    return click.option(
        "--config", _CONFIG, type=click.Path(path_type=Path), metavar="FILE", help="One more settings file."
    )(function)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def limit_option(function: F) -> F:
    return click.option(
        "--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Rows to show; 0: all."
    )(function)


def print_list(
    views: Iterable[Any], columns: Sequence[tables.Column], limit: int, as_json: bool, nothing: str
) -> None:
    """The first `limit` rows as a table or a JSON array, and a remark if there are more; `nothing` tells of an empty list."""
    rows = list(islice(views, limit + 1)) if limit else list(views)
    shown = rows[:limit] if limit else rows
    if as_json:
        tables.show(shown)
    elif shown:
        tables.print_table(shown, columns)
    else:
        tables.say(nothing)
    if len(shown) < len(rows):
        tables.say(f"There are more than these {limit}; --limit 0 shows all.")


def print_explanation(told: Explanation, as_json: bool) -> None:
    """Why something is where it is: a sentence per line, and what each queue has to say."""
    if as_json:
        return tables.show(told)
    what = (
        f"Job {told.job_id}, number {told.job_nr} of task {told.task},"
        if told.job_id
        else f"Task {told.task}"
    )
    tables.write(one_line(f"{what} is {told.state} since {tables.when(told.since)} (UTC):"))
    for reason in told.reasons:
        tables.write(one_line(f"- {reason}"))
    if told.queues:
        tables.write("")
        alike = Counter(tuple(fit.missing) for fit in told.queues if fit.missing)
        many = {missing: n for missing, n in alike.items() if n > MANY_QUEUES}
        listed = [fit for fit in told.queues if tuple(fit.missing) not in many]
        if listed:
            tables.print_table(listed, _QUEUES)
        for missing, n in many.items():
            tables.write(one_line(f"{n}{' further' if listed else ''} queues: {'; '.join(missing)}"))
    return None
