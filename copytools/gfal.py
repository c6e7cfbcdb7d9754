"""Files on grid storages by the gfal2 library: davs:, root:, gsiftp:, srm: and what else its plugins know.

The library works in a process of its own: one that hangs in it is ended when the time is over, and the Python for which the system has
packed it need not be the pilot's.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Dict, Optional, Tuple

from copytools.base import Deadline, FileTool, Option, Stored, shown
from copytools.commands import failed, run
from copytools.failures import CORRUPTED, DIED, REFUSED, UNREACHABLE
from copytools.remote import Outgoing, RemoteTool, path_in, refuse_part
from protocol.values import Bounds, Type, as_text

PROGRAM = """
import sys
if not sys.path[0]:
    del sys.path[0]  # the present directory: anybody may have put a gfal2.py there
import os
import gfal2

verb, url, local, seconds = sys.argv[1:]
context = gfal2.creat_context()
if os.environ.get("BEARER_TOKEN_FILE"):
    with open(os.environ["BEARER_TOKEN_FILE"]) as token:
        gfal2.cred_set(context, url, gfal2.cred_new("BEARER", token.read().strip()))

def copy(source, target):
    wish = context.transfer_parameters()
    wish.overwrite, wish.create_parent, wish.timeout = False, target == url, int(seconds)
    context.filecopy(wish, source, target)

def stored():
    size = context.stat(url).st_size
    try:
        return f"stored {size} {context.checksum(url, 'adler32') if verb != 'get' else '-'}"
    except gfal2.GError:  # not every storage calculates any
        return f"stored {size} -"

try:
    if verb == "put":
        copy(local, url)
    if verb == "remove":
        context.unlink(url)
    else:
        print(stored())
    if verb == "get":
        copy(url, local)
except gfal2.GError as error:
    sys.exit(f"gfal2 error {error.code}: {error.message}")
"""

# Its codes are errnos; some have a meaning of their own for storages. Seen with 2.21: 403 is EPERM, no connection EHOSTDOWN.
_MEANINGS = {
    errno.EPERM: REFUSED,
    errno.EACCES: REFUSED,
    errno.EHOSTDOWN: UNREACHABLE,
    errno.ECOMM: UNREACHABLE,
    errno.EILSEQ: CORRUPTED,
}


class Tool(RemoteTool, FileTool):
    """Uploads are verified by the checksum that the storage calculates, where it does."""

    if_named = True
    schemes = ("root", "roots", "xroot", "davs", "dav", "https", "http", "gsiftp", "srm", "file")
    told_checksum = "adler32"

    OPTIONS = {
        "python": Option(
            Type.PATH, "", "a Python that can import gfal2; default: /usr/bin/python3, then python3 on PATH"
        ),
        "proxy_file": Option(Type.PATH, "", "X.509 proxy; default: X509_USER_PROXY, then /tmp/x509up_uUID"),
        "token_file": Option(Type.PATH, "", "bearer token; default: BEARER_TOKEN_FILE"),
        "ca_directory": Option(Type.PATH, "", "certificate authorities; default: X509_CERT_DIR"),
        "connect_seconds": Option(
            Type.INTEGER, "5", "how long an XRootD server may take to be reached", Bounds(1, 600)
        ),
        "silent_seconds": Option(
            Type.INTEGER, "60", "how long an XRootD server may say nothing in the middle", Bounds(1, 3600)
        ),
    }

    def unusable(self) -> Optional[str]:
        if self._python:
            return None
        return "no Python here can import gfal2; packages gfal2 and python3-gfal2, with gfal2-plugin-http, gfal2-plugin-xrootd, …"

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        directory = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # so that no name on this node is a part of an address, which some plugins decode
            local = f"file:///proc/self/fd/{directory}/{to.name}"
            stored = _stored(self._do("get", source, local, deadline, (directory,), growing=to))
        finally:
            os.close(directory)
        refuse_part(to, stored.size)

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> Optional[Stored]:
        return _stored(self._do("put", target, f"file://{file.path}", deadline, (file.descriptor,)))

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        try:
            return _stored(self._do("stat", url, "", deadline))
        except FileNotFoundError:
            return None

    def remove(self, url: str, deadline: Deadline) -> None:
        try:
            self._do("remove", url, "", deadline)
        except FileNotFoundError:
            pass

    @property
    def _python(self) -> str:
        """Empty: none was found."""
        given = as_text(self.options["python"])
        candidates = [given] if given else ["/usr/bin/python3", shutil.which("python3") or ""]
        return next(filter(_can_import, candidates), "")

    def _do(
        self,
        verb: str,
        url: str,
        local: str,
        deadline: Deadline,
        keep_open: Tuple[int, ...] = (),
        growing: Optional[Path] = None,
    ) -> str:
        """What the program printed; OSError if it failed."""
        is_file = url.partition(":")[0].lower() == "file"
        address = f"file://{self.path_of(url)}" if is_file else url
        if not is_file:
            path_in(url)
        seconds = str(max(1, int(deadline.left())))
        command = [self._python, "-c", PROGRAM, verb, address, local, seconds]
        done = run(command, deadline, self._environment(), keep_open, growing)
        if done.code == 0:
            return done.text
        code = re.search(r"\bgfal2 error (\d+): ", done.text)
        number = int(code[1]) if code else DIED
        raise failed(number if is_file else _MEANINGS.get(number, number), done)

    def _environment(self) -> Dict[str, str]:
        connect, silent = as_text(self.options["connect_seconds"]), as_text(self.options["silent_seconds"])
        given = {
            "X509_USER_PROXY": as_text(self.options["proxy_file"]),
            "BEARER_TOKEN_FILE": as_text(self.options["token_file"]),
            "X509_CERT_DIR": as_text(self.options["ca_directory"]),
            "XRD_CONNECTIONRETRY": "1",
            "XRD_CONNECTIONWINDOW": connect,
            "XRD_STREAMERRORWINDOW": connect,
            "XRD_STREAMTIMEOUT": silent,
            "XRD_REQUESTTIMEOUT": silent,
            "XRD_TIMEOUTRESOLUTION": "1",
        }
        return {name: value for name, value in given.items() if value}


@cache
def _can_import(python: str) -> bool:
    try:
        return bool(python) and run([python, "-c", "import gfal2"], Deadline(60), {}).code == 0
    except OSError:
        return False


def _stored(text: str) -> Stored:
    found = re.search(r"\bstored (\d+) (\S+)", text)
    if found is None:
        raise OSError(errno.EIO, f"gfal2 told no size: {shown(text[:200])}")
    adler32 = found[2].lower().zfill(8)
    return Stored(int(found[1]), {"adler32": adler32} if re.fullmatch(r"[0-9a-f]{8}", adler32) else {})
