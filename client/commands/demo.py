"""`pilotage demo`: the main job on this machine; what `make demo` runs."""

from __future__ import annotations

import re
from pathlib import Path

import click

from client import demo as the_demo
from client.commands.common import examples

_SIZE = re.compile(r"([0-9]{1,12}) ?(B|[kK]i?B|Mi?B|Gi?B)?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3}


class Size(click.ParamType):
    """Bytes as the DAQ emulator takes them; the number of bytes is learned too."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        text = str(value)
        found = _SIZE.fullmatch(text)
        if not found:
            self.fail(f"{text!r} is no size; write bytes, as 262144, 256KiB or 64MiB", param, ctx)
        unit = (found.group(2) or "").rstrip("B")
        base = 1024 if unit.endswith("i") else 1000
        return text, int(found.group(1)) * base ** _POWERS[unit[:1].upper()]


@click.command(
    epilog=examples(
        "pilotage demo", "pilotage demo --size 64MiB --keep /data/demo", "pilotage demo --no-keep --files 10"
    )
)
@click.option(
    "--files",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="Files of the DAQ emulator.",
)
@click.option(
    "--size", type=Size(), default="256KiB", show_default=True, metavar="SIZE", help="Largest size of a file."
)
@click.option("--keep", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, metavar="DIR",
              help="Where everything lies, to go on with afterwards; an earlier demo in it is replaced.")  # fmt: skip
@click.option("--no-keep", is_flag=True, help="Work in a temporary directory and remove it at the end.")
def demo(files: int, size: tuple[str, int], keep: Path, no_keep: bool) -> int:
    """Run the main job on this machine: server, DAQ files, dataset, two tasks, two pilots, verified outputs.

    It needs no root and nothing else: SQLite, the loopback interface, and some 30 s. At its end, and on Ctrl-C at any
    moment, everything that it started is stopped; the directory of --keep stays.
    """
    return the_demo.run(the_demo.Wish(files, size[0], size[1], None if no_keep else keep))
