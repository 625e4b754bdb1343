#!/bin/sh
# Runs the tests of the engine and of the command as an ordinary user. Needs root, to become one.
set -eu
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "SKIPPED: only root can become an ordinary user" >&2; exit 0; }

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT INT TERM
chmod 755 "$place"
mkdir "$place/bin" "$place/tmp" "$place/tests"
cp -r tests/fixtures "$place/tests/"
chmod -R a+rX "$place"
chmod 1777 "$place/tmp"

# The programs of the tests that need no mounts, and the command.
cargo test --locked --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' |
    grep -E '/(larder|restore|tamper|escape|corruption|concurrency|conformance|model|format|receive|bundle|cli|tiered|remote_command)(-[0-9a-f]+)?$' |
    sort -u > "$place/list"
while read -r program; do
    install -m 755 "$program" "$place/bin/"
done < "$place/list"

uid=65534
for program in "$place"/bin/*-*; do
    name=$(basename "$program")
    echo "as user $uid: $name"
    (cd "$place" && env -i PATH="$PATH" HOME="$place/tmp" TMPDIR="$place/tmp" \
        LARDER_TEST_COMMAND="$place/bin/larder" LARDER_TEST_FIXTURES="$place/tests/fixtures" \
        setpriv --reuid "$uid" --regid "$uid" --clear-groups --bounding-set=-all --inh-caps=-all \
        "$program" --quiet)
done
