"""The commands of copytools beside payloads: neither gets what is the other's, neither is ended with the other."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

import pytest

from copytools import gfal
from protocol.errors import PilotExit
from protocol.messages.pilots import InputFile
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site
from tests.storages.gfal import PYTHON
from tests.waiting import wait_until

RECORDS = """\
#!/bin/sh
{{ echo "== $0"; printf '%s\\n' "$@"; }} >> '{place}/arguments'
env >> '{place}/environment'
"""
"""What a stand-in for a command does first: it writes down what it was given."""

XRDFS = 'test "$2" = stat && echo "Size: 9"\n'
XRDCP = 'for to in "$@"; do :; done; printf "an input\\n" > "$to"\n'


def stand_in(path: Path, place: Path, script: str) -> None:
    path.write_text(RECORDS.format(place=place) + script)
    path.chmod(0o755)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("named_by", ["options", "the pilot's environment"])
def test_credentials_reach_the_command_by_its_environment_alone_and_never_the_payload(
    site: Site, dispatcher: Dispatcher, named_by: str
) -> None:
    """Recorded by stand-ins for xrdcp and xrdfs: a real server shows no command line."""
    bin_directory = site.place / "bin"
    bin_directory.mkdir()
    stand_in(bin_directory / "xrdfs", site.place, XRDFS)
    stand_in(bin_directory / "xrdcp", site.place, XRDCP)
    names = {"proxy_file": "X509_USER_PROXY", "token_file": "BEARER_TOKEN_FILE", "keytab": "XrdSecSSSKT"}
    for key in names:
        (site.place / f"secret-{key}").write_text(f"very-secret-{key}")
    environment: Dict[str, str] = {}
    config = site.place / "pilot.ini"
    if named_by == "options":
        lines = [f"{key} = {site.place}/secret-{key}" for key in names]
        config.write_text("\n".join(["[copytool:xrdcp]", *lines]))
    else:
        config.write_text("")
        environment = {name: f"{site.place}/secret-{key}" for key, name in names.items()}
    file = InputFile("in.txt", "test", "in", 9, {}, "root://storage.example//store/in.txt")
    number = dispatcher.add(
        "sh", "-c", 'cat "$0"; env; tr "\\0" "\\n" < /proc/self/environ', "{input}", inputs=[file]
    )
    path = f"{bin_directory}:{site.environment['PATH']}"
    assert site.run("--config", str(config), "--max-jobs", "1", PATH=path, **environment) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED", site.archive(number)

    arguments = (site.place / "arguments").read_text()
    given = (site.place / "environment").read_text().splitlines()
    archive = site.archive(number)
    assert "xrdcp" in arguments and "xrdfs" in arguments
    for key, name in names.items():
        assert f"{name}={site.place}/secret-{key}" in given
    everywhere = arguments + "".join(archive.values()) + site.pilots[-1].log
    assert "an input" in archive["payload.stdout"]
    assert "secret-" not in everywhere and not [
        name for name in names.values() if name in archive["payload.stdout"]
    ]


@pytest.mark.component("gfal")
def test_a_token_reaches_gfal_by_its_file_alone(tmp_path: Path) -> None:
    stand_in(tmp_path / "python", tmp_path, f'exec {PYTHON} "$@"\n')
    (tmp_path / "token").write_text("very-secret-token")
    (tmp_path / "a").write_text("a")
    options: Dict[str, str] = {"python": f"{tmp_path}/python", "token_file": f"{tmp_path}/token"}
    gfal.Tool(options).copy_in(f"file://{tmp_path}/a", tmp_path / "b", 60)
    assert f"{tmp_path}/token" not in (tmp_path / "arguments").read_text()
    given: List[str] = (tmp_path / "environment").read_text().splitlines()
    assert f"BEARER_TOKEN_FILE={tmp_path}/token" in given and "very-secret-token" not in "".join(given)


ORPHAN = """\
sh -c '(while ! test -e "$1"; do sleep 0.05; done; echo lived > "$2") & exec true' orphan {place}/gate {place}/orphan
echo begun > {place}/begun
while ! test -e {place}/gate; do sleep 0.05; done
while ! test -e {place}/orphan; do sleep 0.05; done
cp -- "$1" "$2"
"""
"""A command that takes its time, and has a process whose parent ended: the pilot is the parent of both."""


def test_f18_a_command_of_a_copytool_is_never_taken_for_what_a_payload_left(
    site: Site, dispatcher: Dispatcher
) -> None:
    get = script(site.place / "get", ORPHAN.format(place=site.place))
    source = site.place / "source"
    source.write_text("an input\n")
    config = site.place / "pilot.ini"
    config.write_text(
        f"[copytool:lsm]\nschemes = root\nget_command = {get} {source} {{local}}\nput_command = false\n"
    )
    file = InputFile("in.txt", "test", "in", 9, {}, "root://storage.example//store/in.txt")
    # It leaves a process in a session of its own and without the mark, which the pilot has to find among its children. Only what
    # began after a payload could be that payload's.
    leaves = (
        f"touch {site.place}/runs; until test -e {site.place}/begun; do sleep 0.05; done;"
        f" env -i setsid sleep 600 & echo $! > {site.place}/left; sleep 0.1"
    )
    ends = dispatcher.add("sh", "-c", leaves)
    pilot = site.start(
        *("--config", str(config), "--slots", "2", "--max-jobs", "2"), PILOTAGE_COPYTOOLS__NAMES="lsm,cp"
    )
    wait_until((site.place / "runs").exists, 30, "the other payload")
    waits = dispatcher.add("cat", "{input}", inputs=[file])
    wait_until(lambda: dispatcher.attempt(ends).state == "COMPLETED", 30, "the end of the other payload")
    assert dispatcher.attempt(waits).state != "FAILED"
    (site.place / "gate").touch()
    assert pilot.wait(30) == PilotExit.DONE
    assert dispatcher.attempt(waits).state == "COMPLETED", site.archive(waits)
    assert (site.place / "orphan").read_text() == "lived\n"
    assert site.archive(waits)["payload.stdout"] == "an input\n"
    assert not Path(f"/proc/{int((site.place / 'left').read_text())}").exists()
