"""A storage by its site's own commands (local site mover): one that gets a file and one that puts it, and more if there are."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

from copytools.base import Checksums, Deadline, FileTool, Option, Stored, shown
from copytools.commands import died, failed, run
from copytools.failures import DIED
from copytools.linking import second_name
from copytools.remote import Outgoing, RemoteTool, Unclear, path_in
from protocol import templates
from protocol.errors import PilotageError
from protocol.files import ALGORITHMS
from protocol.values import Bounds, Type, as_text

PLACEHOLDERS = {
    "local": "path of the file on this node",
    "url": "address on the storage, as it is registered",
    "path": "the path in that address, with nothing quoted",
    "size": "bytes; of put_command alone",
    "checksum": "ALGORITHM:DIGITS; of put_command alone",
}
_OF = {
    "get_command": ("local", "url", "path"),
    "put_command": tuple(PLACEHOLDERS),
    **dict.fromkeys(("stat_command", "checksum_command", "remove_command"), ("url", "path")),
}
"""Which placeholders each command may have."""


class Tool(RemoteTool, FileTool):
    """Commands are split into words as a shell does it, but no shell runs them: a placeholder is a part of one argument."""

    if_named = True

    OPTIONS = {
        "schemes": Option(
            Type.LIST, "file, root, davs, https, srm, gsiftp", "addresses that the commands take"
        ),
        "get_command": Option(Type.TEXT, "", "makes the new file {local} of {url} or {path}"),
        "put_command": Option(
            Type.TEXT, "", "stores {local}, which it may take away, never over another file"
        ),
        "stat_command": Option(Type.TEXT, "", "prints the size in bytes of what is stored"),
        "checksum_command": Option(Type.TEXT, "", "prints the checksum of what is stored"),
        "remove_command": Option(Type.TEXT, "", "removes what was not stored well"),
        "checksum_algorithm": Option(
            Type.CHOICE, "md5", "of checksum_command and {checksum}", Bounds(choices=tuple(ALGORITHMS))
        ),
        "exit_codes": Option(Type.LIST, "", "what they mean: 2:ENOENT, 17:EEXIST; others mean EIO"),
    }

    def __init__(self, options: Mapping[str, object]) -> None:
        super().__init__(options)
        self._commands = {name: _words(name, as_text(self.options[name])) for name in _OF}
        self._meanings = dict(map(_meaning, _items(self.options["exit_codes"])))
        self.schemes = tuple(each.lower() for each in _items(self.options["schemes"]))
        asks = bool(self._commands["checksum_command"]) or any(
            "{checksum}" in word for word in self._commands["put_command"]
        )
        self.told_checksum = as_text(self.options["checksum_algorithm"]) if asks else ""

    def unusable(self) -> Optional[str]:
        for name in ("get_command", "put_command"):
            if not self._commands[name]:
                return f"[copytool:lsm] {name} is not set"
        absent = [words[0] for words in self._commands.values() if words and shutil.which(words[0]) is None]
        return f"{shown(' and '.join(absent))} cannot be run" if absent else None

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        self._run("get_command", source, deadline, growing=to, local=str(to))

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> Optional[Stored]:
        checksum = f"{self.told_checksum}:{file.checksums[self.told_checksum]}" if self.told_checksum else ""
        with second_name(file.descriptor, file.place) as local:
            try:
                self._run(
                    "put_command", target, deadline, local=str(local), size=str(file.size), checksum=checksum
                )
            except OSError as error:
                if self._commands["stat_command"]:
                    raise
                raise Unclear(error.errno, error.strerror) from error
        if self._commands["stat_command"]:
            return None  # and so asked for
        return Stored(file.size, self._checksum(target, deadline))

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        if not self._commands["stat_command"]:
            return None
        try:
            text = self._run("stat_command", url, deadline)
        except FileNotFoundError:
            return None
        size = re.search(r"\b[0-9]+\b", text)
        if size is None:
            raise OSError(errno.EIO, f"stat_command printed no size: {text[:200]}")
        return Stored(int(size[0]), self._checksum(url, deadline))

    def look(self, url: str, timeout: float) -> Stored:
        if not self._commands["stat_command"]:
            raise PilotageError(
                "UNKNOWN_COPYTOOL", "[copytool:lsm] stat_command is not set: it cannot look at a file"
            )
        return super().look(url, timeout)

    def remove(self, url: str, deadline: Deadline) -> None:
        if not self._commands["remove_command"]:
            raise OSError(errno.EOPNOTSUPP, "[copytool:lsm] remove_command is not set")
        try:
            self._run("remove_command", url, deadline)
        except FileNotFoundError:
            pass

    def _checksum(self, url: str, deadline: Deadline) -> Checksums:
        if not self._commands["checksum_command"]:
            return {}
        text = self._run("checksum_command", url, deadline)
        digits = ALGORITHMS[self.told_checksum]
        found = re.search(rf"\b[0-9a-fA-F]{{{digits}}}\b", text)
        if found is None:
            raise OSError(errno.EIO, f"checksum_command printed no {self.told_checksum}: {text[:200]}")
        return {self.told_checksum: found[0].lower()}

    def _run(
        self, name: str, url: str, deadline: Deadline, growing: Optional[Path] = None, **more: str
    ) -> str:
        """What the command printed; OSError, as the option exit_codes says it, if it failed."""
        values = {"url": url, "path": self._path(url), **more}
        command = [templates.fill(word, values) for word in self._commands[name]]
        done = run(command, deadline, {}, growing=growing)
        if died(done):
            raise failed(DIED, done)
        if done.code:
            raise failed(self._meanings.get(done.code, errno.EIO), done)
        return done.text

    def _path(self, url: str) -> str:
        """Absolute: no argument that is a path begins with a dash."""
        if url.partition(":")[0].lower() == "file":
            return str(self.path_of(url))
        return path_in(url)


def _items(value: object) -> Tuple[str, ...]:
    assert isinstance(value, tuple)
    return value


def _words(name: str, command: str) -> List[str]:
    allowed = {each: PLACEHOLDERS[each] for each in _OF[name]}
    try:
        words = shlex.split(command)
        for word in words:
            templates.check(word, allowed, name)
    except (ValueError, PilotageError) as error:
        detail = error.detail if isinstance(error, PilotageError) else str(error)
        raise PilotageError("BAD_SETTINGS", f"[copytool:lsm] {name}: {detail}") from None
    return words


def _meaning(item: str) -> Tuple[int, int]:
    """One item of exit_codes: 2:ENOENT."""
    code, _, word = (part.strip() for part in item.partition(":"))
    number = getattr(errno, word, None) if word.startswith("E") else None
    if not code.isdecimal() or not 0 < int(code) < 256 or number is None:
        detail = f"[copytool:lsm] exit_codes: {shown(item[:60])} is no exit code and name of an error, such as 2:ENOENT"
        raise PilotageError("BAD_SETTINGS", detail)
    return int(code), number
