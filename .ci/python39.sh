#!/bin/sh
# Prints the path of a Python 3.9 that runs: on PATH, or among pyenv's versions (whose shims on PATH need not run).
for candidate in python3.9 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.9*/bin/python3.9; do
    if "$candidate" -c '' >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done
exit 1
