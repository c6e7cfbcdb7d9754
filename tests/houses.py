"""Nodes of the tests whose pilots isolate their payloads in one way or another, or not: where every account gets in, but not into what is the pilot's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple

from server import pilot_package
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.users import PYTHON, ordinary_user, place_for_all

BUBBLEWRAP = {"PILOTAGE_PAYLOAD__EXECUTOR": "bubblewrap"}
OTHER_ACCOUNT = {"PILOTAGE_PAYLOAD__USERS": "nobody"}
DIRECTORIES = ("PILOTAGE_COPYTOOL_CP__DIRECTORIES", "PILOTAGE_COPYTOOL_NFS__DIRECTORIES")
"""Without them root copies no file for others."""


class SetUp(NamedTuple):
    """How a pilot runs its payloads, and as whom it runs itself."""

    settings: Dict[str, str]
    as_root: bool = True


class House(NamedTuple):
    site: Site
    dispatcher: Dispatcher
    settings: Dict[str, str]
    runs_as_root: bool
    """Its payloads do."""


@contextmanager
def house_of(wanted: SetUp) -> Iterator[House]:
    """A node where every account gets in, but not into what is the pilot's."""
    with place_for_all() as base:
        place, storage = base / "node", base / "storage"
        (storage / "log").mkdir(parents=True)
        place.mkdir()
        with Dispatcher(storage) as dispatcher:
            site = Site(place, dispatcher)
            site.environment["PYTHONDONTWRITEBYTECODE"] = "1"
            site.environment.update(dict.fromkeys(DIRECTORIES, str(base)))
            package = base / "pilot.pyz"
            pilot_package.build(package)
            package.chmod(0o644)
            places = (place, site.token, storage, storage / "log")
            site.program = [*([] if wanted.as_root else ordinary_user(*places)), PYTHON, str(package)]
            try:
                runs_as_root = wanted.as_root and not OTHER_ACCOUNT.items() <= wanted.settings.items()
                yield House(site, dispatcher, wanted.settings, runs_as_root)
            finally:
                site.clear()
