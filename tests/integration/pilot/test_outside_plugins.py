"""An installed package brings a copytool and an executor; a real pilot uses both, and nothing of ours is changed for them."""

from __future__ import annotations

from dataclasses import replace

from protocol.errors import PilotExit
from tests.fakes.dispatcher import Dispatcher
from tests.pilots import Site

TOOL = """
import shutil
from copytools.base import CopyTool

class Tool(CopyTool):
    schemes = ("shelf",)

    def copy_in(self, source, to, timeout):
        shutil.copy(source.partition(":")[2], to)
"""

EXECUTOR = """
from dataclasses import replace
from pilot.plugins.executors.base import Executor as Base

class Executor(Base):
    def wrap(self, run):
        return replace(run, command=(self.program("env"), "RUN_BY=others", *run.command))
"""


def test_178_a_copytool_and_an_executor_from_an_installed_package_are_found_by_their_names(
    site: Site, dispatcher: Dispatcher
) -> None:
    place = site.place / "packages"
    (place / "others-1.dist-info").mkdir(parents=True)
    (place / "others_tool.py").write_text(TOOL)
    (place / "others_executor.py").write_text(EXECUTOR)
    (place / "others-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: others\nVersion: 1\n"
    )
    (place / "others-1.dist-info" / "entry_points.txt").write_text(
        "[pilotage.copytools]\nshelf = others_tool:Tool\n[pilotage.executors]\nothers = others_executor:Executor\n"
    )
    file = site.input("in.txt", b"from the shelf")
    file = replace(file, url=file.url.replace("file://", "shelf:"))
    number = dispatcher.add("sh", "-c", 'echo "$RUN_BY $(cat "$0")"', "{input}", inputs=[file])
    assert site.run("--max-jobs", "1", "--executor", "others", PYTHONPATH=str(place)) == PilotExit.DONE
    assert dispatcher.attempt(number).state == "COMPLETED"
    assert site.archive(number)["payload.stdout"] == "others from the shelf\n"
