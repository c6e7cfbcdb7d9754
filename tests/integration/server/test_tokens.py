"""Credentials: the first tokens in files of their owner only, hashes in the database, and tokens of attempts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from protocol.errors import PilotageError
from server import app as app_module
from server.access import callers, tokens
from server.access.callers import Callers
from server.access.tokens import NOBODY, Caller, Role
from server.core import Core
from server.models import AdminEvent, Token
from tests.integration.server.http import refusal
from tests.integration.server.tenants import Tenants
from tests.integration.server.world import Bearer, World


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
    more = {Role.ADMIN: {*Role}, Role.GROUP: {Role.USER}}.get(role, set())
    assert allowed == {Role.PUBLIC, role, *more}


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
    assert tokens.nonce_in(b"key", 7, token) == "nonce"
    for wrong in (*others, "", token + " ", token.upper(), "\ud800", "é"):
        assert tokens.nonce_in(b"key", 7, wrong) != "nonce"


# -- tokens that the operator makes -----------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_hash(core: Core, tenants: Tenants) -> None:
    made = tenants.admin.ok("POST", "/v1/tokens", {"name": "bob", "role": "user"})
    assert made["token"].startswith("user-")
    assert (made["name"], made["account"], made["role"], made["valid"]) == ("bob", "bob", "user", True)
    listed = tenants.admin.ok("GET", "/v1/tokens?name=bob")["items"]
    assert listed == [{key: value for key, value in made.items() if key != "token"}]
    assert made["token"] not in repr(World(core).rows())
    assert tenants.with_token(made["token"]).ok("GET", "/v1/groups") == {"items": [], "total": 0}


def test_tokens_are_listed_by_name_and_role(tenants: Tenants) -> None:
    tenants.token("bob")
    tenants.token("bob", "admin")
    tenants.token("farm", "pilot", queue="CPU")
    for query, n in (("name=bob", 2), ("role=pilot", 2), ("name=farm&role=pilot", 1), ("name=nobody", 0)):
        assert len(tenants.admin.ok("GET", f"/v1/tokens?{query}")["items"]) == n, query
    assert tenants.admin.ok("GET", "/v1/tokens?name=farm")["items"][0]["queue"] == "CPU"
    refusal(tenants.admin.get("/v1/tokens?role=king"), 400, "BAD_REQUEST")


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({"name": "bob", "role": "king"}, 400),
        ({"name": "bob", "role": "public"}, 400),
        ({"name": "bob", "role": ""}, 400),
        ({"name": "bob", "role": "user", "queue": "CPU"}, 400),
        ({"name": "farm", "role": "pilot", "group": "spd"}, 400),
        ({"name": "farm", "role": "pilot", "queue": "NOPE"}, 404),
        ({"name": "bob", "role": "user", "group": "nope"}, 404),
        ({"name": "bob", "role": "group"}, 400),
        ({"name": "admin", "role": "user"}, 400),
        ({"name": "admin", "role": "group"}, 400),
        ({"name": "a b", "role": "user"}, 400),
        ({"name": "", "role": "user"}, 400),
        ({"name": "bob", "role": "user", "expiresSeconds": -1}, 400),
        ({"name": "bob", "role": "user", "hash": "0" * 64}, 400),
        ({"name": "bob", "role": "user", "token": "mine"}, 400),
    ],
)
def test_b16_b19_a_token_that_cannot_be_is_not_made(
    core: Core, tenants: Tenants, wish: dict[str, object], status: int
) -> None:
    with World(core).unchanged():
        refusal(tenants.admin.post("/v1/tokens", wish), status)


def test_a_second_token_does_not_move_its_account_to_another_group(core: Core, tenants: Tenants) -> None:
    tenants.tree()
    tenants.token("bob", group="spd")
    tenants.token("bob", group="spd")
    with World(core).unchanged():
        reply = refusal(
            tenants.admin.post("/v1/tokens", {"name": "bob", "role": "user", "group": "nica"}), 409
        )
    assert "pilotage account set bob --group nica" in reply.detail


def test_f25_a_revoked_token_is_refused_at_once_here(core: Core, tenants: Tenants) -> None:
    bob = tenants.token("bob")
    bob.ok("GET", "/v1/groups")
    path = f"/v1/tokens/{tenants.ids['bob']}/revoke"
    revoked = tenants.admin.ok("POST", path)
    assert not revoked["valid"]
    refusal(bob.get("/v1/groups"), 401, "UNAUTHENTICATED")
    with World(core).unchanged():
        assert tenants.admin.ok("POST", path) == revoked, "said again it stays as it is"
    refusal(tenants.admin.post("/v1/tokens/999/revoke"), 404, "NOT_FOUND")


def test_f25_another_process_refuses_a_revoked_token_within_a_second(core: Core, tenants: Tenants) -> None:
    made = tenants.admin.ok("POST", "/v1/tokens", {"name": "bob", "role": "user"})
    at = 1000.0
    other = Callers(clock=lambda: at)
    header = f"Bearer {made['token']}"
    assert other.who(header, "10.0.0.1").name == "bob"
    tenants.admin.ok("POST", f"/v1/tokens/{made['tokenId']}/revoke")
    assert other.who(header, "10.0.0.1").name == "bob", "it has not heard yet"
    at += callers.SECONDS
    with pytest.raises(PilotageError, match="revoked"):
        other.who(header, "10.0.0.1")


def test_b19_a_token_ends_when_it_expires(
    core: Core, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = tenants.token("bob", expiresSeconds=100)
    bob.ok("GET", "/v1/groups")
    row = Token.get(Token.name == "bob")
    assert row.expires - row.created == pytest.approx(100, abs=5)
    monkeypatch.setattr("server.access.tokens.now", lambda: row.expires + 0.001)
    core.callers.forget()
    refusal(bob.get("/v1/groups"), 401, "UNAUTHENTICATED")
    assert not tenants.admin.ok("GET", "/v1/tokens?name=bob")["items"][0]["valid"]


def test_a_first_token_that_was_revoked_is_made_anew_at_the_next_start(core: Core) -> None:
    """So that an operator who has revoked the last admin token is not locked out."""
    write(core)
    before = text(core, "admin.token"), text(core, "pilot.token")
    core.database.write(lambda: Token.update(revoked=1.0).where(Token.role == "admin").execute())
    write(core)
    assert text(core, "admin.token") != before[0]
    assert text(core, "pilot.token") == before[1]
    assert tokens.caller_of(f"Bearer {text(core, 'admin.token').strip()}").role is Role.ADMIN


def test_a_token_that_is_known_costs_no_query(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    token = core.database.write(lambda: tokens.create("bob", Role.USER))
    header = f"Bearer {token}"
    first = core.callers.who(header, "10.0.0.1")

    def asked(*args: object) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr("server.access.tokens.caller_with", asked)
    assert core.callers.who(header, "10.0.0.1") is first


def test_what_is_remembered_has_a_bound(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MOST", 10)
    remembering = Callers()
    for number in range(25):
        header = f"Bearer {core.database.write(lambda: tokens.create('bob', Role.USER))}"
        remembering.who(header, "10.0.0.1")
        with pytest.raises(PilotageError):
            remembering.who(f"Bearer wrong-{number}", "10.0.0.1")
    assert len(remembering._valid) <= 10
    assert len(remembering._refused) <= 10


def test_a_token_revoked_while_it_is_looked_up_is_not_remembered(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = f"Bearer {core.database.write(lambda: tokens.create('bob', Role.USER))}"
    look_up = tokens.caller_with

    def slowly(digest: str) -> Caller:
        caller = look_up(digest)
        core.database.write(lambda: Token.update(revoked=1.0).execute())
        core.callers.forget()
        return caller

    monkeypatch.setattr("server.access.tokens.caller_with", slowly)
    core.callers.who(header, "10.0.0.1")
    monkeypatch.setattr("server.access.tokens.caller_with", look_up)
    with pytest.raises(PilotageError, match="revoked"):
        core.callers.who(header, "10.0.0.1")


# -- what is left of a pilot token when it is of one queue ------------------------------------------------------------------


def test_b19_a_token_of_one_queue_speaks_for_no_pilot_of_another(core: Core, tenants: Tenants) -> None:
    world = World(core)
    world.ready(2)
    job = world.claim()[0]
    gpu = tenants.token("gpus", "pilot", queue="GPU")
    held = [{"attemptId": job.attempt_id, "attemptToken": job.attempt_token}]
    ask = {"requestId": "request-x", "pilotId": "p1", "resourceType": "gpu"}
    register = {"pilotId": "p1", "node": "node1", "version": "1", "resourceType": "gpu"}
    with world.unchanged():
        for path, body in (
            ("/v1/heartbeat", {"pilotId": "p1", "attempts": held}),
            ("/v1/endPilot", {"pilotId": "p1", "exitCode": 0}),
            ("/v1/getJob", {**ask, "queue": "GPU"}),
            ("/v1/getJob", {**ask, "queue": "CPU", "resourceType": "cpu"}),
            ("/v1/registerPilot", register),
            ("/v1/registerPilot", {**register, "queue": "GPU"}),
        ):
            reply = refusal(gpu.post(path, body), 403, "FORBIDDEN")
            assert "queue GPU only" in reply.detail
    refusal(gpu.post("/v1/heartbeat", {"pilotId": "nobody"}), 404, "NOT_FOUND")
    cpu = tenants.token("cpus", "pilot", queue="CPU")
    assert (
        cpu.ok("POST", "/v1/heartbeat", {"pilotId": "p1", "attempts": held})["answers"][0]["command"]
        == "continue"
    )


def test_api5_only_an_admin_sees_or_makes_tokens(core: Core, tenants: Tenants) -> None:
    tenants.tree()
    others = [
        tenants.token("bob"),
        tenants.token("eve", "group", group="spd"),
        tenants.token("farm", "pilot"),
    ]
    with World(core).unchanged():
        for other in others:
            refusal(other.get("/v1/tokens"), 403, "FORBIDDEN")
            refusal(other.post("/v1/tokens", {"name": "x", "role": "admin"}), 403, "FORBIDDEN")
            refusal(other.post("/v1/tokens/1/revoke"), 403, "FORBIDDEN")
            refusal(other.get("/v1/trail"), 403, "FORBIDDEN")


def test_no_token_stands_in_the_trail_or_the_log(tenants: Tenants, caplog: pytest.LogCaptureFixture) -> None:
    made = tenants.admin.ok("POST", "/v1/tokens", {"name": "bob", "role": "user"})
    told = [f"{event.subject} {event.detail}" for event in AdminEvent.select()]
    assert f"token {made['tokenId']} user bob" in told
    assert not any(made["token"] in line for line in told)
    assert made["token"] not in caplog.text


def test_b21_a_recorded_session_says_nothing_new_when_it_is_played_again(
    core: Core, tenants: Tenants, client: FlaskClient, bearer: Bearer
) -> None:
    world = World(core)
    world.ready(2)
    job = world.claim()[0]
    recorded = [
        ("/v1/getJob", {"requestId": "request-1", "pilotId": "p1", "queue": "CPU"}),
        (
            "/v1/updateJob",
            {
                "attemptId": job.attempt_id,
                "attemptToken": job.attempt_token,
                "seq": 1,
                "moves": [{"state": "RUNNING", "at": 5.0}],
            },
        ),
        (
            "/v1/updateJob",
            {
                "attemptId": job.attempt_id,
                "attemptToken": job.attempt_token,
                "seq": 2,
                "moves": [{"state": "COMPLETED", "at": 6.0}],
            },
        ),
        ("/v1/endPilot", {"pilotId": "p1", "exitCode": 0}),
    ]
    played = []
    for _ in range(2):
        core.recent.forget()
        for path, body in recorded:
            client.post(path, json=body, headers=bearer[Role.PILOT])
        played.append(world.rows(ignore={"last_seen", "ended"}))
    assert played[0] == played[1]


# -- every route ------------------------------------------------------------------------------------------------------------


def test_b19_a_wrong_token_opens_no_route(core: Core, tenants: Tenants, client: FlaskClient) -> None:
    world = World(core)
    tokens_of = {role: tenants.admin.ok("POST", "/v1/tokens", wish)["token"] for role, wish in WISHES.items()}
    core.database.write(lambda: Token.update(expires=1.0).where(Token.name == "expired").execute())
    core.database.write(lambda: Token.update(revoked=1.0).where(Token.name == "revoked").execute())
    core.callers.forget()
    wrong = {
        "none": None,
        "empty": "Bearer ",
        "expired": f"Bearer {tokens_of['expired']}",
        "revoked": f"Bearer {tokens_of['revoked']}",
        "a hash": f"Bearer {tokens.hash_of(tokens_of['good'])}",
        "1 MB long": "Bearer " + tokens_of["good"] * 20_000,
        "alg none": "Bearer eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.",
        "of another server": "Bearer admin-" + "A" * 43,
        "trailing space": f"Bearer {tokens_of['good']} ",
        "two": f"Bearer {tokens_of['good']},{tokens_of['good']}",
        "in the query": None,
    }
    routes = [route for door in app_module.DOORS for route in door.routes if route.role is not Role.PUBLIC]
    assert len(routes) > 30
    with world.unchanged():
        for route in routes:
            path = route.path.replace("<", "").replace(">", "")
            for case, header in wrong.items():
                query = f"?token={tokens_of['good']}" if case == "in the query" else ""
                headers = {"Authorization": header} if header is not None else {}
                response = client.open(
                    path + query, method=route.method, headers=headers, data=b"{}", buffered=True
                )
                assert response.status_code in (401, 429), (route.path, case, response.text)
                assert "Traceback" not in response.text


WISHES = {name: {"name": name, "role": "admin"} for name in ("good", "expired", "revoked")}
