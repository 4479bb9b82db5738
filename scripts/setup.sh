#!/usr/bin/env bash
# Puts on this machine what haagent's demo, tests and linters need. Run it any number of times: when
# everything is there it only looks (well under a second).
#
#   1. Debian packages that lack: PostgreSQL, etcd, Python's venv module, iproute2, and the clients of the
#      acceptance tests (root or sudo, apt).
#      No service is started or enabled by this installation; what already runs is left alone.
#   2. A virtual environment with Debian's own python, which the postgres user can execute: the test
#      clusters' agents run as that user, so it lies neither in root's home nor on a python from there.
#   3. haagent in it, as a copy and not as a link: the checkout may be unreadable to postgres.
#      Installed again only when its files changed (a hash beside the environment tells).
#
# HAAGENT_VENV   where the environment goes; default /opt/haagent/venv for root,
#                ~/.local/share/haagent/venv for others
set -euo pipefail
umask 022

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=/usr/bin/python3
readonly POLICY=/usr/sbin/policy-rc.d POLICY_MARK='# written by haagent scripts/setup.sh'
readonly NO_CLUSTER=/etc/postgresql-common/createcluster.d/haagent.conf
readonly APT_LOCK_WAIT_S=300
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

if [ -n "${HAAGENT_VENV:-}" ]; then VENV=$HAAGENT_VENV
elif [ "$(id -u)" = 0 ]; then VENV=/opt/haagent/venv
else VENV=$HOME/.local/share/haagent/venv; fi
readonly VENV

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=DEBIAN_FRONTEND "$@"; fi
}

# --- 1. Debian packages ----------------------------------------------------------------------------

have_program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }
have_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
have_venv() { [ -x $PYTHON ] && $PYTHON -c 'import ensurepip, venv' 2>/dev/null; }

# What lacks, as package names. Looks for the thing itself, not for the package: a PostgreSQL or etcd
# from elsewhere is as good.
missing_packages() {
    have_venv || echo python3-venv
    have_postgres || echo postgresql
    have_program etcd || echo etcd-server
    have_program etcdctl || echo etcd-client
    have_program ip || echo iproute2
    have_program setpriv || echo util-linux
    have_program systemd-analyze || echo systemd
    have_program dnsmasq || echo dnsmasq-base
    have_program haproxy || echo haproxy
    [ -e /usr/share/java/zookeeper.jar ] || echo zookeeper
    have_program promtool || echo prometheus
    have_program pgbackrest || echo pgbackrest
}

# Ubuntu before 24.04 and old Debian know etcd as one package.
release_names() {
    local name
    for name in "$@"; do
        case $name in
            etcd-*) apt-cache show "$name" >/dev/null 2>&1 || name=etcd ;;
        esac
        echo "$name"
    done | sort -u
}

# While a file of this name says 101, packages start nothing (Debian's policy for it). One that is there
# already is somebody's wish and stays; one of ours left by a killed run is taken over.
forbid_service_starts() {
    if [ -e $POLICY ] && ! grep -qF "$POLICY_MARK" $POLICY; then return; fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" | as_root tee $POLICY >/dev/null
    as_root chmod 755 $POLICY
    trap allow_service_starts EXIT
}

allow_service_starts() {
    trap - EXIT
    if [ -e $POLICY ] && grep -qF "$POLICY_MARK" $POLICY; then as_root rm -f $POLICY; fi
}

# A cluster that Debian makes and starts would take port 5432 from the one haagent manages.
forbid_default_cluster() {
    as_root mkdir -p "$(dirname $NO_CLUSTER)"
    printf '%s\n' "# Written by haagent's set-up: clusters here are made by haagent, not by the package." \
        'create_main_cluster = false' | as_root tee $NO_CLUSTER >/dev/null
}

# Only called for a service that this run installed: not now, and not at the next boot.
disable() {
    if have_program systemctl; then as_root systemctl --quiet disable "$1.service" || true; fi
    if [ -e "/etc/init.d/$1" ] && have_program update-rc.d; then as_root update-rc.d "$1" disable || true; fi
    if [ -d /run/systemd/system ]; then as_root systemctl --quiet stop "$1.service" || true; fi
}

apt() {
    as_root apt-get -q -y -o DPkg::Lock::Timeout=$APT_LOCK_WAIT_S -o Dpkg::Use-Pty=0 "$@"
}

install_packages() {
    local -a wanted=("$@") names
    command -v apt-get >/dev/null || die "these are missing and there is no apt to install them: ${wanted[*]}"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "these packages are missing: ${wanted[*]}; run again as root, or install sudo"
    say "installing Debian packages: ${wanted[*]}"
    apt update || say "apt-get update failed; going on with the package lists that are there"
    mapfile -t names < <(release_names "${wanted[@]}")
    forbid_service_starts
    [[ " ${names[*]} " != *" postgresql "* ]] || forbid_default_cluster
    apt install --no-install-recommends "${names[@]}" ||
        die "apt could not install ${names[*]}: see its message above. Are the mirrors of" \
            "/etc/apt reachable from here (network, proxy), and is a full Debian suite among them?"
    local name
    for name in "${names[@]}"; do
        case $name in
            etcd-server | etcd) disable etcd ;;
            haproxy | prometheus | zookeeper) disable "$name" ;;
        esac
    done
    allow_service_starts
}

# Debian 12 has no Consul; the one of Debian 11 needs nothing but libc. It is unpacked beside the environment
# and not installed. Where it cannot be had, the tests that need it say so and are left out.
fetch_consul() {
    local target folder site keys=/usr/share/keyrings/debian-archive-keyring.gpg
    target=$(dirname "$VENV")/consul
    if have_program consul || [ -x "$target/usr/bin/consul" ] || [ -e "$target/none" ]; then return; fi
    mkdir -p "$target"
    folder=$(mktemp -d)
    mkdir -p "$folder"/state/lists/partial "$folder"/cache/archives/partial
    site=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 2>/dev/null | grep -v security | head -n 1)
    echo "deb [signed-by=$keys] ${site:-http://deb.debian.org/debian} bullseye main" >"$folder/sources.list"
    local -a private=(-o "Dir::State=$folder/state" -o "Dir::Cache=$folder/cache"
        -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null)
    say "Consul for tests, from Debian 11"
    if (cd "$folder" && apt-get "${private[@]}" -q update && apt-get "${private[@]}" -q download consul &&
        dpkg -x consul_*.deb "$target") >"$folder/log" 2>&1; then
        chmod -R a+rX "$target"
    else
        tail -n 3 "$folder/log" >&2
        say "no Consul here: its tests are left out (remove $target/none to try again)"
        touch "$target/none"
    fi
    rm -rf "$folder"
}

# --- 2. virtual environment ------------------------------------------------------------------------

require_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
    if require_python "$VENV/bin/python" && [ -x "$VENV/bin/pip" ]; then return; fi
    require_python $PYTHON ||
        die "$PYTHON is $($PYTHON --version 2>&1 || true); haagent needs Python 3.11 or newer" \
            "(Debian 12, Ubuntu 24.04 or newer)"
    say "virtual environment in $VENV"
    $PYTHON -m venv --clear "$VENV" || die "could not create a virtual environment in $VENV"
}

# Agents under test run as postgres when we are root; find out now, not by a hundred failed tests.
check_postgres_can_execute() {
    [ "$(id -u)" = 0 ] || return 0
    # By way of a shell: setpriv itself still has root's capabilities when it looks the program up.
    (cd / && setpriv --reuid=postgres --regid=postgres --init-groups sh -c 'exec "$0" -c ""' "$VENV/bin/python") \
        2>/dev/null ||
        die "the user postgres cannot execute $VENV/bin/python; set HAAGENT_VENV to a path that it can reach"
}

# --- 3. haagent in it ------------------------------------------------------------------------------

readonly SOURCES=(pyproject.toml README.md LICENSE haagent dcs postgres_ctl)

hash_of() {
    find "$@" -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum |
        cut -d ' ' -f 1
}

stamp_is() { [ "$(cat "$VENV/.haagent-$1" 2>/dev/null)" = "$2" ]; }

# Silent unless it fails: then everything it said is shown.
pip_install() {
    local output
    output=$("$VENV/bin/python" -m pip install --disable-pip-version-check "$@" 2>&1) && return
    printf '%s\n' "$output" | tail -n 20 >&2
    die "pip could not install haagent or its dependencies: see its message above. pip uses its usual" \
        "configuration (pip.conf, PIP_* variables, proxies); under sudo these variables need 'sudo -E'."
}

# Built from a copy, so that nothing is written into the checkout. A stamp is removed before the work it
# stands for and written after it: an interrupted run is done again.
install_haagent() {
    local dependencies sources copy
    dependencies=$(hash_of pyproject.toml)
    sources=$(hash_of "${SOURCES[@]}")
    if stamp_is dependencies "$dependencies" && stamp_is sources "$sources"; then return; fi
    rm -f "$VENV/.haagent-sources"
    copy=$(mktemp -d)
    # shellcheck disable=SC2064  # the name as it is now
    trap "rm -rf '$copy'" EXIT
    cp -r "${SOURCES[@]}" "$copy"
    if ! stamp_is dependencies "$dependencies"; then
        rm -f "$VENV/.haagent-dependencies"
        say "Python packages (about half a minute the first time)"
        pip_install 'setuptools>=77'
        pip_install --no-build-isolation "$copy[test,lint]"
        echo "$dependencies" >"$VENV/.haagent-dependencies"
    fi
    say "haagent into $VENV"
    pip_install --no-build-isolation --no-deps --force-reinstall "$copy"
    rm -rf "$copy"
    trap - EXIT
    echo "$sources" >"$VENV/.haagent-sources"
}

mapfile -t missing < <(missing_packages)
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
mkdir -p "$(dirname "$VENV")" || die "cannot create $(dirname "$VENV"); set HAAGENT_VENV to another place"
exec 9>"$(dirname "$VENV")/.setup.lock"
flock 9  # two checkouts, or make -j: one after the other
fetch_consul
make_venv
check_postgres_can_execute
install_haagent
