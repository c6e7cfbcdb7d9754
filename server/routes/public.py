"""What needs no token: health, the API's own description, and the pilot as one file for wrappers to fetch."""

from __future__ import annotations

from typing import Any

from flask import Response, send_file

import protocol
from protocol.share import shared_path
from server import pilot_package
from server.access.tokens import Role
from server.job_executor import lease_clock
from server.routes import Call, Door

door = Door()


@door.route("GET", "/", Role.PUBLIC)
def index(call: Call) -> Any:
    """Where to go from here."""
    return {
        "service": "Pilotage",
        "version": protocol.__version__,
        "documentation": "/docs",
        "openapi": "/v1/openapi.json",
    }


@door.route("GET", "/healthz", Role.PUBLIC)
def health(call: Call) -> Any:
    """The server answers and its database does too."""
    return {
        "status": "ok",
        "version": protocol.__version__,
        "leaseClock": lease_clock(),
    }


@door.route("GET", "/v1/pilot.pyz", Role.PUBLIC, gives="application/octet-stream")
def pilot_file(call: Call) -> Any:
    """The pilot as one file, with its SHA-256 in a header."""
    path = pilot_package.path(call.core.state_directory)
    response = send_file(
        path, mimetype="application/octet-stream", download_name="pilot.pyz", as_attachment=True
    )
    response.headers["X-Content-SHA256"] = pilot_package.digest(path)
    return response


@door.route("GET", "/v1/pilot.pyz.sha256", Role.PUBLIC, gives="text/plain")
def pilot_digest(call: Call) -> Any:
    """The SHA-256 of the pilot's file, in the form that sha256sum -c reads."""
    return Response(
        f"{pilot_package.digest(pilot_package.path(call.core.state_directory))}  pilot.pyz\n",
        mimetype="text/plain",
    )


@door.route("GET", "/v1/run_pilot.sh", Role.PUBLIC, gives="text/x-shellscript")
def wrapper(call: Call) -> Any:
    """The wrapper that fetches, checks and starts a pilot."""
    return send_file(
        shared_path("wrappers/run_pilot.sh"), mimetype="text/x-shellscript", download_name="run_pilot.sh"
    )


@door.route("GET", "/v1/minipilot.py", Role.PUBLIC, gives="text/x-python")
def minipilot(call: Call) -> Any:
    """A pilot in one file of plain Python, for tests and for nodes that have nothing."""
    return send_file(
        shared_path("wrappers/minipilot.py"), mimetype="text/x-python", download_name="minipilot.py"
    )
