"""Credentials: first tokens of a new installation, who a bearer is, and the tokens of attempts."""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import PilotageError
from server.models import Counter, Token, now


class Role(enum.Enum):
    """What a token may do; an admin may do everything. GROUP is a user who also manages the working group of the account."""

    PUBLIC = "public"
    PILOT = "pilot"
    USER = "user"
    GROUP = "group"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the account, or the name of a pilot token. `queue` "" is every queue."""

    name: str
    role: Role
    queue: str = ""
    token_id: int = field(default=0, compare=False)

    def may(self, role: Role) -> bool:
        return (
            role is Role.PUBLIC
            or self.role is Role.ADMIN
            or self.role is role
            or (role is Role.USER and self.role is Role.GROUP)
        )


NOBODY = Caller("", Role.PUBLIC)
KEY_EPOCH = "key_epoch"
"""The counter of the restored backups; there is none before the first."""
KEY_FINGERPRINT = "key_fingerprint"
"""The counter that tells one server key from another."""
FIRST_TOKENS = {Role.ADMIN: "admin.token", Role.PILOT: "pilot.token"}
LONGEST = 500
"""Characters of a token that may be one of ours."""


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def create(
    name: str, role: Role, queue: str = "", account: str | None = None, expires: float | None = None
) -> str:
    """A new token, kept only as a hash; inside `Database.write`. `expires`: seconds since 1970."""
    token = f"{role.value}-{secrets.token_urlsafe(32)}"
    Token.create(
        name=name,
        role=role.value,
        account=account,
        queue=queue or None,
        hash=hash_of(token),
        expires=expires,
    )
    return token


def write_first_tokens(directory: Path) -> None:
    """Make the first token of each role in a file that only its owner can read; those that are there and valid stay."""
    for role, file_name in FIRST_TOKENS.items():
        path = directory / file_name
        known = path.exists() and Token.get_or_none(Token.hash == hash_of(path.read_text().strip()))
        if known and is_valid(known):
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


def check_key(key: bytes) -> None:
    """Note whose database this is, by a fingerprint of the key; FOREIGN_KEY for a host with another one. Inside `Database.write`.

    Hosts with one Postgres must have one key, or each refuses the words about attempts that another one has handed out.
    """
    fingerprint = int.from_bytes(hashlib.sha256(b"fingerprint of " + key).digest()[:7], "big")
    Counter.insert(name=KEY_FINGERPRINT, value=fingerprint).on_conflict_ignore().execute()
    if Counter.get_by_id(KEY_FINGERPRINT).value != fingerprint:
        raise PilotageError("FOREIGN_KEY", "this database belongs to a server with another server.key")


def epoch_key(key: bytes) -> bytes:
    """The key of the attempt tokens of this epoch. A restored backup begins a new one: tokens from before it fit no more."""
    row = Counter.get_or_none(Counter.name == KEY_EPOCH)
    return hmac.new(key, str(row.value).encode(), hashlib.sha256).digest() if row is not None else key


def is_valid(row: Token) -> bool:
    return row.revoked is None and (row.expires is None or row.expires >= now())


def token_in(authorization: str) -> str:
    """The token of an `Authorization: Bearer` header, or "" if that is none."""
    scheme, _, token = authorization.partition(" ")
    return token if scheme.lower() == "bearer" and len(token) <= LONGEST else ""


def caller_of(authorization: str | None) -> Caller:
    """Who stands behind an `Authorization: Bearer` header; NOBODY without one, UNAUTHENTICATED for a token that is not valid."""
    if not authorization:
        return NOBODY
    token = token_in(authorization)
    if not token:
        raise PilotageError("UNAUTHENTICATED", "the Authorization header must read 'Bearer TOKEN'")
    return caller_with(hash_of(token))


def caller_with(digest: str) -> Caller:
    """Who has the token with this hash, as the database knows it now."""
    row = Token.get_or_none(Token.hash == digest)
    if row is None:
        raise PilotageError("UNAUTHENTICATED", "the token is not known here")
    if not is_valid(row):
        raise PilotageError("UNAUTHENTICATED", "the token has expired or was revoked")
    return Caller(row.account or row.name, Role(row.role), row.queue or "", row.id)


def new_nonce() -> str:
    return secrets.token_hex(16)


def attempt_token(key: bytes, attempt_id: int, nonce: str) -> str:
    """The token of an attempt: the same bytes from any process, also after a restart, and nothing secret in the database.

    It carries the nonce in the open, so that the attempt's row need not be read to see whether a token is genuine.
    """
    mac = hmac.digest(key, f"{attempt_id}:{nonce}".encode(), "sha256").hex()
    return f"{nonce}.{mac}"


def nonce_in(key: bytes, attempt_id: int, token: str) -> str | None:
    """The nonce that a token of this attempt carries; None if this server has not given it out."""
    nonce = token.rpartition(".")[0]
    genuine = hmac.compare_digest(
        attempt_token(key, attempt_id, nonce).encode(), token.encode("utf-8", "replace")
    )
    return nonce if genuine else None
