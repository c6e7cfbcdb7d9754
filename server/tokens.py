"""Credentials: first tokens of a new installation, who a bearer is, and the tokens of attempts."""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import PilotageError
from server.models import Token, now


class Role(enum.Enum):
    """What a token may do; an admin may do everything."""

    PUBLIC = "public"
    PILOT = "pilot"
    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who sent a request. `queue` "" is every queue."""

    name: str
    role: Role
    queue: str = ""

    def may(self, role: Role) -> bool:
        return role is Role.PUBLIC or self.role is Role.ADMIN or self.role is role


NOBODY = Caller("", Role.PUBLIC)
FIRST_TOKENS = {Role.ADMIN: "admin.token", Role.PILOT: "pilot.token"}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def create(name: str, role: Role, queue: str = "") -> str:
    """A new token, kept only as a hash; inside `Database.write`."""
    token = f"{role.value}-{secrets.token_urlsafe(32)}"
    Token.create(name=name, role=role.value, queue=queue or None, hash=_hash(token))
    return token


def write_first_tokens(directory: Path) -> None:
    """Make the first token of each role in a file that only its owner can read; those that are there and valid stay."""
    for role, file_name in FIRST_TOKENS.items():
        path = directory / file_name
        if path.exists() and Token.get_or_none(Token.hash == _hash(path.read_text().strip())):
            continue
        path.unlink(missing_ok=True)
        write_secret(path, create(role.value, role) + "\n")


def write_secret(path: Path, text: str) -> None:
    """A new file of mode 0600; it must not exist."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def server_key(directory: Path) -> bytes:
    """The key of the attempt tokens; made at the first start, and the same after every restart."""
    path = directory / "server.key"
    if not path.exists():
        write_secret(path, secrets.token_hex(32) + "\n")
    return bytes.fromhex(path.read_text().strip())


def caller_of(authorization: str | None) -> Caller:
    """Who stands behind an `Authorization: Bearer` header; NOBODY without one, UNAUTHENTICATED for a token that is not valid."""
    if not authorization:
        return NOBODY
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > 500:
        raise PilotageError("UNAUTHENTICATED", "the Authorization header must read 'Bearer TOKEN'")
    row = Token.get_or_none(Token.hash == _hash(token))
    if row is None:
        raise PilotageError("UNAUTHENTICATED", "the token is not known here")
    if row.revoked is not None or (row.expires is not None and row.expires < now()):
        raise PilotageError("UNAUTHENTICATED", "the token has expired or was revoked")
    return Caller(row.name, Role(row.role), row.queue or "")


def new_nonce() -> str:
    return secrets.token_hex(16)


def attempt_token(key: bytes, attempt_id: int, nonce: str) -> str:
    """The token of an attempt: the same bytes from any process, also after a restart, and nothing secret in the database."""
    return hmac.new(key, f"{attempt_id}:{nonce}".encode(), hashlib.sha256).hexdigest()


def is_token_of(key: bytes, attempt_id: int, nonce: str, token: str) -> bool:
    return hmac.compare_digest(
        attempt_token(key, attempt_id, nonce).encode(), token.encode("utf-8", "replace")
    )
