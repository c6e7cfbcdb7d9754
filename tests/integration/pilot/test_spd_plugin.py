"""SPD's payloads: .spd inputs are looked into, the software is set up, containers are entered."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import List

import pytest

from protocol import spd
from protocol.messages.pilots import InputFile
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site

OPTIONS = ("--pilotuser", "spd", "--max-jobs", "1")


def spd_file(path: Path, kind: spd.Kind = spd.Kind.RAW) -> Path:
    sources = (spd.Source(1000, spd.Role.FRAME_CLOCK, 1), spd.Source(2000, spd.Role.DETECTOR, 8))
    with open(path, "wb") as stream:
        writer = spd.Writer(stream, spd.FileHeader(kind, 1, 0, 1, 10_000, 10, sources))
        writer.begin_frame(spd.FrameHeader(0, 0, 10, (spd.Clock(1000, 0),)))
        writer.write_blocks(spd.pack_block(2000, 3, [spd.Hit(5, 1, 7, 0)]), 1, 1)
        writer.end_frame()
        writer.close()
    return path


def registered(path: Path) -> InputFile:
    data = path.read_bytes()
    return InputFile(
        path.name, "s", "d", len(data), {"adler32": f"{zlib.adler32(data):08x}"}, f"file://{path}"
    )


@pytest.mark.parametrize(
    ("data_type", "kind", "damage", "error"),
    [
        ("raw", spd.Kind.RAW, None, ""),
        ("simulated", spd.Kind.SIMULATED, None, ""),
        ("", spd.Kind.SIMULATED, None, ""),
        ("raw", spd.Kind.SIMULATED, None, "SPD_WRONG_KIND"),
        ("simulated", spd.Kind.RAW, None, "SPD_WRONG_KIND"),
        ("raw", spd.Kind.RAW, "cut", "SPD_FILE_TRUNCATED"),
        ("raw", spd.Kind.RAW, "foreign", "SPD_FILE_FOREIGN"),
        ("unheard-of", spd.Kind.RAW, None, "SPD_WRONG_KIND"),
    ],
)
def test_an_spd_file_is_looked_into_after_stage_in(
    data_type: str, kind: spd.Kind, damage: str, error: str, site: Site, dispatcher: Dispatcher
) -> None:
    """Damaged before it was registered: its checksums agree, only its content does not."""
    path = spd_file(site.place / "run-000001-00000-01.spd", kind)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "foreign":
        path.write_bytes(b"GIF89a" * 100)
    number = dispatcher.add("true", inputs=[registered(path)], data_type=data_type)
    site.run(*OPTIONS)
    assert dispatcher.attempt(number).end.error == error
    assert ("RUNNING" in dispatcher.attempt(number).states) == (not error)


def test_other_inputs_are_not_looked_into(site: Site, dispatcher: Dispatcher) -> None:
    path = site.place / "notes.txt"
    path.write_text("no detector data")
    number = dispatcher.add("true", inputs=[registered(path)], data_type="raw")
    site.run(*OPTIONS)
    assert dispatcher.attempt(number).state == "COMPLETED"


def test_the_generic_plugin_knows_nothing_of_spd(site: Site, dispatcher: Dispatcher) -> None:
    path = site.place / "x.spd"
    path.write_text("foreign")
    number = dispatcher.add("true", inputs=[registered(path)])
    site.run("--max-jobs", "1")
    assert dispatcher.attempt(number).state == "COMPLETED"


def setup_script(site: Site, text: str) -> str:
    path = site.place / "set up.sh"
    path.write_text(text)
    return str(path)


def test_the_set_up_script_makes_the_payloads_environment(site: Site, dispatcher: Dispatcher) -> None:
    script = setup_script(site, "export SPDROOT=/opt/spd\nset -- changed\n[ $# = 1 ] || exit 1\n")
    number = dispatcher.add("sh", "-c", 'echo "$SPDROOT|$1|$2"', "sh", "a  b", "$(touch evil); `x`")
    site.run(*OPTIONS, PILOTAGE_SPD__SOFTWARE_SETUP=script)
    assert site.archive(number)["payload.stdout"] == "/opt/spd|a  b|$(touch evil); `x`\n"


def test_a_set_up_script_that_is_not_there_fails_the_job_before_any_transfer(
    site: Site, dispatcher: Dispatcher
) -> None:
    path = site.place / "a.dat"
    path.write_text("input")
    number = dispatcher.add("true", inputs=[registered(path)])
    site.run(*OPTIONS, PILOTAGE_SPD__SOFTWARE_SETUP="/cvmfs/no/such/setup.sh")
    assert dispatcher.attempt(number).end.error == "SETUP_FAILED"
    assert "STAGE-IN" not in dispatcher.attempt(number).states


@pytest.mark.parametrize(
    ("setup", "command", "error"),
    [
        ("echo broken >&2; false", ["true"], "SETUP_FAILED"),
        ("true", ["/no/such/program"], "TRANSFORM_NOT_FOUND"),
        ("true", ["/etc/passwd"], "BAD_COMMAND"),
        ("true", ["sh", "-c", "exit 97"], "PAYLOAD_FAILED"),
        ("true", ["sh", "-c", "exit 127"], "PAYLOAD_FAILED"),
    ],
)
def test_what_fails_in_the_set_up_is_told_apart_from_the_payload(
    setup: str, command: List[str], error: str, site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add(*command)
    site.run(*OPTIONS, PILOTAGE_SPD__SOFTWARE_SETUP=setup_script(site, setup + "\n"))
    assert dispatcher.attempt(number).end.error == error


RECORDER = """#!/bin/sh
# What a container runtime was asked for; then the command, without any container.
printf '%s\\n' "$@" > "$RECORD"
while [ "$1" != IMAGE.sif ]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize("runtime", ["apptainer", "singularity"])
def test_a_container_image_is_entered_with_the_runtime_of_the_node(
    runtime: str, site: Site, dispatcher: Dispatcher
) -> None:
    programs = site.place / "bin"
    programs.mkdir()
    (programs / runtime).write_text(RECORDER)
    (programs / runtime).chmod(0o755)
    record = site.place / "record"
    script = setup_script(site, "export INSIDE=yes\n")
    number = dispatcher.add("sh", "-c", "echo $INSIDE; pwd")
    site.run(
        *OPTIONS,
        PATH=f"{programs}:/usr/bin:/bin",
        RECORD=str(record),
        PILOTAGE_SPD__CONTAINER_IMAGE="IMAGE.sif",
        PILOTAGE_SPD__SOFTWARE_SETUP=script,
    )
    inside, directory = site.archive(number)["payload.stdout"].split()
    words = record.read_text().splitlines()
    assert inside == "yes"
    assert words[:3] == ["exec", "--pwd", directory]
    assert f"{site.place}:{site.place}:ro" in words and "--bind" in words


def test_a_node_without_container_runtime_fails_the_job_as_a_matter_of_the_site(
    site: Site, dispatcher: Dispatcher
) -> None:
    number = dispatcher.add("true")
    site.run(*OPTIONS, PATH=str(site.place), PILOTAGE_SPD__CONTAINER_IMAGE="IMAGE.sif")
    assert dispatcher.attempt(number).end.error == "SETUP_FAILED"


def test_an_unknown_plugin_is_a_wrong_setting_that_names_those_there_are(
    site: Site, dispatcher: Dispatcher
) -> None:
    assert site.run("--pilotuser", "atlas") == 2
    assert "generic, spd" in site.pilots[0].log
