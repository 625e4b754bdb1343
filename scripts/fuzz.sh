#!/bin/sh
# Runs each fuzz target for a number of seconds (20 if none is given), on the stable toolchain.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-20}
command -v cargo-fuzz >/dev/null 2>&1 || cargo install --locked --quiet cargo-fuzz
for target in manifest_decode row_decode output_path engine_ops; do
    # What is found goes to a folder of its own; the corpus in the repository grows only on purpose.
    found=$(mktemp -d)
    echo "fuzzing $target for $seconds s"
    cargo fuzz run --sanitizer none "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -print_final_stats=1 2>&1 |
        grep -E 'stat::number_of_executed_units|panicked|ERROR|SUMMARY|Done|could not compile|^error' || true
    [ -z "$(ls fuzz/artifacts/"$target" 2>/dev/null)" ] || { echo "$target found something" >&2; exit 1; }
    rm -rf "$found"
done
