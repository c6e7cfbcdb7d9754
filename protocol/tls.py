"""Whether an address says http where the port speaks TLS, or https where it does not: the libraries say that in riddles."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

PROBE_SECONDS = 2.0
_NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "RECORD_LAYER_FAILURE", "record layer failure")
"""What OpenSSL says of an answer that is no TLS; from 3.2 on the latter."""


def wrong_scheme(url: str, error: object) -> str:
    """What to write instead, if the `error` that this address gave came from its scheme; else ""."""
    scheme, _, rest = url.partition("://")
    if scheme == "https" and any(words in str(error) for words in _NO_TLS):
        return f"this port speaks plain HTTP: use http://{rest}"
    if scheme == "http" and _speaks_tls(url):
        return f"this port speaks TLS: use https://{rest}"
    return ""


def _speaks_tls(url: str) -> bool:
    """Ask the port itself: a server hangs up on who speaks HTTP to TLS, and does so for other reasons too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent on this connection, so it matters to nobody who answers.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 80), PROBE_SECONDS) as plain:
            context.wrap_socket(plain, server_hostname=parts.hostname).close()
    except (OSError, ValueError):  # an SSLError is an OSError
        return False
    return True
