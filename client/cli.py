"""The command `pilotage`: runs what the words on the command line name, and turns every end into an exit code.

0 done, 1 an error of the catalogue (one line, and what to do next), 2 wrong usage, 130 Ctrl-C; `pilotage pilot run` ends
with the pilot's own codes. It runs on Python 3.9 and without rich, so that a worker node can start a pilot by it.
"""

from __future__ import annotations

import os
import sys
from typing import Optional, Sequence

from client.interruption import interrupted


def main(arguments: Optional[Sequence[str]] = None) -> None:
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        code = interrupted()
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    # Imported only now: a Ctrl-C while the modules load is one line too, no trace back.
    import click

    from client.commands import root

    try:
        result = root.main(arguments, prog_name="pilotage", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return interrupted()
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
