"""How long the pilot's proxy and bearer token are still valid: a warning in the job's log in time, and the end if the job needs them."""

from __future__ import annotations

import base64
import calendar
import json
import logging
import math
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from pilot import limits
from pilot.plugins.monitors import base
from pilot.plugins.monitors.base import Look, Payload
from protocol.errors import PilotageError

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 60.0
"""Somebody may renew them at any time."""


class Credential(NamedTuple):
    """One that somebody may have to renew."""

    what: str
    ends: float
    """Seconds since 1970."""


class Monitor(base.Monitor):
    def __init__(self, payload: Payload) -> None:
        super().__init__(payload)
        self._warned: set[Credential] = set()
        self._first: Optional[Credential] = None
        self._again_at = 0.0

    def sample(self, look: Look) -> Mapping[str, float]:
        if look.at >= self._again_at:
            self._again_at = look.at + AGAIN_SECONDS
            self._first = min(found(self.payload.environ), key=lambda each: each.ends, default=None)
            self._warn()
        left = self._seconds_left()
        return {} if left == math.inf else {"credentials_seconds": round(left)}

    def verdict(self, look: Look) -> Optional[PilotageError]:
        needed = self.payload.settings.flag("limits", "credentials_needed")
        what = self._first.what if self._first else ""
        return limits.credentials(self._seconds_left(), what, needed)

    def _seconds_left(self) -> float:
        return self._first.ends - time.time() if self._first else math.inf

    def _warn(self) -> None:
        left = self._seconds_left()
        within = self.payload.settings.integer("limits", "credentials_warn_seconds")
        if self._first is not None and left < within and self._first not in self._warned:
            self._warned.add(self._first)
            logger.warning(
                "a credential of the pilot ends soon"
                if left > 0
                else "a credential of the pilot has expired",
                extra={"credential": self._first.what, "seconds_left": round(left)},
            )


def found(environ: Mapping[str, str]) -> Iterator[Credential]:
    """The proxy and the token that copytools of this pilot would use, as far as they say when they end."""
    proxy = environ.get("X509_USER_PROXY") or f"/tmp/x509up_u{os.geteuid()}"
    ends = certificates_end(_text(proxy))
    if ends is not None:
        yield Credential(f"the proxy {proxy}", ends)
    named = environ.get("BEARER_TOKEN_FILE", "")
    ends = token_ends(environ.get("BEARER_TOKEN") or (_text(named) if named else ""))
    if ends is not None:
        yield Credential(f"the token {named or 'in BEARER_TOKEN'}", ends)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


_TIMES = rb"\x30.(?:\x17\x0d[0-9]{12}Z|\x18\x0f[0-9]{14}Z)(?:\x17\x0d([0-9]{12})Z|\x18\x0f([0-9]{14})Z)"
"""Validity in a certificate: two times, the latter of which is the end."""


def certificates_end(pem: str) -> Optional[float]:
    """When the first certificate of a file ends (seconds since 1970); None if there is none that can be read."""
    ends = []
    for block in re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL):
        try:
            match = re.search(_TIMES, ssl.PEM_cert_to_DER_cert(block), re.DOTALL)
        except ValueError:
            continue
        if match:
            short, long = match.groups()
            form, digits = ("%y%m%d%H%M%S", short) if short else ("%Y%m%d%H%M%S", long)
            ends.append(float(calendar.timegm(time.strptime(digits.decode(), form))))
    return min(ends, default=None)


def token_ends(token: str) -> Optional[float]:
    """When a JSON web token ends; None if it does not say. It is not verified: it is ours."""
    parts = token.strip().split(".")
    try:
        said = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(said["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None
