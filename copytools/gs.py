"""Google Cloud Storage, with Google's own library: gs://BUCKET/NAME.

An upload carries its MD5, makes a new object or none (ifGenerationMatch=0), and what the storage then tells of it is compared.
"""

from __future__ import annotations

import base64
import binascii
import errno
import functools
import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from copytools.base import Deadline, Option, Stored, shown
from copytools.failures import BY_STATUS, CORRUPTED, REFUSED, UNREACHABLE
from copytools.remote import Outgoing, RemoteTool, Watched, in_bucket, private, within
from protocol.errors import PilotageError
from protocol.redaction import one_line, redact
from protocol.values import Bounds, Type, as_text

PIECE = 16 * 1024**2
"""Bytes that are sent at once, from memory; a multiple of 256 KiB."""
_PACKAGE = "google.cloud.storage"


class Tool(RemoteTool):
    schemes = ("gs",)
    told_checksum = "md5"

    OPTIONS = {
        "key_file": Option(
            Type.PATH,
            "",
            "key of a service account (mode 0600); default: GOOGLE_APPLICATION_CREDENTIALS, then the machine's",
        ),
        "anonymous": Option(Type.FLAG, "no", "without credentials, for public buckets"),
        "endpoint": Option(Type.TEXT, "", "another address than Google's"),
        "connect_seconds": Option(
            Type.INTEGER, "5", "how long the storage may take to be reached", Bounds(1, 600)
        ),
        "silent_seconds": Option(
            Type.INTEGER, "60", "how long the storage may say nothing in the middle", Bounds(1, 3600)
        ),
    }

    def unusable(self) -> Optional[str]:
        if _is_installed():
            return None
        return "Python package google-cloud-storage is missing: pip install google-cloud-storage"

    def get(self, source: str, to: Path, deadline: Deadline) -> None:
        # Made and closed here: whoever is left alone must not make it when nobody wants it any more.
        with Watched(to, "xb", deadline) as file:

            def work() -> None:
                with _translated(deadline):
                    # Raw: as it is stored, though the storage would unpack what it knows to be compressed.
                    self._object(source).download_to_file(file, raw_download=True, **self._patience())

            within(deadline, work)

    def put(self, file: Outgoing, target: str, deadline: Deadline) -> None:
        def work() -> None:
            with _translated(deadline), Watched(file.path, "rb", deadline) as body:
                made = self._object(target)
                made.chunk_size = PIECE
                made.md5_hash = base64.b64encode(bytes.fromhex(file.checksums["md5"])).decode()
                made.upload_from_file(
                    body, size=file.size, if_generation_match=0, checksum=None, **self._patience()
                )

        within(deadline, work)

    def stored(self, url: str, deadline: Deadline) -> Optional[Stored]:
        def work() -> Stored:
            with _translated(deadline):
                found = self._object(url)
                found.reload(**self._patience())
                # One that was composed of others has none.
                md5 = {"md5": binascii.a2b_base64(found.md5_hash).hex()} if found.md5_hash else {}
                return Stored(int(found.size), md5)

        try:
            return within(deadline, work)
        except FileNotFoundError:
            return None

    def remove(self, url: str, deadline: Deadline) -> None:
        def work() -> None:
            with _translated(deadline):
                self._object(url).delete(**self._patience())

        try:
            within(deadline, work)
        except FileNotFoundError:
            pass

    def _object(self, url: str) -> Any:
        bucket, name = in_bucket(url)
        key = as_text(self.options["key_file"])
        try:
            changed = private(key).st_mtime_ns if key else 0
        except OSError as error:
            raise PilotageError(
                "BAD_SETTINGS", f"[copytool:gs] key_file {shown(key)}: {error.strerror}"
            ) from None
        client = _made_client(
            key, changed, self.options["anonymous"] is True, as_text(self.options["endpoint"])
        )
        return client.bucket(bucket).blob(name)

    def _patience(self) -> Dict[str, Any]:
        seconds = (float(as_text(self.options[f"{what}_seconds"])) for what in ("connect", "silent"))
        return {"timeout": tuple(seconds), "retry": None}


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:  # of what it lies in
        return False


@functools.lru_cache(maxsize=4)
def _made_client(key: str, changed: int, is_anonymous: bool, endpoint: str) -> Any:
    """Made anew when the key was renewed: `changed` is the time of its file."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    where = {"client_options": {"api_endpoint": endpoint}} if endpoint else {}
    if is_anonymous:
        return storage.Client(project="none", credentials=AnonymousCredentials(), **where)  # type: ignore[no-untyped-call]
    if not key:
        return storage.Client(**where)
    try:
        return storage.Client.from_service_account_json(key, **where)
    except ValueError:  # not its words: they may be of the key
        raise PilotageError(
            "BAD_SETTINGS", f"[copytool:gs] key_file {shown(key)} is no key of a service account"
        ) from None


@contextmanager
def _translated(deadline: Deadline) -> Iterator[None]:
    """What Google's library raises, as an OSError or an error of the catalogue."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except GoogleAPICallError as error:
        number = {**BY_STATUS, 409: errno.EEXIST}.get(int(error.code or 0), errno.EIO)
        raise OSError(number, _words(error)) from None
    except (RequestException, HTTPError, TransportError) as error:
        deadline.check()
        raise OSError(UNREACHABLE, _words(error)) from None
    except GoogleAuthError as error:
        raise OSError(REFUSED, _words(error)) from None
    except DataCorruption as error:
        raise OSError(CORRUPTED, _words(error)) from None


def _words(error: Exception) -> str:
    return one_line(redact(str(error)[:500]))
