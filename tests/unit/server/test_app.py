"""A route that declares no role, however it came in: the application refuses to start."""

from __future__ import annotations

from typing import Any

import flask
import pytest

from server import app as app_module
from server.app import create_app
from server.routes import Door, Route

NO_CORE: Any = None
"""Nothing is asked of the application here."""


def stray(rule: str, methods: list[str]) -> flask.Blueprint:
    blueprint = flask.Blueprint("stray", __name__)
    blueprint.add_url_rule(rule, "view", lambda: "secret", methods=methods)
    return blueprint


def test_the_application_as_it_is_starts() -> None:
    assert create_app(NO_CORE)


@pytest.mark.parametrize(
    ("rule", "methods"), [("/secret", ["GET"]), ("/v1/tasks", ["DELETE"]), ("/docs-secret", ["GET"])]
)
def test_a_route_that_came_in_by_another_way_stops_the_application(
    monkeypatch: pytest.MonkeyPatch, rule: str, methods: list[str]
) -> None:
    monkeypatch.setattr(app_module, "get_swaggerui_blueprint", lambda *args, **kwargs: stray(rule, methods))
    with pytest.raises(RuntimeError, match="declares no role"):
        create_app(NO_CORE)


def test_a_route_without_a_role_stops_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door([Route("GET", "/v1/new", None, lambda call: {})])  # type: ignore[arg-type]
    monkeypatch.setattr(app_module, "DOORS", (*app_module.DOORS, door))
    with pytest.raises(RuntimeError, match="/v1/new declares no role"):
        create_app(NO_CORE)
