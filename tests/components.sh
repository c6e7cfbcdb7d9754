#!/bin/sh
# Installs the system packages that component tests need: only what is missing, as root on Debian; else says what is.
# No service is started: a policy-rc.d that answers 101 stands there while packages are unpacked (unless one exists).
# Lies in tests/ because nobody but the tests needs these packages.
set -eu

# Ordinary users on Debian have no sbin on PATH; the programs are there all the same.
PATH=$PATH:/usr/sbin:/sbin
has() { command -v "$1" >/dev/null 2>&1; }
has_postgres() { has initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }
# A Python new enough for the tests themselves: any on PATH that runs and can make environments.
has_python() {
    for python in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
        "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && return 0
    done
    return 1
}
has_gfal() { /usr/bin/python3 -c 'import gfal2' >/dev/null 2>&1; }

missing=""
need() { # PACKAGES TEST...
    packages=$1
    shift
    "$@" || missing="$missing $packages"
}
need "python3 python3-venv" has_python
need postgresql has_postgres
need shellcheck has shellcheck
need strace has strace
need curl has curl
need openssl has openssl
need procps has ps
need e2fsprogs has mkfs.ext4
need mount has mount
need util-linux has setpriv
need util-linux has unshare
need haproxy has haproxy
need bubblewrap has bwrap
need "slurm-wlm munge" has slurmctld
need openmpi-bin has orted
need "xrootd-server xrootd-server-plugins xrootd-client" has xrootd
need "gfal2 python3-gfal2 gfal2-plugin-file gfal2-plugin-http gfal2-plugin-xrootd" has_gfal

if [ -z "$missing" ]; then
    echo "components: all there"
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
    echo "components: missing$missing; their tests will be NOT RUN (as root on Debian: make components)"
    exit 0
fi

echo "components: installing$missing"
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
own_policy=""
clean_up() {
    [ -z "$own_policy" ] || rm -f "$policy"
    rm -f "$log"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
if [ ! -e "$policy" ]; then
    own_policy=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # words are wanted
if apt-get -q -o DPkg::Lock::Timeout=120 update >"$log" 2>&1 &&
    apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $missing >>"$log" 2>&1; then
    echo "components: installed$missing"
else
    tail -n 15 "$log"
    echo "components: apt-get failed, see above; the tests of what is missing will be NOT RUN" >&2
    exit 1
fi
