"""Which URLs name a database."""

from __future__ import annotations

import pytest

from protocol.errors import PilotageError
from server import database


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////srv/a.db", "/srv/a.db"),
        ("sqlite:///srv/a.db", "/srv/a.db"),
        ("sqlite:////a b/ä.db", "/a b/ä.db"),
    ],
)
def test_a_sqlite_url_names_a_file(url: str, path: str) -> None:
    assert database._open(url).database == path


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_postgres_url_is_taken(scheme: str) -> None:
    pytest.importorskip("psycopg", reason="install the extra postgres to run this")
    opened = database._open(f"{scheme}://user:secret@host:5433/name")
    assert "secret" not in repr(opened)


@pytest.mark.parametrize(
    "url", ["", "sqlite:", "sqlite://", "sqlite://relative.db", "mysql://h/n", "/srv/a.db", "sqlite"]
)
def test_any_other_url_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(PilotageError, match="sqlite:///") as caught:
        database._open(url)
    assert caught.value.name == "BAD_SETTINGS"
