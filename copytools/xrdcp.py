"""Files on XRootD servers, by the commands xrdcp and xrdfs: root://host:port//path."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple
from urllib.parse import unquote, urlsplit

from copytools.base import Deadline, Option, Stored, shown
from copytools.commands import Done, died, failed, run
from copytools.failures import CORRUPTED, DIED, OVERLOADED, REFUSED, UNREACHABLE
from copytools.remote import Outgoing, RemoteTool, refuse_part
from protocol.errors import PilotageError
from protocol.values import Bounds, Type, as_text

# What the server says is surer than the exit code, which is 54 for nearly all of it. Sources: XProtocol.hh (kXR_...) and trials.
_SAID = (
    (r"\[3011\]|\[3013\].*no such file", errno.ENOENT),
    (r"\[3018\]|file exists", errno.EEXIST),
    (r"\[30(?:10|30)\]|\[3012\].*(?:permission denied|not authorized)", REFUSED),
    (r"\[3009\]", errno.EIO),
    (r"\[30(?:24|22|21)\]", OVERLOADED),
    (r"checksum (?:error|mismatch)|\[3019\]", CORRUPTED),
    (r"no space left on device", errno.ENOSPC),
    (r"disk quota exceeded", errno.EDQUOT),
    (r"read-only file system", errno.EROFS),
    (r"(?:socket|operation|connection) (?:timeout|expired|timed out)", UNREACHABLE),
    (r"auth failed", REFUSED),
    (r"connection (?:error|refused|reset)|invalid address|\[FATAL\]", UNREACHABLE),
)
_CODES = {50: errno.EIO, 51: UNREACHABLE, 52: REFUSED, 53: CORRUPTED}
_NO_CHECKSUM = re.compile(r"\[301[23]\].*(?:checksum|chksum).*not supported|checksum.*not supported", re.I)


class Tool(RemoteTool):
    """Uploads are verified by the checksum that the server calculates of what it has."""

    schemes = ("root", "roots", "xroot", "xroots")
    told_checksum = "adler32"

    OPTIONS = {
        "proxy_file": Option(Type.PATH, "", "X.509 proxy; default: X509_USER_PROXY, then /tmp/x509up_uUID"),
        "token_file": Option(Type.PATH, "", "bearer token; default: BEARER_TOKEN_FILE"),
        "keytab": Option(Type.PATH, "", "shared secrets (sss); default: XrdSecSSSKT"),
        "ca_directory": Option(Type.PATH, "", "certificate authorities; default: X509_CERT_DIR"),
        "connect_seconds": Option(
            Type.INTEGER, "5", "how long a server may take to be reached", Bounds(1, 600)
        ),
        "silent_seconds": Option(
            Type.INTEGER, "60", "how long a server may say nothing in the middle", Bounds(1, 3600)
        ),
    }

    def unusable(self) -> Optional[str]:
        absent = [program for program in ("xrdcp", "xrdfs") if shutil.which(program) is None]
        return f"{' and '.join(absent)} not on PATH; packages xrootd-client" if absent else None

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        size = self._size(*_taken_apart(source), deadline)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file on the server")
        done = self._run(["xrdcp", "--nopbar", _written(source), str(to)], deadline, growing=to)
        if done.code:
            raise _error(done)
        refuse_part(to, size)

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> Optional[Stored]:
        theirs = {"adler32": file.checksums["adler32"]}
        command = ["xrdcp", "--nopbar", "--posc", "--cksum", f"adler32:{theirs['adler32']}"]
        done = self._run([*command, file.path, _written(target)], deadline, (file.descriptor,))
        if done.code and _NO_CHECKSUM.search(done.text):
            return None
        if done.code:
            raise _error(done)
        return Stored(file.size, theirs)

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        host, path = _taken_apart(url)
        size = self._size(host, path, deadline)
        return None if size is None else Stored(size, self._checksum(host, path, deadline))

    def remove(self, url: str, deadline: Deadline) -> None:
        host, path = _taken_apart(url)
        done = self._run(["xrdfs", host, "rm", path], deadline)
        if done.code and _error(done).errno != errno.ENOENT:
            raise _error(done)

    def _size(self, host: str, path: str, deadline: Deadline) -> Optional[int]:
        """None if there is no such file."""
        done = self._run(["xrdfs", host, "stat", path], deadline)
        size = re.search(r"\bSize:\s+(\d+)", done.text)
        if size is not None and not done.code:
            return int(size[1])
        error = _error(done)
        if error.errno == errno.ENOENT:
            return None
        raise error

    def _checksum(self, host: str, path: str, deadline: Deadline) -> Dict[str, str]:
        """Not every server calculates any, or this one."""
        done = self._run(["xrdfs", host, "query", "checksum", f"{path}?cks.type=adler32"], deadline)
        found = re.search(r"\badler32 ([0-9a-fA-F]{8})\b", done.text)
        return {"adler32": found[1].lower()} if found and not done.code else {}

    def _run(
        self,
        command: Sequence[str],
        deadline: Deadline,
        keep_open: Tuple[int, ...] = (),
        growing: Optional[Path] = None,
    ) -> Done:
        return run(command, deadline, self._environment(), keep_open, growing)

    def _environment(self) -> Mapping[str, str]:
        """xrdcp waits for minutes for a server that is not there unless it is told otherwise."""
        connect, silent = as_text(self.options["connect_seconds"]), as_text(self.options["silent_seconds"])
        given = {
            "X509_USER_PROXY": as_text(self.options["proxy_file"]),
            "BEARER_TOKEN_FILE": as_text(self.options["token_file"]),
            "XrdSecSSSKT": as_text(self.options["keytab"]),
            "X509_CERT_DIR": as_text(self.options["ca_directory"]),
            "XRD_CONNECTIONRETRY": "1",
            "XRD_CONNECTIONWINDOW": connect,
            "XRD_STREAMERRORWINDOW": connect,
            "XRD_STREAMTIMEOUT": silent,
            "XRD_REQUESTTIMEOUT": silent,
            "XRD_TIMEOUTRESOLUTION": "1",
        }
        return {name: value for name, value in given.items() if value}


def _taken_apart(url: str) -> Tuple[str, str]:
    """What xrdfs wants: the server, and the path there with nothing quoted."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{shown(url[:300])} is no URL: {error}") from None
    path = unquote(parts.path)[1:]
    if not parts.hostname or not path.strip("/"):
        raise PilotageError(
            "BAD_PATH", f"{shown(url[:300])} names no server or no file: root://host:port//path"
        )
    if "?" in path or any(not character.isprintable() for character in path) or ".." in path.split("/"):
        raise PilotageError(
            "BAD_PATH", f"{shown(url[:300])}: XRootD cannot have ?, .. or control characters in a name"
        )
    return f"{parts.scheme}://{parts.netloc}", path


def _written(url: str) -> str:
    """As xrdcp wants it: nothing in the path is quoted, and what follows a ? goes to the server as it is."""
    host, path = _taken_apart(url)
    query = urlsplit(url).query
    return f"{host}/{path}" + (f"?{query}" if query else "")


def _error(done: Done) -> OSError:
    if died(done):
        return failed(DIED, done)
    said = next((number for pattern, number in _SAID if re.search(pattern, done.text, re.I)), None)
    return failed(said or _CODES.get(done.code, errno.EIO), done)
