#!/bin/sh
# Makes a virtual environment with this tree installed in it, editable, and does nothing when that is done already.
#
# usage: venv.sh DIRECTORY EXTRAS MINIMUM [CANDIDATE...]     e.g. venv.sh .venv all,test 3.10 python3.12 python3
#        The first candidate that runs, is new enough and can make environments is taken; PYTHON overrides them all.
#
# The stamp in the environment is a checksum of what the result depends on, so a second call costs some 50 ms. An
# environment with more extras than asked for also serves (make demo after make dev).
set -eu

directory=$1 extras=$2 minimum=$3
shift 3

suitable() {
    "$1" - "$minimum" <<'PYTHON' >/dev/null 2>&1
import sys
import ensurepip, venv
sys.exit(sys.version_info < tuple(map(int, sys.argv[1].split("."))))
PYTHON
}

choose() {
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" && echo "$PYTHON" && return
        echo "PYTHON=$PYTHON does not run, is older than $minimum, or lacks venv and ensurepip." >&2
        return 1
    fi
    for candidate in "$@"; do
        suitable "$candidate" && echo "$candidate" && return
    done
    {
        echo "No Python $minimum or newer that can make virtual environments; tried: $*"
        echo "  Debian, Ubuntu:  apt-get install python3 python3-venv"
        echo "  elsewhere:       install one and name it, e.g.  make dev PYTHON=/opt/python3.12/bin/python3"
    } >&2
    return 1
}

checksum() { # of everything that the installation depends on; the path, for scripts in it carry it
    { cat setup.cfg pyproject.toml && echo "$PWD ${PYTHON:-}"; } | cksum | tr ' ' -
}

usable() { # false also after an interrupted start, and when the Python it was made with is gone
    "$directory/bin/python" -c 'import pip' >/dev/null 2>&1
}

installed() {
    usable || return 1
    wanted=$(checksum)
    for stamp in "$directory"/.stamp-*; do
        if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then continue; fi
        case ,${stamp##*/.stamp-}, in *",$extras,"*) return 0 ;; esac
    done
    return 1
}

install() { # with a dot every two seconds, and pip's own words only when it fails
    log=$directory/pip.log
    printf 'installing pilotage[%s] into %s ' "$extras" "$directory"
    started=$(date +%s)
    "$directory/bin/python" -m pip install --disable-pip-version-check -e ".[$extras]" >"$log" 2>&1 &
    pip=$!
    trap 'kill "$pip" 2>/dev/null; echo " interrupted"; exit 130' INT TERM
    while kill -0 "$pip" 2>/dev/null; do
        printf .
        sleep 2
    done
    trap - INT TERM
    if ! wait "$pip"; then
        echo " failed; the last lines of $log:"
        tail -n 15 "$log"
        return 1
    fi
    echo " done in $(($(date +%s) - started)) s"
    checksum >"$directory/.stamp-$extras"
}

# One at a time: two makes in one tree would install over each other.
if command -v flock >/dev/null 2>&1; then
    exec 9<setup.cfg
    flock 9
fi
installed && exit 0
if ! usable || [ -n "${PYTHON:-}" ]; then
    python=$(choose "$@")
    echo "making $directory with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
    said=$("$python" -m venv --clear "$directory" 2>&1) || {
        echo "$said" >&2
        exit 1
    }
fi
install
