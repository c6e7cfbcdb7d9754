"""`pilotage token|account|group|trail` against a real server, as an operator and the people type them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from client.session import Session
from protocol.errors import PilotageError
from protocol.messages.views import GroupView
from tests.integration.client.conftest import Pilotage, Server


def token_file(pilotage: Pilotage, path: Path, *arguments: str) -> Path:
    made = pilotage("token", "create", *arguments, "--out", path)
    assert made.code == 0, made.err
    return path


def test_a_token_lies_in_a_new_private_file_and_is_not_printed(
    pilotage: Pilotage, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "ada.token"
    made = pilotage("token", "create", "op-ada", "--expires", "30d", "--out", path)
    assert made.code == 0, made.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().strip()
    assert secret.startswith("user-")
    assert secret not in made.out + made.err
    assert "role user, valid until" in made.err
    assert pilotage("queue", "list", "--token-file", path).code == 0
    listed = json.loads(pilotage("token", "list", "--name", "op-ada", "--json").out)
    assert [view["role"] for view in listed] == ["user"]
    assert secret not in json.dumps(listed)


def test_a_token_is_printed_alone_for_a_pipe(pilotage: Pilotage, server: Server) -> None:
    made = pilotage("token", "create", "op-pipe")
    assert made.out.strip().startswith("user-")
    assert len(made.out.split()) == 1
    assert json.loads(pilotage("token", "create", "op-pipe", "--json").out)["token"].startswith("user-")


def test_no_file_is_written_over_and_none_is_left_by_a_refusal(
    pilotage: Pilotage, server: Server, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    refused = pilotage("token", "create", "op-x", "--out", there)
    assert (refused.code, there.read_text()) == (1, "mine")
    assert "there is a file" in refused.err
    refused = pilotage("token", "create", "op-x", "--group", "op-nope", "--out", tmp_path / "new")
    assert refused.code == 1
    assert "no working group op-nope" in refused.err
    assert not (tmp_path / "new").exists()
    assert "No such token." in pilotage("token", "list", "--name", "op-x").err


def test_a_revoked_token_ends_at_once(pilotage: Pilotage, server: Server, tmp_path: Path) -> None:
    path = token_file(pilotage, tmp_path / "eve.token", "op-eve")
    (view,) = json.loads(pilotage("token", "list", "--name", "op-eve", "--json").out)
    assert "is revoked" in pilotage("token", "revoke", view["tokenId"]).out
    refused = pilotage("task", "list", "--token-file", path)
    assert refused.code == 1
    assert "expired or was revoked" in refused.err
    assert "revoked" in pilotage("token", "list", "--name", "op-eve").out
    assert "no token 999999" in pilotage("token", "revoke", "999999").err


@pytest.mark.parametrize("time", ["30", "d", "-1d", "0d", "1y", "1.5h", ""])
def test_a_time_that_is_none_is_refused_with_the_form(pilotage: Pilotage, server: Server, time: str) -> None:
    refused = pilotage("token", "create", "op-t", "--expires", time)
    assert refused.code == 2
    assert "write it as 30d, 4w, 12h, 45m or 90s" in refused.err


def test_the_tree_is_drawn_with_shares_and_open_jobs(pilotage: Pilotage, server: Server) -> None:
    pilotage("group", "create", "op", "--share", "300", "--max-open-jobs", "50")
    for name, parent in (("op.a", "op"), ("op.a.x", "op.a"), ("op.b", "op"), ("op.b.y", "op.b")):
        assert pilotage("group", "create", name, "--parent", parent).code == 0
    lines = pilotage("group", "list").out.splitlines()
    for drawn in ("op", "├─ op.a", "│  └─ op.a.x", "└─ op.b", "   └─ op.b.y"):
        assert any(line.startswith(f"{drawn} ") for line in lines), (drawn, lines)
    assert next(line for line in lines if line.startswith("op ")).split()[-1] == "50"
    views = json.loads(pilotage("group", "list", "--json").out)
    fractions = {view["name"]: view["fraction"] for view in views}
    assert fractions["op.a"] == pytest.approx(fractions["op"] / 2)
    assert "50.0 %" not in pilotage("group", "set", "op.a", "--share", "300").out
    refused = pilotage("group", "set", "op", "--parent", "op.a.x")
    assert "lies below it" in refused.err
    assert "working groups below it" in pilotage("group", "remove", "op.b").err
    assert "is removed" in pilotage("group", "remove", "op.b.y").out
    assert pilotage("group", "set", "op").code == 2


def test_a_quota_is_shown_where_it_holds_up(pilotage: Pilotage, server: Server, tmp_path: Path) -> None:
    pilotage("group", "create", "op-quota")
    path = token_file(pilotage, tmp_path / "q.token", "op-q", "--group", "op-quota")
    shown = pilotage("account", "set", "op-q", "--max-open-jobs", "2")
    assert "0 of at most 2" in shown.out
    listed = {view["name"]: view for view in json.loads(pilotage("account", "list", "--json").out)}
    assert (listed["op-q"]["workingGroup"], listed["op-q"]["maxOpenJobs"]) == ("op-quota", 2)
    assert "op-q" in pilotage("account", "list", "--token-file", path).out
    assert pilotage("account", "set", "op-q").code == 2
    assert "needs the role admin" in pilotage("account", "create", "op-y", "--token-file", path).err


def test_the_trail_tells_who_did_what(pilotage: Pilotage, server: Server, tmp_path: Path) -> None:
    path = token_file(pilotage, tmp_path / "root.token", "op-root", "--role", "admin")
    pilotage("group", "create", "op-trail", "--token-file", path)
    told = pilotage("trail", "list", "--who", "op-root")
    assert "op-root" in told.out
    assert "group create" in told.out
    assert "No action fits" in pilotage("trail", "list", "--who", "op-nobody").err
    entries = json.loads(pilotage("trail", "list", "--action", "token create", "--limit", "1", "--json").out)
    assert entries[0]["detail"] == "admin op-root"


def test_the_session_does_all_of_it(session: Session) -> None:
    names = {view.name for view in session.groups()}
    assert all(isinstance(view, GroupView) for view in session.groups())
    with pytest.raises(PilotageError, match="no working group"):
        session.remove_group("op-never-made")
    assert {view.name for view in session.groups()} == names
