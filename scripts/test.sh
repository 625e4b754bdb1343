#!/bin/sh
# Builds Larder and passes its tests. Arguments go to `cargo test`.
#
# As root on Debian it installs what the tests on real filesystems need and mounts images for them,
# and starts servers of the Remote Execution API from PyPI; anywhere else those tests say that they
# are skipped. `LARDER_TEST_REQUIRE=1` (set in CI) makes a skip a failure, and `LARDER_TEST_AS_USER=1`
# runs the tests of the engine once more as an ordinary user.
set -eu
cd "$(dirname "$0")/.."

images=
servers=
cleanup() {
    status=$?
    trap - EXIT INT TERM
    [ -z "$images" ] || sh scripts/filesystems.sh down "$images"
    [ -z "$servers" ] || sh scripts/servers.sh down "$servers"
    exit $status
}
trap cleanup EXIT INT TERM

if [ "$(id -u)" = 0 ] && [ -z "${LARDER_TEST_FILESYSTEMS:-}" ]; then
    if command -v apt-get >/dev/null 2>&1; then
        missing=
        command -v mkfs.btrfs >/dev/null 2>&1 || missing="$missing btrfs-progs"
        command -v mkfs.xfs >/dev/null 2>&1 || missing="$missing xfsprogs"
        command -v mkfs.ext4 >/dev/null 2>&1 || missing="$missing e2fsprogs"
        if [ -n "$missing" ]; then
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
        fi
    fi
    images=$(mktemp -d)/larder-filesystems
    found=$(sh scripts/filesystems.sh up "$images")
    LARDER_TEST_FILESYSTEMS=${found#LARDER_TEST_FILESYSTEMS=}
    [ -z "$LARDER_TEST_FILESYSTEMS" ] || export LARDER_TEST_FILESYSTEMS
fi

if [ "$(id -u)" = 0 ] && [ -z "${LARDER_TEST_SERVERS:-}" ] && command -v apt-get >/dev/null 2>&1; then
    servers=$(mktemp -d)/larder-servers
    # Without them, their tests say so.
    found=$(sh scripts/servers.sh up "$servers") || found=
    for variable in $found; do
        case $variable in LARDER_TEST_*) export "${variable?}" ;; esac
    done
fi

cargo test --locked "$@"

if [ "${LARDER_TEST_AS_USER:-}" = 1 ]; then
    sh scripts/test-as-user.sh
fi
