"""Pilots whose copytools copy nothing: inputs that are links, outputs that get a name on the storage."""

from __future__ import annotations

import pytest

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site


@pytest.mark.parametrize(
    "executor", ["plain", pytest.param("bubblewrap", marks=pytest.mark.component("bubblewrap"))]
)
def test_a_payload_reads_its_input_on_the_storage_and_its_output_stays_where_it_was_written(
    site: Site, dispatcher: Dispatcher, executor: str
) -> None:
    file = site.input("in.txt", b"an input\n", md5="b3b2c0f9d8f2ef1a3cd2a8ad4c9ef1f0")
    good = site.input("in.txt", b"an input\n")
    script = 'readlink "$0"; cat "$0" > "$1"; stat -c %i "$1"'
    number = dispatcher.add("sh", "-ec", script, "{input}", "{output}", inputs=[good], outputs=["out"])
    wrong = dispatcher.add("true", inputs=[file])
    named = {"PILOTAGE_COPYTOOLS__NAMES": "ln", "PILOTAGE_COPYTOOLS__RETRIES": "0"}
    assert site.run("--max-jobs", "2", PILOTAGE_PAYLOAD__EXECUTOR=executor, **named) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", site.archive(number)
    place, inode = site.archive(number)["payload.stdout"].split()
    assert place == str(site.place / "input/in.txt")
    stored = site.stored(f"out.{number}")
    assert stored.read_text() == "an input\n" and stored.stat().st_ino == int(inode)
    end = dispatcher.attempt(wrong).end
    assert end is not None and end.error == "STAGE_IN_MD5_MISMATCH"
    assert (site.place / "input/in.txt").read_bytes() == b"an input\n", "its link alone is taken away"


def test_mv_takes_outputs_and_the_log_archive_away_from_the_work_directory(
    site: Site, dispatcher: Dispatcher
) -> None:
    file = site.input("in.txt", b"an input\n")
    script = 'cat "$0" > "$1"; stat -c %i "$1"'
    number = dispatcher.add("sh", "-ec", script, "{input}", "{output}", inputs=[file], outputs=["out"])
    assert site.run(PILOTAGE_COPYTOOLS__NAMES="mv") == PilotExit.DONE
    held = dispatcher.attempt(number)
    assert held.state == "COMPLETED", site.archive(number)
    stored = site.stored(f"out.{number}")
    assert stored.read_text() == "an input\n"
    assert stored.stat().st_ino == int(site.archive(number)["payload.stdout"])
    report = held.end.outputs[0] if held.end else None
    assert report is not None and report.size == 9 and "adler32" in report.checksums
    assert held.log.size == site.stored(f"log/{number}.tar.gz").stat().st_size
    assert (site.place / "input/in.txt").exists()
