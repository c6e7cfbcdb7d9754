"""What the tests of tokens, accounts and groups share: an operator who makes them, and the people who use them."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient

from server.access.tokens import Role
from server.core import Core
from tests.integration.server.http import Speaker
from tests.integration.server.world import Bearer

TASK: dict[str, Any] = {"command": ["true"], "nJobs": 3}


class Tenants:
    """An operator with the first token, and everybody else by the tokens that the operator made."""

    def __init__(self, core: Core, client: FlaskClient, bearer: Bearer) -> None:
        self.core = core
        self._client = client
        self.admin = Speaker(client, bearer, Role.ADMIN)
        self.ids: dict[str, int] = {}

    def token(self, name: str, role: str = "user", **rest: Any) -> Speaker:
        """Somebody with a new token."""
        made = self.admin.ok("POST", "/v1/tokens", {"name": name, "role": role, **rest})
        self.ids[name] = made["tokenId"]
        return self.with_token(made["token"])

    def with_token(self, token: str) -> Speaker:
        return Speaker(self._client, Bearer({Role.USER: token}), Role.USER)

    def group(self, name: str, parent: str = "", **rest: Any) -> None:
        self.admin.ok("POST", "/v1/groups", {"name": name, "parent": parent, **rest})

    def tree(self) -> None:
        """physics with spd and nica below it, spd with spd.sim; biology beside it."""
        for name, parent in (
            *(("physics", ""), ("spd", "physics"), ("nica", "physics"), ("spd.sim", "spd"), ("biology", "")),
        ):
            self.group(name, parent)

    def task(self, who: Speaker, name: str, **rest: Any) -> Any:
        return who.ok("POST", "/v1/tasks", {**TASK, "name": name, **rest})
