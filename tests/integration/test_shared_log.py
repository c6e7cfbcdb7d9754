"""One log file of several processes, as gunicorn's workers have it: rotation loses no line and keeps the size (seeds 65)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROCESSES, RECORDS, SIZE = 4, 500, 10_000

WRITER = """
import logging, os, sys
from pathlib import Path
from protocol import logs

path, records, size, forked = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
log = logs.set_up("INFO", path, size, 1000)
children = []
for _ in range(forked):
    child = os.fork()
    if child == 0:
        children = []
        break
    children.append(child)
if not children:
    for number in range(records):
        logging.info("record", extra={"writer": os.getpid(), "number": number})
log.close()
failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
sys.exit(bool(failed))
"""


@pytest.mark.parametrize(
    ("started", "forked"), [(PROCESSES, 0), (1, PROCESSES)], ids=["started", "forked from one"]
)
def test_processes_that_share_a_log_file_lose_no_line(tmp_path: Path, started: int, forked: int) -> None:
    command = [
        sys.executable,
        "-c",
        WRITER,
        str(tmp_path / "server.log"),
        str(RECORDS),
        str(SIZE),
        str(forked),
    ]
    writers = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
        )
        for _ in range(started)
    ]
    for writer in writers:
        _, told = writer.communicate(timeout=60)
        assert (writer.returncode, told) == (0, "")
    lines = [
        line.partition("record ")[2] for path in tmp_path.iterdir() for line in path.read_text().splitlines()
    ]
    assert len(set(lines)) == len(lines) == PROCESSES * RECORDS
    # A writer that looked before another wrote may go over by its line, so by one line for each other writer.
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= SIZE + PROCESSES * 120
