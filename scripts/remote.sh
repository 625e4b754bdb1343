#!/bin/sh
# Measures the tier behind a store: a tree on a line of 100 Mbit/s and 100 ms between two machines (network
# namespaces), builds while the network fails, and the heap that a large output takes. Starts the servers that
# scripts/servers.sh knows, unless LARDER_TEST_SERVERS names one. Needs root, `ip` and `tc`; 8 GiB free.
#
#   scripts/remote.sh [--slack FACTOR]   prints the figures; ends with 1 if one is over its bound, times the factor
#   scripts/remote.sh --write            writes docs/remote.md, too
set -eu
cd "$(dirname "$0")/.."

[ "${1:-}" != --write ] || set -- --write "$PWD/docs/remote.md"
case ${1:-} in
'' | --slack | --write) ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    command -v tc >/dev/null 2>&1 && command -v ip >/dev/null 2>&1 || {
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2 >/dev/null
    }
fi

servers=
cleanup() {
    status=$?
    trap - EXIT INT TERM
    [ -z "$servers" ] || sh scripts/servers.sh down "$servers"
    exit $status
}
trap cleanup EXIT INT TERM

cargo bench --locked --quiet --bench remote --no-run
if [ -z "${LARDER_TEST_SERVERS:-}" ]; then
    servers=$(mktemp -d)/larder-servers
    found=$(sh scripts/servers.sh up "$servers")
    for variable in $found; do
        case $variable in LARDER_TEST_*) export "${variable?}" ;; esac
    done
fi
cargo bench --locked --quiet --bench remote -- "$@"
