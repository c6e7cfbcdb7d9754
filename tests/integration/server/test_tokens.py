"""Credentials: the first tokens in files of their owner only, hashes in the database, and tokens of attempts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from protocol.errors import PilotageError
from server import tokens
from server.core import Core
from server.models import Token
from server.tokens import NOBODY, Caller, Role
from tests.integration.server.world import World


def write(core: Core) -> None:
    core.database.write(lambda: tokens.write_first_tokens(core.state_directory))


def text(core: Core, name: str) -> str:
    return (core.state_directory / name).read_text()


@pytest.mark.parametrize(("name", "role"), [("admin.token", Role.ADMIN), ("pilot.token", Role.PILOT)])
def test_a_new_installation_has_a_token_of_each_role_that_only_its_owner_can_read(
    core: Core, name: str, role: Role
) -> None:
    write(core)
    path = core.state_directory / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text(core, name).endswith("\n")
    token = text(core, name).strip()
    assert tokens.caller_of(f"Bearer {token}") == Caller(role.value, role)
    assert token not in repr(World(core).rows()), "hashed at rest"


def test_the_first_tokens_stay_over_a_restart(core: Core) -> None:
    write(core)
    before = text(core, "admin.token"), text(core, "pilot.token")
    with World(core).unchanged():
        write(core)
    assert (text(core, "admin.token"), text(core, "pilot.token")) == before


def test_a_token_file_that_was_lost_or_is_not_valid_here_is_made_again(core: Core) -> None:
    write(core)
    pilot = text(core, "pilot.token")
    (core.state_directory / "admin.token").unlink()
    write(core)
    assert tokens.caller_of(f"Bearer {text(core, 'admin.token').strip()}").role is Role.ADMIN
    (core.state_directory / "admin.token").write_text("of another database\n")
    write(core)
    assert tokens.caller_of(f"Bearer {text(core, 'admin.token').strip()}").role is Role.ADMIN
    assert text(core, "pilot.token") == pilot


def test_a_secret_is_never_written_over_a_file_or_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            tokens.write_secret(tmp_path / name, "secret")
    assert not (tmp_path / "elsewhere").exists()


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    key = tokens.server_key(tmp_path)
    assert len(key) == 32
    assert tokens.server_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600


def test_without_a_header_one_is_nobody(core: Core) -> None:
    assert tokens.caller_of(None) == tokens.caller_of("") == NOBODY


@pytest.mark.parametrize("role", Role)
def test_each_role_may_what_is_its_own_and_an_admin_everything(role: Role) -> None:
    caller = Caller("x", role)
    allowed = {other for other in Role if caller.may(other)}
    assert allowed == ({*Role} if role is Role.ADMIN else {Role.PUBLIC, role})


def test_every_token_is_another(core: Core) -> None:
    made = {core.database.write(lambda: tokens.create("x", Role.USER)) for _ in range(20)}
    assert len(made) == 20
    assert Token.select().count() == 20
    assert all(len(token) > 40 for token in made)


def test_an_unknown_token_is_not_told_from_a_wrong_one(core: Core) -> None:
    details = set()
    for token in ("x", "admin-" + "x" * 43, "é"):
        with pytest.raises(PilotageError) as caught:
            tokens.caller_of(f"Bearer {token}")
        details.add(caught.value.detail)
    assert len(details) == 1


def test_the_token_of_an_attempt_depends_on_key_attempt_and_nonce_and_on_nothing_else() -> None:
    token = tokens.attempt_token(b"key", 7, "nonce")
    assert tokens.attempt_token(b"key", 7, "nonce") == token
    others = {
        tokens.attempt_token(b"another", 7, "nonce"),
        tokens.attempt_token(b"key", 8, "nonce"),
        tokens.attempt_token(b"key", 7, "another"),
    }
    assert len({token, *others}) == 4
    assert tokens.is_token_of(b"key", 7, "nonce", token)
    for wrong in (*others, "", token + " ", token.upper(), "\ud800", "é"):
        assert not tokens.is_token_of(b"key", 7, "nonce", wrong)
