"""Files as all parts name them: logical names, scopes, checksums, and where a copy lies."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from protocol.errors import PilotageError

ALGORITHMS: dict[str, int] = {"adler32": 8, "md5": 32, "blake3": 64}
"""Checksum algorithms and the number of hexadecimal digits of each."""

LFN_BYTES = 220
"""Longest logical file name in bytes of UTF-8: a physical name adds the attempt to it and must fit into 255 bytes."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}")
"""Names of datasets, tasks, queues, sites, storages and scopes."""

_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.part", re.DOTALL)
"""What a copytool calls a file before it is whole (`hidden_name` in copytools/copying.py)."""


def check_lfn(lfn: str) -> str:
    """Give back a logical file name that is one harmless path component on every storage, or raise BAD_LFN."""
    shown = ascii(lfn if len(lfn) <= 60 else lfn[:57] + "...")
    if not lfn or not lfn.strip(". "):
        raise PilotageError("BAD_LFN", f"{shown} is empty or has only dots and blanks")
    try:
        encoded = lfn.encode("utf-8")
    except UnicodeEncodeError:
        raise PilotageError("BAD_LFN", f"{shown} is not valid Unicode") from None
    if len(encoded) > LFN_BYTES:
        raise PilotageError("BAD_LFN", f"{shown} has {len(encoded)} bytes; at most {LFN_BYTES} are allowed")
    if "/" in lfn or "\\" in lfn:
        raise PilotageError(
            "BAD_LFN", f"{shown} contains a slash; a logical name is one plain name, not a path"
        )
    if not (lfn.isascii() and lfn.isprintable()):  # as nearly all are; then none of this can be
        for character in lfn:
            if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDIRECTIONAL:
                raise PilotageError(
                    "BAD_LFN", f"{shown} contains the control character U+{ord(character):04X}"
                )
        if unicodedata.normalize("NFC", lfn) != lfn:
            raise PilotageError("BAD_LFN", f"{shown} is not in Unicode's composed form (NFC)")
    if lfn.startswith("-"):
        raise PilotageError("BAD_LFN", f"{shown} begins with a dash, which commands take for an option")
    return lfn


def check_name(name: str, what: str) -> str:
    """Give back the name of a dataset, task, queue, site, storage or scope, or raise BAD_REQUEST."""
    if not NAME.fullmatch(name):
        shown = ascii(name if len(name) <= 60 else name[:57] + "...")
        raise PilotageError(
            "BAD_REQUEST",
            f"{shown} is no name for a {what}: use 1 to 200 letters, digits and . _ : + - beginning with a letter or digit",
        )
    return name


def check_checksums(checksums: dict[str, str]) -> dict[str, str]:
    """Give back `{algorithm: hexadecimal digits}` in lower case, or raise CHECKSUM_NOT_SUPPORTED or BAD_REQUEST."""
    clean = {}
    for algorithm, value in checksums.items():
        if algorithm not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise PilotageError("CHECKSUM_NOT_SUPPORTED", f"{algorithm[:40]!a}; known are {known}")
        digits = ALGORITHMS[algorithm]
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", value):
            raise PilotageError(
                "BAD_REQUEST", f"a checksum {algorithm} has {digits} hexadecimal digits, not {value[:80]!a}"
            )
        clean[algorithm] = value.lower()
    return clean


def check_inside(name: str, what: str) -> str:
    """Give back the name of a file in a directory, as logs/reco.txt, or raise BAD_REQUEST for one that leads out of it."""
    if "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        shown = ascii(name if len(name) <= 60 else name[:57] + "...")
        raise PilotageError(
            "BAD_REQUEST", f"{what}: {shown} leads out of the directory; name a file in it, as logs/reco.txt"
        )
    return name


def parse_checksum(text: str) -> tuple[str, str]:
    """Split "algorithm:hex", as people and lists write it."""
    algorithm, colon, value = text.partition(":")
    if not colon:
        raise PilotageError("BAD_REQUEST", f"{text[:80]!a} is no checksum; write ALGORITHM:HEX")
    return next(iter(check_checksums({algorithm: value}).items()))


_PLAIN_URL = re.compile(r"file:///[\w.,:=+@~/-]*", re.ASCII)


def is_plain_url(url: str) -> bool:
    """Whether it is a path behind `file://`, as nearly every URL, so that nothing is to be taken apart."""
    return _PLAIN_URL.fullmatch(url) is not None and ".." not in url


def local_path(url: str, data_root: str = "") -> PurePosixPath:
    """The path that a `file:` URL names on this node.

    `file:///srv/data/a` is that path everywhere; `file:data/a` lies under the node's data root (SCRIPT_PREFIX), for
    storages that nodes mount at different places.
    """
    if is_plain_url(url):
        return PurePosixPath(url[len("file://") :])
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PilotageError("BAD_PATH", f"{url[:200]!a} is no URL: {error}") from None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise PilotageError("BAD_PATH", f"{url[:200]!a} is no file: URL of this node")
    path = PurePosixPath(unquote(parts.path))
    if ".." in path.parts or "\0" in str(path):
        raise PilotageError("BAD_PATH", f"{url[:200]!a} leaves its directory")
    if path.is_absolute():
        return path
    if not data_root:
        raise PilotageError("BAD_PATH", f"{url[:200]!a} is relative: set SCRIPT_PREFIX, the node's data root")
    return PurePosixPath(data_root) / path
