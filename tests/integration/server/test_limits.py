"""Floods and guesses: 401s per address, heartbeats per pilot, in bounded memory; whoever behaves is not hurt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from protocol.errors import PilotageError
from server.access import callers, tokens
from server.access.callers import Callers
from server.access.throttle import Throttle
from server.access.tokens import Caller, Role
from server.core import Core, Limits
from tests.integration.server.http import Speaker, refusal
from tests.integration.server.world import Bearer, World, refusing

NAT = "10.0.0.1"


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guarded(clock: Clock) -> Callers:
    return Callers(clock)


@pytest.fixture
def core(core: Core, guarded: Callers) -> Core:
    """No bucket of this server fills while a slow machine asks: its clock goes on when the test says so."""
    return replace(core, callers=guarded)


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except PilotageError as error:
        return error.name
    return ""


def guess(guarded: Callers, n: int, address: str = NAT, what: str = "guess") -> list[str]:
    """The outcomes of `n` different wrong tokens."""
    return [outcome(lambda: guarded.who(f"Bearer {what}-{number}", address)) for number in range(n)]  # noqa: B023


def made(core: Core, name: str, role: Role = Role.USER) -> str:
    return f"Bearer {core.database.write(lambda: tokens.create(name, role))}"


# -- the bucket -------------------------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_at_once_and_its_rate_after_that(clock: Clock) -> None:
    throttle = Throttle(per_second=2.0, burst=3, clock=clock)
    assert [throttle.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert throttle.take("b") == 0, "each key has its own"
    clock.now += 0.5
    assert [throttle.take("a") == 0 for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [throttle.take("a") == 0 for _ in range(4)] == [True, True, True, False]


def test_what_is_given_back_may_be_taken_again(clock: Clock) -> None:
    throttle = Throttle(per_second=1.0, burst=1, clock=clock)
    for _ in range(5):
        assert throttle.take("a") == 0
        throttle.give_back("a")
    throttle.give_back("nobody's")


def test_buckets_are_bounded_and_full_ones_go_first(clock: Clock) -> None:
    throttle = Throttle(per_second=1.0, burst=2, largest=100, clock=clock)
    for key in range(90):
        throttle.take(key)
    clock.now += 10
    throttle.take("busy")
    throttle.take("busy")
    for key in range(1000):
        throttle.take(f"another {key}")
        if key < 40:
            assert throttle.take("busy") > 0, "those that were full went first"
        assert len(throttle) <= 100


# -- guesses ----------------------------------------------------------------------------------------------------------------


def test_b20_ten_thousand_guesses_are_answered_with_429(core: Core, guarded: Callers, clock: Clock) -> None:
    outcomes = guess(guarded, 10_000)
    assert outcomes[: callers.GUESSES_AT_ONCE] == ["UNAUTHENTICATED"] * callers.GUESSES_AT_ONCE
    assert set(outcomes[callers.GUESSES_AT_ONCE :]) == {"TOO_MANY_REQUESTS"}
    clock.now += 1.0
    again = guess(guarded, 100, what="later")
    assert again.count("UNAUTHENTICATED") == callers.GUESSES_PER_SECOND


def test_b20_a_guess_beyond_the_limit_is_not_even_looked_up(
    core: Core, guarded: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = made(core, "bob")
    guess(guarded, 1000)
    with refusing("TOO_MANY_REQUESTS"):
        guarded.who(right, NAT)  # right or wrong: a guesser learns nothing
    assert guarded.who(right, "10.0.0.2").name == "bob", "of another address it is"


def test_b20_who_was_known_before_the_flood_is_not_hurt_by_it(
    core: Core, guarded: Callers, clock: Clock
) -> None:
    right = made(core, "bob")
    guarded.who(right, NAT)
    for _ in range(5):
        guess(guarded, 1000)
        clock.now += callers.SECONDS * 2
        assert guarded.who(right, NAT).name == "bob", "also when it must be looked up again"


def test_b20_one_wrong_token_of_many_pilots_counts_as_one_guess(core: Core, guarded: Callers) -> None:
    """A farm whose token has expired: its new one must get through."""
    outcomes = [outcome(lambda: guarded.who("Bearer expired", NAT)) for _ in range(20_000)]
    assert set(outcomes) == {"UNAUTHENTICATED", "TOO_MANY_REQUESTS"}
    assert guarded.who(made(core, "farm", Role.PILOT), NAT).name == "farm"


def test_20_000_right_tokens_behind_one_address_are_no_guesses(core: Core, guarded: Callers) -> None:
    for number in range(callers.GUESSES_AT_ONCE + 50):
        assert guarded.who(made(core, f"user{number}"), NAT).name == f"user{number}"
    one = made(core, "farm", Role.PILOT)
    for _ in range(20_000):
        guarded.who(one, NAT)


def test_an_ipv6_network_is_one_guesser(core: Core, guarded: Callers) -> None:
    for number in range(callers.GUESSES_AT_ONCE):
        guess(guarded, 1, f"2001:db8::{number:x}", what=str(number))
    assert guess(guarded, 1, "2001:db8::ffff", what="one more") == ["TOO_MANY_REQUESTS"]
    assert guess(guarded, 1, "2001:db8:0:1::1", what="another net") == ["UNAUTHENTICATED"]
    assert guess(guarded, 1, "no address", what="strange") == ["UNAUTHENTICATED"]


def test_b20_by_http_a_flood_gets_429_with_a_time_and_changes_nothing(
    core: Core, client: FlaskClient, bearer: Bearer
) -> None:
    world = World(core)
    statuses = []
    with world.unchanged():
        for number in range(callers.GUESSES_AT_ONCE * 2):
            response = client.get("/v1/queues", headers={"Authorization": f"Bearer guess-{number}"})
            statuses.append(response.status_code)
    assert statuses[0] == 401
    assert statuses[-1] == 429
    refusal(response, 429, "TOO_MANY_REQUESTS")
    assert int(response.headers["Retry-After"]) >= 1
    flooded = client.get("/v1/queues")
    assert flooded.status_code == 401, "who says nothing has a bucket of its own"
    other = client.get("/v1/queues", headers=bearer[Role.USER], environ_overrides={"REMOTE_ADDR": "10.9.9.9"})
    assert other.status_code == 200


def test_b20_requests_without_a_token_are_limited_too(client: FlaskClient) -> None:
    statuses = [client.post("/v1/getJob").status_code for _ in range(callers.GUESSES_AT_ONCE + 50)]
    assert (statuses[0], statuses[-1]) == (401, 429)
    malformed = [
        client.post("/v1/getJob", headers={"Authorization": f"Basic {number}"}).status_code
        for number in range(50)
    ]
    assert 429 in malformed, "they share it"


def test_b20_what_needs_no_token_is_not_limited(client: FlaskClient) -> None:
    for _ in range(callers.GUESSES_AT_ONCE + 50):
        assert client.get("/", headers={"Authorization": "Bearer guess"}).status_code == 200


class TestBehindABalancer:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(proxies=("10.1.1.1",))

    def test_b20_a_known_balancer_tells_who_asks_and_nobody_else_does(self, client: FlaskClient) -> None:
        def ask(balancer: str, forwarded: str, n: int = 1) -> int:
            for number in range(n):
                headers = {"Authorization": f"Bearer {forwarded}-{number}", "X-Forwarded-For": forwarded}
                response = client.get(
                    "/v1/queues", headers=headers, environ_overrides={"REMOTE_ADDR": balancer}
                )
            return response.status_code

        many = callers.GUESSES_AT_ONCE * 2
        assert ask("10.1.1.1", "made up, 192.0.2.1", many) == 429
        assert ask("10.1.1.1", "192.0.2.1, 192.0.2.2") == 401, "the last one is what the balancer saw"
        assert ask("10.1.1.1", "") == 401
        assert ask("10.2.2.2", "192.0.2.3", many) == 429
        assert ask("10.2.2.2", "192.0.2.4") == 429, "a client may write there what it likes"


# -- heartbeats -------------------------------------------------------------------------------------------------------------


def test_b28_ten_thousand_heartbeats_of_one_pilot_are_limited_and_nobody_elses(
    guarded: Callers, clock: Clock
) -> None:
    farm = Caller("farm", Role.PILOT, token_id=7)

    def beats(pilot_id: str, n: int, caller: Caller = farm) -> int:
        """How many were taken."""
        return [outcome(lambda: guarded.limit_heartbeats(caller, pilot_id)) for _ in range(n)].count("")

    assert beats("p1", 10_000) == callers.BEATS_AT_ONCE
    for number in range(2, 20_000):
        assert beats(f"p{number}", 1) == 1, "each of 20,000 behind the same token"
    assert beats("p1", 1, Caller("another", Role.PILOT, token_id=8)) == 1, "no stranger holds it up"
    clock.now += 1.0
    assert beats("p1", 1000) == callers.BEATS_PER_SECOND
    clock.now += 20.0
    assert beats("p1", 1) == 1, "at the usual pace nothing is ever refused"


def test_b28_by_http_a_pilot_that_beats_too_often_waits_as_it_is_told(
    core: Core, client: FlaskClient, bearer: Bearer
) -> None:
    World(core).ready()
    World(core).pilot("p2")
    pilot = Speaker(client, bearer, Role.PILOT)
    responses = [pilot.post("/v1/heartbeat", {"pilotId": "p1"}) for _ in range(callers.BEATS_AT_ONCE * 2)]
    assert responses[0].status_code == 200
    refusal(responses[-1], 429, "TOO_MANY_REQUESTS")
    assert int(responses[-1].headers["Retry-After"]) >= 1
    pilot.ok("POST", "/v1/heartbeat", {"pilotId": "p2"})


# -- cost -------------------------------------------------------------------------------------------------------------------


def test_who_a_caller_is_costs_microseconds(core: Core) -> None:
    """Not a benchmark: the bound is ten times what it takes, and a query would take ten times the bound."""
    header = made(core, "bob")
    core.callers.who(header, NAT)
    began = time.process_time()
    for _ in range(2000):
        core.callers.who(header, NAT)
    assert (time.process_time() - began) / 2000 < 30e-6
