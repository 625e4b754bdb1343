#!/bin/sh
# Builds Larder, then caches and restores a real build: that of `globset`, a package with
# dependencies which Larder itself uses, from the copy of its source that cargo has at hand.
# Everything happens in a temporary folder; what is left is the program, target/release/larder.
set -eu
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Building Larder"
# Where the program is said to be, whatever the environment says of targets.
unset CARGO_TARGET_DIR
cargo build --locked --release
larder=$PWD/target/release/larder

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT INT TERM
source=$(cargo metadata --locked --format-version 1 |
    grep -o '"manifest_path":"[^"]*/globset-[0-9.]*/Cargo.toml"' | head -n 1 | cut -d '"' -f 4)
cp -r "$(dirname "$source")" "$place/globset"
cd "$place/globset"
chmod -R u+w .
rm -f Cargo.lock .cargo-ok
cargo generate-lockfile --quiet
export LARDER_DIR=$place/store

say "2. The first build: a miss. The command runs, and what it leaves in target/ is stored"
run() {
    printf '$ larder run -o target --tool "rustc -vV" -- cargo build\n'
    "$larder" run -o target --tool 'rustc -vV' -- cargo build
}
run

say "3. Without target/, the same command: a hit"
rm -rf target
run
printf '\nHow the largest files came back (a hardlink has more than one name, a reflink shares its blocks):\n'
find target -type f -size +100k -exec ls -l {} + | sort -k 5 -n -r |
    awk 'NR <= 5 { print "  " $2 " names, " $5 " bytes, " $9 }'

say "4. Cargo itself finds everything fresh"
cargo build

say "5. What is in the store"
"$larder" stats
"$larder" verify
