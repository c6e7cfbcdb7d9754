"""What the tests of the doors share: one way to send, and the one shape of every failure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from protocol.errors import BY_NAME
from protocol.messages import from_wire
from protocol.messages.views import ErrorReply
from server.access.tokens import Role
from tests.integration.server.world import Bearer

BUNDLE = b"bytes of a .tar.gz"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


def filled(path: str) -> str:
    """The path of a route, with names of what there may be."""
    for part, value in (
        *(("task", "t"), ("job", "1"), ("name", "in"), ("pilot", "p1"), ("digest", DIGEST)),
        *(("account", "ada"), ("group", "spd"), ("token", "99")),
    ):
        path = path.replace(f"<{part}>", value)
    return path


class Speaker:
    """Speaks to the application as one role."""

    def __init__(self, client: FlaskClient, bearer: Bearer, role: Role = Role.ADMIN) -> None:
        self._client = client
        self._bearer = bearer
        self._role = role

    def as_(self, role: Role) -> Speaker:
        return Speaker(self._client, self._bearer, role)

    def send(self, method: str, path: str, body: Any = None, **rest: Any) -> TestResponse:
        """`body` is sent as JSON; `data` in `rest` as it is."""
        headers = {
            **(self._bearer[self._role] if self._role is not Role.PUBLIC else {}),
            **rest.pop("headers", {}),
        }
        if body is not None:
            rest["data"] = json.dumps(body)
        return self._client.open(path, method=method, headers=headers, buffered=True, **rest)

    def get(self, path: str, **rest: Any) -> TestResponse:
        return self.send("GET", path, **rest)

    def post(self, path: str, body: Any = None, **rest: Any) -> TestResponse:
        return self.send("POST", path, body, **rest)

    def ok(self, method: str, path: str, body: Any = None, **rest: Any) -> Any:
        """The JSON of a request that must succeed."""
        response = self.send(method, path, body, **rest)
        assert response.status_code in (200, 201), response.get_data(as_text=True)
        return response.get_json()


def refusal(response: TestResponse, status: int, error: str = "") -> ErrorReply:
    """The body of a failure, after a look at its shape."""
    text = response.get_data(as_text=True)
    assert response.status_code == status, text
    assert response.mimetype == "application/json", text
    body = json.loads(text)
    assert (
        {"error", "code", "text", "detail", "advice"}
        <= body.keys()
        <= {*("error", "code", "text", "detail", "advice", "fields")}
    )
    reply = from_wire(ErrorReply, body)
    entry = BY_NAME[reply.error]
    assert (reply.code, reply.text, reply.advice) == (entry.code, entry.text, entry.advice)
    assert reply.detail, "it says what was the matter"
    assert "Traceback" not in text
    assert 'File "' not in text
    if error:
        assert reply.error == error, text
    return reply
