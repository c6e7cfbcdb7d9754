#!/usr/bin/env bash
# Runs one pilot on a worker node: fetches it from the server as one file, checks it, runs it, tells how it ended.
#
#   run_pilot.sh --url URL --token-file FILE [-q QUEUE] [any option of the pilot]
#
# Of its own:
#   --sha256 DIGEST   run only this package (64 hexadecimal digits); without it, the one that the server names
#   --cache DIR       where packages are kept; default: $XDG_CACHE_HOME/pilotage, ~/.cache/pilotage, or ./.pilotage-cache
#   --python FILE     the Python to use; default: the first from 3.9 on that PATH has
# Read and handed on to the pilot: --url, -p, --token-file, --cacert, --capath. All others are the pilot's alone.
#
# The node needs bash, coreutils and Python 3.9 or newer; no pip, no root, no network but the server. The token goes by file.
# A package keeps its own name in the cache for ever: a newer one never takes its place, so running pilots are not disturbed.
#
# A pilot that ends with 84, since an operator wants it so (pilotage pilot update), is followed at once by the one that the server
# hands out then, within the lifetime of the first.
#
# Exit codes: the pilot's, but 0 where it had no job (82). Of this script, each named on stderr: 2 BAD_OPTION,
# 79 SERVER_UNREACHABLE, 90 NO_PYTHON, 91 CANNOT_FETCH, 92 WRONG_DIGEST, 93 CACHE_UNUSABLE, 94 TOKEN_UNREADABLE.

set -u

child=''       # the process that runs now
signal=''      # the first signal that came
interrupted='' # whether one came since the last look

log() {
    printf '%s run_pilot: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >&2
}

fail() { # CODE NAME SENTENCE
    log "$2: $3"
    exit "$1"
}

# -- running something, and handing signals on ----------------------------------------------------------------------------

# shellcheck disable=SC2317,SC2329 # the traps call it
on_signal() { # NAME
    signal=${signal:-$1} interrupted=yes
    if [ -n "$child" ]; then
        kill -s "$1" "$child" 2>/dev/null
    fi
}

# HUP, XCPU, USR1 and USR2 are how batch systems warn before they kill.
trap 'on_signal INT' INT
trap 'on_signal TERM' TERM HUP XCPU USR1 USR2

attend() { # COMMAND…: run it, hand signals on to it, wait for its end; its exit code
    local code
    # What a shell starts in the background ignores SIGINT unless told otherwise.
    (trap - INT && exec "$@") &
    child=$!
    if [ -n "$signal" ]; then # it came before there was somebody to hand it to
        kill -s "$signal" "$child" 2>/dev/null
    fi
    interrupted=yes
    while [ -n "$interrupted" ]; do # a signal ends the wait, not the child, and then $? is not the child's
        interrupted=''
        wait "$child"
        code=$?
    done
    child=''
    return "$code"
}

# -- options ----------------------------------------------------------------------------------------------------------------

url=${PILOTAGE_NODE_SETTINGS__SERVER_ADDRESS-} port='' token_file='' ca_file='' ca_path=''
sha256='' cache='' python=''
pilot_options=()

read_options() {
    local name value words
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
                exit 0
                ;;
            --url | --port | -p | --token-file | --cacert | --capath | --sha256 | --cache | --python)
                [ $# -ge 2 ] || fail 2 BAD_OPTION "$1 needs a value"
                name=$1 value=$2 words=2
                ;;
            --url=* | --port=* | --token-file=* | --cacert=* | --capath=* | --sha256=* | --cache=* | --python=*)
                name=${1%%=*} value=${1#*=} words=1
                ;;
            -p?*)
                name=-p value=${1#-p} words=1
                ;;
            *)
                pilot_options+=("$1")
                shift
                continue
                ;;
        esac
        case $name in
            --sha256) sha256=${value,,} ;;
            --cache) cache=$value ;;
            --python) python=$value ;;
            *)
                pilot_options+=("${@:1:words}")
                case $name in
                    --url) url=$value ;;
                    --port | -p) port=$value ;;
                    --token-file) token_file=$value ;;
                    --cacert) ca_file=$value ;;
                    --capath) ca_path=$value ;;
                esac
                ;;
        esac
        shift "$words"
    done
}

check_options() {
    local address='^(https?://)(\[[^]]+\]|[^]/:?#@[]+)(:[0-9]+)?(/[^?#]*)?$'
    [ -n "$url" ] || fail 2 BAD_OPTION "--url is needed: the server's address, such as http://HOST:8080"
    [[ $url =~ $address ]] || fail 2 BAD_OPTION "--url must be an address such as http://HOST:8080, not '$url'"
    if [ -n "$port" ] && [ "$port" != 0 ]; then
        url=${BASH_REMATCH[1]}${BASH_REMATCH[2]}:$port${BASH_REMATCH[4]}
        [[ $url =~ $address ]] || fail 2 BAD_OPTION "-p must be a number, not '$port'"
    fi
    url=${url%/}
    [[ $sha256 =~ ^([0-9a-f]{64})?$ ]] || fail 2 BAD_OPTION "--sha256 must be 64 hexadecimal digits, not '$sha256'"
    [ -z "$token_file" ] || { [ -s "$token_file" ] && [ -r "$token_file" ]; } ||
        fail 94 TOKEN_UNREADABLE "--token-file $token_file is no file that this account can read, or it is empty"
}

# -- the node ---------------------------------------------------------------------------------------------------------------

is_new_enough() { # PYTHON
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 9))' </dev/null >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "$python" ]; then
        is_new_enough "$python" || fail 90 NO_PYTHON "--python $python does not run, or is older than 3.9"
        return
    fi
    for candidate in python3 python3.{14..9} python; do
        if is_new_enough "$candidate"; then
            python=$(command -v "$candidate")
            return
        fi
    done
    fail 90 NO_PYTHON "no Python from 3.9 on in PATH=$PATH; name one with --python"
}

is_ours() { # DIRECTORY: make it if need be; who could write in it could swap a package that was checked
    (umask 077 && mkdir -p "$1") 2>/dev/null && [ -O "$1" ] && [ -w "$1" ]
}

find_cache() {
    local candidate
    if [ -n "$cache" ]; then
        is_ours "$cache" || fail 93 CACHE_UNUSABLE "--cache $cache is no directory of this account's that it can write in"
        return
    fi
    for candidate in ${XDG_CACHE_HOME:+"$XDG_CACHE_HOME/pilotage"} ${HOME:+"$HOME/.cache/pilotage"} "$PWD/.pilotage-cache"; do
        if is_ours "$candidate"; then
            cache=$candidate
            return
        fi
    done
    fail 93 CACHE_UNUSABLE "neither \$HOME nor $PWD can be written; name a directory with --cache"
}

# -- the package ------------------------------------------------------------------------------------------------------------

# No apostrophe may occur in it. The Python that will run the pilot fetches it too: what it cannot reach or does not trust, the pilot could not either.
# Certificates are looked for as in pilot/certificates.py. Exit code 0, 79 (no answer), 91 (not the right one), 93 (no space).
fetcher='
import os, random, signal, ssl, stat, sys, time, urllib.error, urllib.request
from http.client import HTTPException

url, target, ca_file, ca_path = sys.argv[1:]
TRIES, SILENT_SECONDS, TRY_SECONDS, LARGEST = 3, 20, 120, 64 << 20


def end(code, reason):
    print("run_pilot: %s: %s" % (url, reason), file=sys.stderr, flush=True)
    sys.exit(code)


def user_proxy():
    path = "/tmp/x509up_u%d" % os.geteuid()
    try:
        status = os.lstat(path)
    except OSError:
        return None
    private = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return path if private else None


def trust():
    usual = "/etc/grid-security/certificates"
    instead = ca_file or ca_path  # what an option names takes the place of the system authorities
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if instead else ssl.create_default_context()
    file = ca_file or os.environ.get("X509_USER_PROXY") or user_proxy()
    path = ca_path or os.environ.get("X509_CERT_DIR") or (usual if os.path.isdir(usual) else None)
    for named, there in ((file, os.path.isfile), (path, os.path.isdir)):
        if named and not there(named):
            raise OSError("there is no %s" % named)
    if file or path:
        context.load_verify_locations(file, path)
    return context


def too_slow(number, frame):
    raise TimeoutError("not complete after %d s" % TRY_SECONDS)


def read(opener):
    request = urllib.request.Request(url, headers={"User-Agent": "pilotage-wrapper/1"})
    signal.alarm(TRY_SECONDS)
    with opener.open(request, timeout=SILENT_SECONDS) as answer:
        content = answer.read(LARGEST)
        signal.alarm(0)
        if int(answer.headers.get("Content-Length", len(content))) != len(content):
            raise HTTPException("the answer ended after %d bytes" % len(content))
        return content


handlers = [urllib.request.ProxyHandler({})]  # the pilot goes straight to its server too
if url.startswith("https:"):
    try:
        handlers.append(urllib.request.HTTPSHandler(context=trust()))
    except OSError as error:
        end(91, "no usable certificates: %s" % error)
signal.signal(signal.SIGALRM, too_slow)
for tried in range(1, TRIES + 1):
    try:
        content = read(urllib.request.build_opener(*handlers))
        break
    except urllib.error.HTTPError as error:
        code, reason, passing = 91, "HTTP status %d" % error.code, error.code in (408, 429) or error.code >= 500
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        passing = not isinstance(reason, (ssl.SSLCertVerificationError, ValueError))
        code = 79 if passing and isinstance(error, OSError) else 91
    signal.alarm(0)
    if not passing or tried == TRIES:
        end(code, "%s (try %d)" % (reason, tried))
    time.sleep(2 ** (tried - 1) * random.uniform(0.5, 1.5))
try:
    with open(target, "wb") as file:
        file.write(content)
except OSError as error:
    end(93, error)
'

incoming='' # the one file in the cache that is being written
trap '[ -z "$incoming" ] || rm -f "$incoming"' EXIT

fetch() { # PATH: into the file $incoming; 0, or the exit code of its error
    attend "$python" -I -c "$fetcher" "$url$1" "$incoming" "$ca_file" "$ca_path"
    local code=$?
    case $signal in
        INT) finish 130 ;;
        TERM) finish 143 ;;
    esac
    return "$code"
}

has_digest() { # FILE DIGEST
    [ -f "$1" ] && [ "$(sha256sum <"$1")" = "$2  -" ]
}

fetch_failed() { # CODE PATH
    case $1 in
        79) fail 79 SERVER_UNREACHABLE "no answer from $url" ;;
        93) fail 93 CACHE_UNUSABLE "the package cannot be written below $cache" ;;
        *) fail 91 CANNOT_FETCH "$url does not hand out $2" ;;
    esac
}

wanted_digest() { # into $wanted: the operator's word, or the server's
    local code
    wanted=$sha256
    [ -z "$wanted" ] || return 0
    fetch /v1/pilot.pyz.sha256
    code=$?
    [ "$code" -eq 0 ] || return "$code"
    read -r wanted _ <"$incoming"
    [[ $wanted =~ ^[0-9a-f]{64}$ ]] || fail 91 CANNOT_FETCH "$url/v1/pilot.pyz.sha256 is no SHA-256: is this the server?"
}

find_package() { # into $package: a file whose digest was checked now
    incoming=$(mktemp "$cache/.incoming.XXXXXX") || fail 93 CACHE_UNUSABLE "no file can be made in $cache"
    find "$cache" -maxdepth 1 -name '.incoming.*' -mmin +60 -delete 2>/dev/null # of wrappers that were killed
    # Twice: the server may have got a newer package between its two answers.
    get_package || get_package ||
        fail 92 WRONG_DIGEST "$url/v1/pilot.pyz has SHA-256 $(sha256sum <"$incoming" | cut -c1-64), not $wanted"
    if [ -z "$sha256" ] && ln -s "${package##*/}" "$incoming.link"; then
        mv -fT "$incoming.link" "$cache/current" # the switch: one rename
    fi
    rm -f "$incoming" && incoming=''
}

get_package() { # into $package; 1 if the bytes are not those wanted
    local code
    wanted_digest
    code=$?
    if [ "$code" -eq 79 ] && last_package; then
        return 0
    fi
    [ "$code" -eq 0 ] || fetch_failed "$code" /v1/pilot.pyz.sha256
    package=$cache/pilot-$wanted.pyz
    has_digest "$package" "$wanted" && return 0
    fetch /v1/pilot.pyz || fetch_failed $? /v1/pilot.pyz
    has_digest "$incoming" "$wanted" || return 1
    mv -f "$incoming" "$package" || fail 93 CACHE_UNUSABLE "$package cannot be written"
}

last_package() { # the server is away: the package it named last, if it is whole
    local name
    name=$(readlink "$cache/current") || return 1
    package=$cache/$name wanted=${name#pilot-} wanted=${wanted%.pyz}
    has_digest "$package" "$wanted" || return 1
    log "no answer from $url: starting the package that a server named last; the pilot will wait for the server"
}

# -- the pilot, and its end -------------------------------------------------------------------------------------------------

finish() { # CODE: tell in words how the pilot ended; NO_JOBS is no failure to a batch system
    local text
    case $1 in
        0) text="DONE: the pilot ran at least one job and ended in order" ;;
        1) text="FAILED: an error that no other code stands for" ;;
        2) text="BAD_SETTINGS: an option or a setting is wrong; nothing was asked from the server" ;;
        68) text="NO_CREDENTIALS: the server refused the pilot's token" ;;
        69) text="NODE_UNFIT: the node failed its validation; no job was asked for" ;;
        70) text="BROKEN: a control thread died; its job was reported" ;;
        79) text="SERVER_UNREACHABLE: the server could not be reached; results that wait lie in the outbox" ;;
        82) text="NO_JOBS: the server had no job for this pilot" ;;
        84) text="UPDATE: an operator wants the server's present pilot in its place; but a signal came first" ;;
        130) text="INTERRUPTED: SIGINT; running jobs were given back" ;;
        143) text="TERMINATED: SIGTERM; running jobs were given back" ;;
        1[3-9][0-9]) text="KILLED: signal $(($1 - 128)) ended the pilot; the server gives its jobs to others" ;;
        *) text="UNKNOWN: no exit code of a pilot" ;;
    esac
    log "exit code $1: $text"
    [ "$1" -ne 82 ] || exit 0
    exit "$1"
}

read_options "$@"
check_options
find_python
find_cache
while :; do
    find_package
    log "starting ${package##*/} with $python for $url"
    attend "$python" -I "$package" "${pilot_options[@]}"
    code=$?
    if [ "$code" -ne 84 ] || [ -n "$signal" ]; then
        finish "$code"
    fi
    log "exit code 84: UPDATE: an operator wants the server's present pilot in its place"
    export PILOTAGE_LIMITS__RUN_BEFORE_SECONDS=$SECONDS
done
