"""Inputs that stay on their storage, and storages that a queue's nodes reach by another way: real pilots, a real XRootD."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Iterator

import pytest

from protocol.errors import PilotExit
from protocol.messages.pilots import InputFile
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.storages import STORAGES
from tests.storages.base import Storage
from tests.users import place_for_all

DATA = b"0123456789" * 1000
ADLER32 = f"{zlib.adler32(DATA):08x}"
READ = 'xrdcp -s "$0" - | md5sum; ls inputs'


@pytest.fixture(scope="module")
def xrootd() -> Iterator[Storage]:
    with place_for_all() as place, STORAGES["xrdcp-xrootd"](place) as storage:
        storage.write("a.spd", DATA)
        yield storage


def remote(storage: Storage, lfn: str = "a.spd", size: int = len(DATA), **checksums: str) -> InputFile:
    return InputFile(lfn, "test", "in", size, checksums, storage.url(lfn))


@pytest.mark.component("xrootd")
def test_115_an_input_stays_on_its_storage_and_the_payload_reads_it_there(
    site: Site, dispatcher: Dispatcher, xrootd: Storage
) -> None:
    number = dispatcher.add("sh", "-c", READ, "{input}", inputs=[remote(xrootd, adler32=ADLER32)])
    assert site.run(PILOTAGE_COPYTOOLS__DIRECT_ACCESS="root") == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", site.pilots[0].log
    assert site.archive(number)["payload.stdout"] == f"{hashlib.md5(DATA).hexdigest()}  -\n", (
        "nothing is in the directory of inputs"
    )


@pytest.mark.component("xrootd")
def test_115_a_task_may_ask_for_it_where_the_queue_does_not(
    site: Site, dispatcher: Dispatcher, xrootd: Storage
) -> None:
    number = dispatcher.add(
        "sh", "-c", READ, "{input}", inputs=[remote(xrootd)], pilot_settings={"copytools.direct_access": "root"}
    )  # fmt: skip
    assert site.run() == PilotExit.DONE
    assert hashlib.md5(DATA).hexdigest() in site.archive(number)["payload.stdout"]


@pytest.mark.component("xrootd")
@pytest.mark.parametrize(
    ("lfn", "size", "checksum", "expected"),
    [
        ("missing.spd", len(DATA), ADLER32, "INPUT_NOT_FOUND"),
        ("a.spd", len(DATA) + 1, ADLER32, "INPUT_SIZE_MISMATCH"),
        ("a.spd", len(DATA), "00000000", "STAGE_IN_ADLER32_MISMATCH"),
    ],
)
def test_115_one_that_cannot_be_read_or_is_another_one_never_meets_a_payload(
    site: Site, dispatcher: Dispatcher, xrootd: Storage, lfn: str, size: int, checksum: str, expected: str
) -> None:
    number = dispatcher.add("touch", str(site.place / "ran"), inputs=[remote(xrootd, lfn, size, adler32=checksum)])  # fmt: skip
    site.run(PILOTAGE_COPYTOOLS__DIRECT_ACCESS="root", PILOTAGE_COPYTOOLS__RETRIES="0")
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == expected
    assert not (site.place / "ran").exists()


def test_115_a_file_of_the_node_is_read_where_it_lies(site: Site, dispatcher: Dispatcher) -> None:
    file = site.input("a.dat", b"here")
    number = dispatcher.add("sh", "-c", 'echo "$0"; cat "$0"', "{input}", inputs=[file])
    assert site.run(PILOTAGE_COPYTOOLS__DIRECT_ACCESS="file") == PilotExit.DONE
    assert site.archive(number)["payload.stdout"] == f"{site.place}/input/a.dat\nhere"


def test_165_addresses_are_those_of_the_catalogue_or_what_a_rule_of_the_queue_makes_of_them(
    site: Site, dispatcher: Dispatcher
) -> None:
    file = dataclasses.replace(site.input("a.dat", b"data"), url="root://eos.example//store/in/a.dat")
    number = dispatcher.add("cp", "{input}", "{output}", inputs=[file], outputs=["out"])
    rules = f"gopher://a -> file:///nowhere, root://eos.example//store/in -> file://{site.place}/input"
    dispatcher.queue.pilot_settings = {"copytools.addresses": rules}
    assert site.run() == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", site.pilots[0].log
    assert site.stored(f"out.{number}").read_bytes() == b"data"


def test_a_rule_that_is_none_ends_the_start_in_words(site: Site, dispatcher: Dispatcher) -> None:
    assert site.run(PILOTAGE_COPYTOOLS__ADDRESSES="root://a => file:///b") == PilotExit.BAD_SETTINGS
    assert "is no rule; write root://eos.example//store" in site.pilots[0].log
    assert not dispatcher.bodies("getJob")


def test_a_storage_that_a_rule_leads_to_has_to_be_mounted_as_any_other(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("touch", "{output}", outputs=["out"])
    dispatcher.queue.storage_url = f"file://{dispatcher.storage}"
    rules = f"file://{dispatcher.storage} -> file://{site.place}/mounted"
    dispatcher.queue.pilot_settings = {"copytools.addresses": rules}
    site.run(PILOTAGE_COPYTOOLS__RETRIES="0")
    end = dispatcher.attempt(number).end
    assert end is not None and end.error == "NODE_MOUNT_MISSING"
    assert not (site.place / "mounted").exists(), "nothing is made in its place"
