"""Real storages for tests, one file each, behind one description of what the conformance tests need to know of a storage."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Callable, Dict

from tests.storages import fake_gcs, gfal, lsm, seaweed, webdav, xrootd
from tests.storages.base import Storage

STORAGES: Dict[str, Callable[[Path], AbstractContextManager[Storage]]] = {
    "xrdcp-xrootd": xrootd.running,
    "http-xrootd": xrootd.over_http,
    "http-wsgidav": webdav.running,
    "s3-seaweed": seaweed.as_s3,
    "objectstore-seaweed": seaweed.as_objectstore,
    "gs-fake_gcs": fake_gcs.running,
    "lsm-curl-xrootd": lsm.running,
    "gfal-xrootd-root": gfal.by_root,
    "gfal-xrootd-dav": gfal.by_dav,
}
"""Copytool and storage → a context that starts it in an empty directory which every account can enter."""
