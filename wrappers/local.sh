#!/usr/bin/env bash
# An example to copy: N pilots on this machine, without a batch system. What follows N goes to each pilot:
#
#   wrappers/local.sh 4 --url http://HOST:8080 --token-file ~/pilot.token -q CPU
#
# Ctrl-C or SIGTERM ends them all and waits for them. The exit code is the first one that is not 0.

set -u

count=${1-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
shift
here=$(cd "$(dirname "$0")" && pwd)

pilots=()
signal=''
interrupted=''

# shellcheck disable=SC2317,SC2329 # the traps call it
on_signal() { # NAME
    signal=$1 interrupted=yes
    if [ "${#pilots[@]}" -gt 0 ]; then
        kill -s "$1" "${pilots[@]}" 2>/dev/null
    fi
}
trap 'on_signal INT' INT
trap 'on_signal TERM' TERM HUP

for ((number = 0; number < count; number++)); do
    [ -z "$signal" ] || break
    # What a shell starts in the background ignores SIGINT unless told otherwise.
    (trap - INT && exec "$here/run_pilot.sh" "$@") &
    pilots+=("$!")
done

result=0
for pilot in "${pilots[@]}"; do
    interrupted=yes
    while [ -n "$interrupted" ]; do # a signal ends the wait, not the pilot, and then $? is not the pilot's
        interrupted=''
        wait "$pilot"
        code=$?
    done
    [ "$result" -ne 0 ] || result=$code
done
exit "$result"
