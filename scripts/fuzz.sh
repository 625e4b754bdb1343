#!/bin/sh
# Runs each fuzz target for a number of seconds (20 if none is given), on the stable toolchain.
# Ends with an error if one does not build, or finds something.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-20}
command -v cargo-fuzz >/dev/null 2>&1 || cargo install --locked --quiet cargo-fuzz
for target in manifest_decode bundle_read row_decode ledger_decode state_decode output_path task_key command_line engine_ops \
    tree_restore action_result; do
    # What is found goes to a folder of its own; the corpus in the repository grows only on purpose.
    found=$(mktemp -d)
    log=$found.log
    echo "fuzzing $target for $seconds s"
    status=0
    cargo fuzz run --sanitizer none "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -print_final_stats=1 >"$log" 2>&1 || status=$?
    if [ $status -ne 0 ]; then
        tail -n 60 "$log" >&2
        exit $status
    fi
    grep 'stat::number_of_executed_units' "$log"
    rm -rf "$found" "$log"
done
