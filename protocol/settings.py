"""Settings are one table per program: its rows give defaults, the check of ini files, environment, options and documentation.

A value comes from the last of: default, /etc/pilotage/PROGRAM.ini, ~/.config/pilotage/PROGRAM.ini, ./PROGRAM.ini, the file of
--config, the environment (PILOTAGE_<SECTION>__<KEY>), the command line; and it remembers from which. What nobody knows stops the
start: a misspelt key that is passed over in silence costs its writer an afternoon.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Optional, Union

from protocol import ini
from protocol.errors import PilotageError
from protocol.ini import normal
from protocol.redaction import HIDDEN, is_secret_name, one_line
from protocol.values import (
    Bounds,
    Places,
    Type,
    Value,
    as_text,
    holds_password,
    in_seconds,
    nearest,
    parse,
    without_password,
)

SYSTEM_DIRECTORY = Path("/etc/pilotage")
ENVIRONMENT_PREFIX = "PILOTAGE_"

SECTIONS = frozenset(
    (
        "node_settings",
        "logging",
        "limits",
        "heartbeat",
        "get_job",
        "connection",
        "copytools",
        "experiment",
        "spd",
    )
    + ("daemon", "server", "database", "queue", "executor", "reaper", "closer", "client", "rabbit_settings")
    + (
        "archive",
        "availability",
        "brokerage",
        "cache",
        "catalogue",
        "healing",
        "patterns",
        "payload",
        "validation",
        "services",
    )
)
"""The sections of all our programs: an environment variable for one of them is no mistake when another program sees it."""

LONGEST_SECRET = 65536
"""Bytes of a file that holds a token or password."""

QUEUE, TASK, EXPERIMENT = "queue", "task", "experiment"
"""The levels above files and command line that may override a row which allows them to."""

Name = tuple[str, str]
"""Section and key of a setting in normal form."""


@dataclass(frozen=True)
class Setting:
    """One setting; section and key are spelt here as documentation shows them, the unit of a number is in the key."""

    section: str
    key: str
    type: Type
    default: Union[str, int, float, bool]
    help: str
    minimum: Optional[float] = None
    maximum: Optional[float] = None
    choices: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    """Further keys that mean the same, as the seeds' SERVER_ADRESS."""
    options: tuple[str, ...] = ()
    """Options of the command line, as ("-q", "--queue")."""
    secret: bool = False
    """Its value is never shown, and a file that holds one must be readable by its owner only."""
    overridable: tuple[str, ...] = ()
    """The levels (QUEUE, TASK, EXPERIMENT) that may override it."""

    @property
    def name(self) -> Name:
        return normal(self.section), normal(self.key)

    @property
    def parameter(self) -> str:
        """The name of the option's value in a program: the keys of `load`'s command line are these."""
        return "__".join(self.name)

    @property
    def environment(self) -> str:
        return f"{ENVIRONMENT_PREFIX}{self.parameter}".upper()

    @property
    def title(self) -> str:
        return f"[{self.section}] {self.key}"

    def parse(self, text: str, places: Places) -> Value:
        is_time = self.key.lower().endswith("_seconds")
        try:
            bounds = Bounds(self.minimum, self.maximum, self.choices)
            return parse(self.type, in_seconds(text) if is_time else text, bounds, places)
        except ValueError as error:
            raise ValueError(f"{error}; with a unit: 90s, 45m, 12h, 30d" if is_time else str(error)) from None

    def is_secret(self, value: Value) -> bool:
        """Whether this very value is a secret; a database address is one only if it holds a password."""
        if self.type is Type.DATABASE_URL:
            return self.secret and holds_password(str(value))
        return self.secret and value not in ("", None, ())


class Table:
    """The rows of one program, and what else may stand in its files."""

    def __init__(
        self,
        program: str,
        rows: Sequence[Setting],
        *,
        ignored: Optional[Mapping[str, Sequence[str]]] = None,
        ignored_because: str = "",
        open_sections: Sequence[str] = (),
        sisters: Sequence[Setting] = (),
    ) -> None:
        """`ignored`: sections with keys that are accepted and ignored with a notice. `open_sections`: beginnings such as
        "copytool:" of sections whose keys somebody else checks. `sisters`: rows of another program with a section of the same
        name; both see the same environment.
        """
        self.program = program
        self.rows = tuple(rows)
        self.ignored = {section: tuple(keys) for section, keys in (ignored or {}).items()}
        self.ignored_because = ignored_because
        self.open_sections = tuple(open_sections)
        self.sisters = frozenset(row.name for row in sisters)
        self.names: dict[Name, Setting] = {}
        for row in self.rows:
            for key in (row.key, *row.synonyms):
                name = (normal(row.section), normal(key))
                if name in self.names:
                    raise ValueError(f"{row.title} is in the table of {program} twice")
                self.names[name] = row
        strangers = self.sections() - SECTIONS
        if strangers:
            raise ValueError(f"protocol.settings.SECTIONS lacks {', '.join(sorted(strangers))}")

    def sections(self) -> set[str]:
        return {section for section, _ in self.names} | set(self.ignored)

    def is_open(self, section: str) -> bool:
        return section.startswith(self.open_sections) if self.open_sections else False

    def knows(self, section: str, key: str) -> bool:
        return (section, key) in self.names or key in self.ignored.get(section, ()) or self.is_open(section)

    def options(self) -> Iterator[Setting]:
        """The rows that have an option of the command line, for the program's cli.py."""
        return (row for row in self.rows if row.options)


@dataclass(frozen=True)
class Settings:
    """What a program was told, checked and unchangeable. `settings.integer("limits", "lifetime_seconds")` at call sites."""

    table: Table
    values: Mapping[Name, Value]
    origins: Mapping[Name, str]
    open_values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    """Sentences for the log, once it is set up."""

    def __getitem__(self, name: Name) -> Any:
        """The value as it is; the accessors below are the same with a type."""
        return self.values[name]

    def text(self, section: str, key: str) -> str:
        return str(self._typed(section, key, str))

    def integer(self, section: str, key: str) -> int:
        return int(self._typed(section, key, int))

    def number(self, section: str, key: str) -> float:
        return float(self._typed(section, key, (int, float)))

    def flag(self, section: str, key: str) -> bool:
        return bool(self._typed(section, key, bool))

    def items(self, section: str, key: str) -> tuple[str, ...]:
        return tuple(self._typed(section, key, tuple))

    def optional_path(self, section: str, key: str) -> Optional[Path]:
        """None where it was not set."""
        value = self.values[section, key]
        return None if value is None else Path(self._typed(section, key, Path))

    def path(self, section: str, key: str) -> Path:
        """For a path that the caller cannot do without."""
        value = self.optional_path(section, key)
        if value is None:
            row = self.table.names[section, key]
            raise PilotageError(
                "BAD_SETTINGS", f"{row.title} must be set ({', '.join((row.environment, *row.options))})"
            )
        return value

    def origin(self, section: str, key: str) -> str:
        """Where the value comes from, as "default" or "/etc/pilotage/pilot.ini line 7"."""
        return self.origins[section, key]

    def is_default(self, section: str, key: str) -> bool:
        return self.origins[section, key] == "default"

    def open_section(self, section: str) -> Mapping[str, str]:
        """The keys of a section such as "copytool:xrdcp", unchecked; empty where nobody wrote one."""
        return self.open_values.get(section, MappingProxyType({}))

    def _typed(self, section: str, key: str, kind: Union[type, tuple[type, ...]]) -> Any:
        value = self.values[section, key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"[{section}] {key} is a {type(value).__name__}")
        return value


# -- finding and loading --------------------------------------------------------------------------------------------------------


def search(
    program: str,
    environ: Mapping[str, str],
    start: Path,
    config: Optional[Path] = None,
    system: Path = SYSTEM_DIRECTORY,
) -> list[Path]:
    """The files to read, the strongest last. Those of the three usual places need not exist; the one of --config must."""
    name = f"{program}.ini"
    home = _home(environ)
    usual = [system / name, *([home / ".config" / "pilotage" / name] if home else []), start / name]
    found = [path for path in usual if os.path.lexists(path)]
    chosen = [_path_of_config(config, Places(home, start))] if config else []
    if start / name in found and start / name not in chosen:
        _refuse_planted(start / name)
    return found + chosen


def load(
    table: Table,
    files: Iterable[Path],
    environ: Mapping[str, str],
    command_line: Optional[Mapping[str, object]] = None,
    start: Optional[Path] = None,
) -> Settings:
    """Read everything in order. `command_line` maps a row's `parameter` to its value, None where the option was not given.

    Raises BAD_SETTINGS with one sentence about the first thing that is wrong.
    """
    loading = _Loading(table, Places(_home(environ), start or Path.cwd()))
    for path in files:
        loading.take(_from_file(table, path))
    loading.take(_from_environment(table, environ))
    loading.take(_from_command_line(table, command_line or {}))
    return loading.settings()


def load_program(
    table: Table,
    command_line: Optional[Mapping[str, object]] = None,
    config: Optional[Path] = None,
    environ: Optional[Mapping[str, str]] = None,
    start: Optional[Path] = None,
    system: Path = SYSTEM_DIRECTORY,
) -> Settings:
    """What a program's cli.py calls, through its own settings.py: search, then load, with this process's environment."""
    environ = os.environ if environ is None else environ
    start = start or Path.cwd()
    return load(table, search(table.program, environ, start, config, system), environ, command_line, start)


def override(
    settings: Settings, level: str, values: Mapping[str, Mapping[str, object]], origin: str
) -> Settings:
    """The settings as a queue, task or experiment (`level`) wants them: `values` is section → key → value.

    It may come as it was read from JSON; a null sets nothing. `origin` names who asks, as "queue SPD_CPU". Raises BAD_SETTINGS
    for what is unknown, wrong, or not for this level to say.
    """
    table, given = settings.table, []
    for section, keys in values.items():
        if not isinstance(keys, Mapping):
            raise PilotageError("BAD_SETTINGS", one_line(f"{origin}: [{section}] must hold keys with values"))
        for key, value in keys.items():
            row = _overridable(table, level, section, key, origin)
            if not isinstance(value, (str, int, float, list, tuple, type(None))):
                raise PilotageError(
                    "BAD_SETTINGS", one_line(f"{origin}: {row.title} must be a {row.type.value}")
                )
            if value is not None:
                given.append(_Given(*row.name, as_text(value), one_line(origin)))
    return _changed(settings, given)


def with_defaults(settings: Settings, values: Mapping[str, object], origin: str) -> Settings:
    """The settings with other defaults, section.key → value: they hold for what nobody has set. BAD_SETTINGS for unknown ones."""
    given = []
    for name, value in values.items():
        section, _, key = name.partition(".")
        row = settings.table.names.get((normal(section), normal(key)))
        if row is None:
            raise PilotageError("BAD_SETTINGS", one_line(f"{origin}: there is no setting {name}"))
        if settings.is_default(*row.name):
            given.append(_Given(*row.name, as_text(value), one_line(origin)))
    return _changed(settings, given)


def _changed(settings: Settings, given: Iterable[_Given]) -> Settings:
    loading = _Loading(settings.table, Places(None, None), settings)
    loading.take(given)
    return loading.settings()


def _overridable(table: Table, level: str, section: str, key: str, origin: str) -> Setting:
    row = table.names.get((normal(section), normal(key)))
    if row is None or level not in row.overridable:
        allowed = ", ".join(row.title for row in table.rows if level in row.overridable) or "nothing"
        title = one_line(f"[{section}] {key}")
        raise PilotageError(
            "BAD_SETTINGS", f"{one_line(origin)}: {title} is not for the {level} to set; it may set {allowed}"
        )
    return row


def read_secret(path: Path) -> str:
    """The one line of a token or password file. It must be a plain file that only its owner can read: BAD_SETTINGS if not."""
    shown = one_line(str(path))
    try:
        data, mode = ini.bytes_of(path, LONGEST_SECRET + 1)
    except (OSError, ValueError) as error:
        raise PilotageError("BAD_SETTINGS", f"{shown} cannot be read: {ini.reason_of(error)}") from None
    if mode & 0o077:
        raise PilotageError(
            "BAD_SETTINGS", f"{shown} holds a secret but is not private: {_chmod(path, mode)}"
        )
    text = data.decode("utf-8", "replace").strip()
    if not text or len(data) > LONGEST_SECRET or text != one_line(text) or "\ufffd" in text:
        raise PilotageError("BAD_SETTINGS", f"{shown} must hold one line with the secret, and nothing else")
    return text


class _Given(NamedTuple):
    """One value that somebody gave; `mode` are the permission bits of the file it stands in."""

    section: str
    key: str
    text: str
    origin: str
    mode: int = 0
    file: str = ""


class _Loading:
    """The values so far. `take` gets what one source says; the next source is stronger."""

    def __init__(self, table: Table, places: Places, base: Optional[Settings] = None) -> None:
        self.table = table
        self.places = places
        self.values: dict[Name, Value] = dict(base.values) if base else {}
        self.origins: dict[Name, str] = dict(base.origins) if base else {}
        self.open: dict[str, dict[str, str]] = (
            {k: dict(v) for k, v in base.open_values.items()} if base else {}
        )
        self.ignored: list[_Given] = []
        self.notices = base.notices if base else ()
        if base is None:
            for row in table.rows:
                self.values[row.name] = self._default(row)
                self.origins[row.name] = "default"

    def _default(self, row: Setting) -> Value:
        if row.type is Type.PATH and self.places.home is None and as_text(row.default).startswith("~"):
            return None  # an account without a home must set it; whoever needs it says so
        return row.parse(as_text(row.default), self.places)

    def take(self, source: Iterable[_Given]) -> None:
        seen: dict[Name, _Given] = {}
        for given in source:
            row = self.table.names.get((given.section, given.key))
            if row:
                value = self._value(row, given)
                before = seen.setdefault(row.name, given)
                if before.text != given.text:
                    raise _bad(
                        given,
                        f"{given.key.upper()} says {_display(row, value)} but {before.key.upper()} says otherwise; "
                        f"both mean {row.title} ({before.origin})",
                    )
                self.values[row.name], self.origins[row.name] = value, given.origin
            elif self.table.is_open(given.section):
                if is_secret_name(given.key):
                    _refuse_exposed(given, f"[{given.section}] {given.key} is a secret")
                self.open.setdefault(given.section, {})[given.key] = given.text
                self.origins[given.section, given.key] = given.origin
            else:
                self.ignored.append(given)

    def _value(self, row: Setting, given: _Given) -> Value:
        try:
            value = row.parse(given.text, self.places)
        except ValueError as error:
            told = (
                "holds a secret of the wrong form"
                if row.secret and row.type is not Type.DATABASE_URL
                else str(error)
            )
            raise _bad(given, f"{given.key.upper()} {told}") from None
        if row.is_secret(value):
            _refuse_exposed(given, f"{row.title} holds a secret")
        return value

    def settings(self) -> Settings:
        return Settings(
            self.table,
            MappingProxyType(self.values),
            MappingProxyType(self.origins),
            MappingProxyType({section: MappingProxyType(keys) for section, keys in self.open.items()}),
            self.notices + self._notice(),
        )

    def _notice(self) -> tuple[str, ...]:
        """One sentence, however many files and keys it is about."""
        if not self.ignored:
            return ()
        sections = ", ".join(sorted({f"[{given.section}]" for given in self.ignored}))
        files = sorted({given.file or given.origin for given in self.ignored})
        notice = f"{sections} in {', '.join(files)} is ignored: {self.table.ignored_because}"
        exposed = [given for given in self.ignored if is_secret_name(given.key) and given.mode & 0o077]
        if exposed:
            notice += f"; the {exposed[0].key.upper()} there can be read by others: take it out, or {_chmod(exposed[0].file)}"
        return (notice,)


def _from_file(table: Table, path: Path) -> Iterator[_Given]:
    file = ini.read(path)
    shown = one_line(str(path))
    for section, line in file.sections:
        if section not in table.sections() and not table.is_open(section):
            raise PilotageError(
                "BAD_SETTINGS",
                f"{shown} line {line}: unknown section [{one_line(section)}]; "
                + _instead(section, sorted(table.sections()), "the sections are"),
            )
    for entry in file.entries:
        given = _Given(entry.section, entry.key, entry.text, f"{shown} line {entry.line}", file.mode, shown)
        if not table.knows(entry.section, entry.key):
            raise _bad(
                given,
                f"unknown key {one_line(entry.key).upper()} in [{entry.section}]; {_better(table, entry.section, entry.key)}",
            )
        yield given


def _from_environment(table: Table, environ: Mapping[str, str]) -> Iterator[_Given]:
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        section, mark, key = variable[len(ENVIRONMENT_PREFIX) :].partition("__")
        section, key = normal(section), normal(key)
        if not mark or section in SECTIONS - table.sections():
            continue
        for opening in table.open_sections:  # no shell variable can have a colon in its name
            if section.startswith(normal(opening.replace(":", "_"))):
                section = opening + section[len(opening) :]
        given = _Given(section, key, environ[variable].strip(), f"environment {one_line(variable)}")
        if not table.knows(section, key):
            if (section, key) in table.sisters:
                continue
            known = {row.parameter: row.environment for row in table.rows}
            near = nearest(f"{section}__{key}", list(known))
            hint = f"did you mean {known[near]}?" if near else f"a name is {ENVIRONMENT_PREFIX}SECTION__KEY"
            raise PilotageError("BAD_SETTINGS", f"environment: unknown setting {one_line(variable)}; {hint}")
        yield given


def _from_command_line(table: Table, command_line: Mapping[str, object]) -> Iterator[_Given]:
    rows = {row.parameter: row for row in table.rows}
    for parameter, value in command_line.items():
        row = rows[parameter]
        if value is not None:
            option = row.options[0] if row.options else parameter
            yield _Given(*row.name, as_text(value), f"command line {option}")


def _better(table: Table, section: str, key: str) -> str:
    """What the writer of an unknown key may have meant: a key of this section, or the same key of another one."""
    elsewhere = [row.section for name, row in table.names.items() if name[1] == key]
    if elsewhere:
        return f"it belongs into [{elsewhere[0]}]"
    return _instead(key.upper(), [k.upper() for k in _keys_of(table, section)], "its keys are")


def _keys_of(table: Table, section: str) -> list[str]:
    return sorted(
        [key for row_section, key in table.names if row_section == section]
        + list(table.ignored.get(section, ()))
    )


def _instead(word: str, known: Sequence[str], otherwise: str) -> str:
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"{otherwise} {', '.join(known[:20])}"


def _bad(given: _Given, what: str) -> PilotageError:
    return PilotageError("BAD_SETTINGS", f"{given.origin}: {what}")


def _refuse_exposed(given: _Given, what: str) -> None:
    if given.mode & 0o077:
        raise _bad(given, f"{what}, but the file is not private: {_chmod(given.file, given.mode)}")


def _chmod(path: object, mode: int = 0) -> str:
    seen = f" (its mode is {stat.S_IMODE(mode):04o})" if mode else ""
    return f"chmod 600 {one_line(str(path))}{seen}"


def _refuse_planted(path: Path) -> None:
    """A file that a stranger left in a directory open to all (as /tmp) must not tell us which server to trust."""
    try:
        directory, owner = os.stat(path.parent), os.lstat(path).st_uid
    except OSError:
        return  # gone again, or unreadable: reading it will say so
    if directory.st_mode & stat.S_IWOTH and owner not in (os.geteuid(), 0):
        raise PilotageError(
            "BAD_SETTINGS",
            f"{one_line(str(path))} belongs to another user and lies in a directory that anybody may write to: "
            "start elsewhere, or name it with --config if you trust it",
        )


def _path_of_config(config: Path, places: Places) -> Path:
    try:
        return Path(str(parse(Type.PATH, str(config), Bounds(), places)))
    except ValueError as error:
        raise PilotageError("BAD_SETTINGS", f"command line --config: the path {error}") from None


def _home(environ: Mapping[str, str]) -> Optional[Path]:
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        return Path.home()
    except RuntimeError:  # an account without an entry, as in some containers
        return None


# -- showing --------------------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """One line of `config show`."""

    section: str
    key: str
    value: str
    origin: str
    help: str


def describe(settings: Settings) -> list[Shown]:
    """Each setting with its value, or "(hidden)", and where the value comes from."""
    lines = [
        Shown(
            row.section,
            row.key,
            _display(row, settings.values[row.name]),
            settings.origins[row.name],
            row.help,
        )
        for row in settings.table.rows
    ]
    for section, keys in settings.open_values.items():
        for key, text in keys.items():
            value = HIDDEN if is_secret_name(key) else text
            lines.append(Shown(section, key, one_line(value), settings.origins[section, key], ""))
    return lines


def _display(row: Setting, value: Value) -> str:
    if row.is_secret(value):
        return without_password(str(value)) if row.type is Type.DATABASE_URL else HIDDEN
    return one_line(as_text(value))


def markdown(table: Table) -> str:
    """The table as the documentation shows it, a part per section."""
    parts = []
    for section in dict.fromkeys(row.section for row in table.rows):
        parts.append(
            f"### [{section}]\n\n| Key | Type | Default | Option | Meaning |\n| --- | --- | --- | --- | --- |"
        )
        parts[-1] += "".join(_markdown_row(row) for row in table.rows if row.section == section) + "\n"
    return "\n".join(parts)


def _markdown_row(row: Setting) -> str:
    key = ", ".join(f"`{name}`" for name in (row.key, *row.synonyms))
    kind = row.type.value
    if row.choices:
        kind = ", ".join(row.choices)
    elif row.minimum is not None and row.maximum is not None:
        kind += f", {row.minimum:g} to {row.maximum:.15g}"
    elif row.minimum is not None:
        kind += f", at least {row.minimum:g}"
    default = f"`{as_text(row.default)}`" if as_text(row.default) else ""
    options = ", ".join(f"`{option}`" for option in row.options)
    meaning = row.help + (f" (may be set per {' and per '.join(row.overridable)})" if row.overridable else "")
    return (
        "\n| "
        + " | ".join(cell.replace("|", "\\|") for cell in (key, kind, default, options, meaning))
        + " |"
    )
