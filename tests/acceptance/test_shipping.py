"""The user's code travels with the task: packed, kept by the server, fetched once per node, verified, unpacked for each job."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from protocol.messages import from_wire
from protocol.messages.views import TaskView
from tests.acceptance.world import Running, World, errors
from tests.running_server import serving

SCRIPT = "#!/bin/sh\necho shipped: $1\n"


def shipped(world: World, path: Path, queue: str, command: str, *options: str) -> TaskView:
    """Submit a task with this code by the command."""
    return submitted(world, queue, command, "--ship", str(path), *options)


def submitted(world: World, queue: str, command: str, *options: str) -> TaskView:
    shown = world.pilotage(
        "task", "submit", "--name", world.unique("ship"), "--queue", queue, "--jobs", "1",
        "--output", "out-{job_nr}", "--json", *options, "--", "sh", "-c", command,
    )  # fmt: skip
    return world.note(from_wire(TaskView, json.loads(shown)))


def bundle_of(world: World, task: TaskView) -> str:
    return str((world.session.task(task.task_id).spec or {})["bundle"])


@pytest.fixture
def script(world: World) -> Path:
    """One of its own for each test: a bundle's digest is that of its content."""
    path = world.directory / "tool.sh"
    path.write_text(f"{SCRIPT}# {world.name}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def kit(world: World) -> Path:
    """A directory of code: a program, a module below it, and what is not to travel."""
    directory = world.directory / "kit"
    for folder in ("bin", "lib/deep", "lib/__pycache__", ".git"):
        (directory / folder).mkdir(parents=True)
    (directory / "bin" / "run").write_text('#!/bin/sh\ncat "$(dirname "$0")/../lib/deep/words"\n')
    (directory / "bin" / "run").chmod(0o755)
    (directory / "lib" / "deep" / "words").write_text("from the depth\n")
    (directory / "lib" / "__pycache__" / "x.pyc").write_text("x")
    (directory / ".git" / "config").write_text("x")
    return directory


def test_a_file_that_is_shipped_lies_in_the_bundle_directory_and_can_be_run(
    world: World, script: Path
) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = shipped(world, script, queue, "{bundle}/tool.sh {job_nr} > {output}")
    assert world.ended(task).state == "COMPLETED"
    assert world.output(task) == "shipped: 1\n"


def test_a_directory_that_is_shipped_arrives_with_its_folders_and_its_programs_but_without_caches(
    world: World, kit: Path
) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = shipped(world, kit, queue, "({bundle}/bin/run; cd {bundle}; find . -type f | sort) > {output}")
    assert world.ended(task).state == "COMPLETED"
    assert world.output(task) == "from the depth\n./bin/run\n./lib/deep/words\n"


def test_what_changes_in_the_directory_after_the_submission_changes_nothing(
    world: World, script: Path
) -> None:
    queue = world.queue()
    task = shipped(world, script, queue, "{bundle}/tool.sh {job_nr} > {output}")
    script.write_text("#!/bin/sh\nexit 1\n")
    world.pilot(queue)
    assert world.ended(task).state == "COMPLETED"


def test_the_same_code_is_one_bundle_also_from_another_place_at_another_time(world: World, kit: Path) -> None:
    queue = world.queue()
    other = world.directory / "elsewhere"
    kit.rename(other)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    first = shipped(world, other, queue, "true")
    other.rename(kit)
    assert bundle_of(world, first) == bundle_of(world, shipped(world, kit, queue, "true"))


def fetches(pilot: Running) -> int:
    return pilot.text.count("bundle is fetched")


def test_a_bundle_is_fetched_once_for_all_jobs_and_pilots_of_a_node(world: World, script: Path) -> None:
    queue = world.queue()
    pilots = [world.pilot(queue) for _ in range(2)]  # in the same work directory
    here = world.directory / "here"
    both = f"touch {here}-{{job_nr}}; until [ -e {here}-1 -a -e {here}-2 ]; do sleep 0.05; done"
    task = shipped(world, script, queue, f"{both}; {{bundle}}/tool.sh {{job_nr}} > {{output}}", "--jobs", "2")
    assert world.ended(task).state == "COMPLETED"
    assert len({job.pilot_id for job in world.jobs(task)}) == 2
    assert sum(map(fetches, pilots)) == 1


def test_a_job_that_changes_its_bundle_does_not_change_that_of_the_next_one(
    world: World, script: Path
) -> None:
    queue = world.queue()
    world.pilot(queue)
    task = shipped(
        world,
        script,
        queue,
        "{bundle}/tool.sh {job_nr} > {output}; echo exit 1 > {bundle}/tool.sh",
        "--jobs",
        "2",
    )
    assert world.ended(task).state == "COMPLETED"


def test_a_bundle_that_was_damaged_in_the_nodes_cache_is_fetched_again(world: World, script: Path) -> None:
    queue = world.queue()
    pilot = world.pilot(queue)
    first = shipped(world, script, queue, "{bundle}/tool.sh 1 > {output}")
    assert world.ended(first).state == "COMPLETED"
    (cached,) = (world.directory / "work" / "bundles").glob("sha256-*")
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    second = shipped(world, script, queue, "{bundle}/tool.sh 2 > {output}")
    assert world.ended(second).state == "COMPLETED"
    assert fetches(pilot) == 2


def test_a_bundle_that_was_damaged_on_the_servers_disk_is_refused_by_the_pilot(
    world: World, script: Path
) -> None:
    queue = world.queue()
    task = shipped(world, script, queue, "touch ran; {bundle}/tool.sh 1 > {output}", "--max-losses", "0")
    kept = world.server.directory / "bundles" / bundle_of(world, task)
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept.write_bytes(damaged)
    world.pilot(queue)
    assert world.ended(task).state == "FAILED"
    job = world.job(task)
    assert errors(job) == ["BUNDLE_FAILED"]
    assert "arrived with the SHA-256" in (job.error_detail or "")
    # Sent again, it is whole again.
    again = shipped(world, script, queue, "{bundle}/tool.sh 1 > {output}")
    assert world.ended(again).state == "COMPLETED"


# -- software of others -------------------------------------------------------------------------------------------------------


def test_17_software_is_named_by_its_address_and_checksum_and_fetched_for_the_jobs(
    world: World, kit: Path
) -> None:
    program = kit / "bin" / "run"
    program.write_text('#!/bin/sh\necho "$GREETING from $PILOTAGE_SOFTWARE"\n')
    (kit / "setup.sh").write_text("export GREETING=hello\n")
    archive = world.directory / "kit-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(kit, "kit-1.0")
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    queue = world.queue()
    world.pilot(queue)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(world.directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        options = (
            *("--software", f"http://127.0.0.1:{web.server_address[1]}/{archive.name}"),
            *("--software-checksum", f"sha256:{checksum}", "--pilot-setting", "copytools.timeout_seconds=30"),
        )
        task = submitted(world, queue, "run > {output}; test $PILOTAGE_SOFTWARE = {software}", *options)
        assert world.ended(task).state == "COMPLETED", errors(world.job(task))
        web.shutdown()
    assert world.output(task).startswith("hello from /")
    refused = world.cli("task", "submit", "--jobs", "1", *options[:2], "--", "true")
    assert refused.returncode == 1
    assert "--software: a URL needs its checksum (--software-checksum)" in refused.stderr


# -- what is not shipped ------------------------------------------------------------------------------------------------------


def _refused(world: World, path: Path | str) -> str:
    """The message; no task came into being."""
    before = [task.name for task in world.session.tasks()]
    done = world.cli("task", "submit", "--ship", str(path), "--jobs", "1", "--", "true")
    assert done.returncode == 1, done.stderr
    assert [task.name for task in world.session.tasks()] == before
    return done.stderr


def test_a_path_to_ship_that_does_not_exist_is_refused(world: World) -> None:
    assert "no-such-path does not exist" in _refused(world, "no-such-path")


def test_a_link_in_a_directory_to_ship_is_refused(world: World, kit: Path) -> None:
    (kit / "secret").symlink_to("/etc/passwd")
    assert "secret is a link" in _refused(world, kit)


def test_a_pipe_in_a_directory_to_ship_is_refused_and_not_waited_for(world: World, kit: Path) -> None:
    os.mkfifo(kit / "pipe")
    assert "pipe is no regular file" in _refused(world, kit)


def test_an_empty_directory_is_refused(world: World) -> None:
    (world.directory / "empty").mkdir()
    assert "holds no file to ship" in _refused(world, "empty")


@pytest.fixture
def small_world(tmp_path: Path) -> Iterator[World]:
    """Beside a server that takes bundles of up to 1 MiB."""
    with serving(tmp_path / "server", extra={"PILOTAGE_SERVER__BUNDLE_LIMIT_MB": "1"}) as server:
        world = World(server, tmp_path, "small")
        yield world
        world.close()


def test_a_bundle_above_the_limit_of_the_server_is_refused_and_nothing_of_it_is_kept(
    small_world: World,
) -> None:
    (small_world.directory / "large").write_bytes(os.urandom(2 << 20))
    message = _refused(small_world, "large")
    assert "larger than the limit" in message and "1048576 bytes" in message
    assert not list((small_world.server.directory / "bundles").iterdir())
