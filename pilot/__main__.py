"""`python -m pilot`, `python pilot/` in an unpacked tree, and the start of the pilot as one zip file."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by its path: the other folders lie beside this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pilot.cli import main

if __name__ == "__main__":
    main()
