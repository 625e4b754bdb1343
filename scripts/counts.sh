#!/bin/sh
# Counts instructions and system calls and compares them with benches/counts/expected.txt. Linux;
# needs valgrind, strace and setarch (util-linux); takes seconds once everything is built.
#
#   scripts/counts.sh          says what differs; the exit status is 1 if anything does
#   scripts/counts.sh --write  writes what was counted to that file
#
# Nothing is timed, so a busy machine does not matter. Everything runs on one core, and so on one
# thread, in a tmpfs: each machine has one, and it lists folders in the same order each time.
#
# Instructions are those between call and return of the functions in benches/counts, counted by
# Callgrind through Gungraun. They belong to a compiler, a C library, a Valgrind, and what processor
# that can stand for: it knows AVX2, so BLAKE3's code for AVX-512 is never counted. The file
# says with what it was recorded; with anything else, they are skipped. Each is followed by how far it
# may be off: tables with random seeds move it, and so do the lengths of paths in the program, by
# which copies of memory are aligned one way or another, and the processor's caches, by whose sizes
# the C library chooses how it copies (the same program and paths: 1.4 % between two machines).
#
# System calls are those of `larder` that name something in the store or the workspace, by path or
# by handle. What the program does for itself is left out: memory (mmap, brk), threads (futex,
# clone), signals, randomness, loading libraries, looking at /proc and /sys. What remains is exact.
set -eu
cd "$(dirname "$0")/.."
# So that order, modes and the way things are told are the same everywhere.
export LC_ALL=C
umask 022

expected=benches/counts/expected.txt
action=compare
case ${1:-} in
'') ;;
--write) action=write ;;
*)
    sed -n '2,6p' "$0" >&2
    exit 2
    ;;
esac

# Ends the script where it cannot count: visibly, and with a failure where nothing may be skipped.
cannot() {
    echo "counts: SKIPPED: $1" >&2
    [ "$action" = compare ] && [ "${LARDER_TEST_REQUIRE:-}" != 1 ] || exit 1
    exit 0
}

for tool in valgrind strace taskset setarch; do
    command -v "$tool" >/dev/null 2>&1 || cannot "there is no $tool"
done
[ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] || cannot "/dev/shm is no tmpfs"
strace -o /dev/null true 2>/dev/null || cannot "strace may not trace here"

# Gungraun's runner must be of the library's version.
version=$(sed -n '/^name = "gungraun-runner"/{n;s/^version = "\(.*\)"/\1/p;}' Cargo.lock)
tools=${CARGO_TARGET_DIR:-target}/tools
case $tools in
/*) ;;
*) tools=$PWD/$tools ;;
esac
PATH=$tools/bin:$PATH
export PATH
[ "$(gungraun-runner --version 2>/dev/null)" = "gungraun-runner $version" ] ||
    cargo install --locked --quiet --force --root "$tools" --version "$version" gungraun-runner

cargo bench --locked --quiet --bench counts --no-run

# Of one length and depth on all machines: paths are walked, hashed and leased.
work=$(mktemp -d /dev/shm/larder-counts-XXXXXXXX)
place=$work/place
mkdir "$place"
cleanup() {
    status=$?
    trap - EXIT INT TERM
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cargo bench --locked --quiet --bench counts -- --prepare "$place"
# The first core that is ours.
core=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
counted=$work/counted
: >"$counted"

# What `larder` prints is shown if it fails.
run_larder() {
    env -i "$@" >"$work/printed" 2>&1 || {
        cat "$work/printed" >&2
        exit 1
    }
}

# Calls `larder` and counts: a name for the counts, a folder of the store that is left out, and its
# arguments.
count_calls() {
    name=$1
    left_out=$place/command-store/$2
    shift 2
    run_larder taskset -c "$core" strace -f -y -o "$work/trace" \
        "$place/larder" --store "$place/command-store" "$@"
    # A line is a process, a call and its arguments; with `-y` each handle is followed by its path.
    # The arguments of the program itself name the place, too.
    awk -v place="$place" -v left_out="$left_out" -v name="$name" '
        index($0, place) && !index($0, left_out) && $2 !~ /^execve\(/ { sub(/\(.*/, "", $2); calls[$2]++ }
        END { for (call in calls) print "calls." name "." call, calls[call] }
    ' "$work/trace" >>"$counted"
}

# What is younger than the clock's steps is read again, so each step waits for the one before.
settle() { sleep 0.1; }

run_larder taskset -c "$core" "$place/larder" --store "$place/command-store" \
    store tree --workspace "$place/command" --output tree
settle
count_calls check-hit none check tree
for mode in auto hardlink; do
    workspace=$place/restored-$mode
    mkdir "$workspace"
    # Whether a ledger is written depends on how many files are older than 20 ms in the end.
    count_calls "restore-$mode" ledgers restore tree --workspace "$workspace" --link-mode "$mode"
    settle
    # Files that were too young for the ledger get into it.
    run_larder taskset -c "$core" "$place/larder" --store "$place/command-store" \
        restore tree --workspace "$workspace" --link-mode "$mode"
    settle
    count_calls "restore-again-$mode" none restore tree --workspace "$workspace" --link-mode "$mode"
done

processor=$(uname -m)
! grep -qw avx2 /proc/cpuinfo || processor="$processor with AVX2"
with="$(rustc -V), $(valgrind --version), $(getconf GNU_LIBC_VERSION), $processor"
recorded=$(sed -n 's/^# instructions with: //p' "$expected" 2>/dev/null || true)
if [ "$action" = compare ] && [ "$recorded" != "$with" ]; then
    echo "counts: instructions SKIPPED: recorded with $recorded; this is $with" >&2
else
    # Valgrind itself places what it runs at the same addresses each time.
    LARDER_COUNTS_PLACE=$place GUNGRAUN_HOME=$work/gungraun GUNGRAUN_ALLOW_ASLR=yes \
        taskset -c "$core" "$place/counts" --bench >"$work/printed" 2>&1 || {
        cat "$work/printed" >&2
        exit 1
    }
    # Runs, also of programs built in different folders, were at most two thirds as far apart.
    find "$work/gungraun" -name 'callgrind.*.out' -exec awk '
        BEGIN {
            off["lookup_20"] = off["digest_inputs"] = "1%"
            off["restore"] = "2%"
            off["manifest_decode"] = "3%"
        }
        /^totals:/ {
            name = FILENAME
            sub(/.*\/callgrind\./, "", name)
            sub(/\.out$/, "", name)
            operation = name
            sub(/\..*/, "", operation)
            print "instructions." name, $2, off[operation]
        }
    ' {} + >>"$counted"
fi
sort -o "$counted" "$counted"

if [ "$action" = write ]; then
    {
        echo "# \`sh scripts/counts.sh\` compares these counts, \`--write\` writes them anew."
        echo "# instructions with: $with"
        cat "$counted"
    } >"$expected"
    echo "counts: wrote $(grep -vc '^#' "$expected") counts to $expected"
    exit 0
fi

grep -v '^#' "$expected" | if grep -q '^instructions\.' "$counted"; then cat; else grep -v '^instructions\.'; fi |
    awk '
        FILENAME != "-" { found[$1] = $2; next }
        {
            total++
            expected[$1] = $2
            change = $1 in found ? found[$1] - $2 : -$2
            if ((change < 0 ? -change : change) > $2 * $3 / 100) tell($1, $2, found[$1], change * 100 / $2)
        }
        END {
            for (name in found) if (!(name in expected)) tell(name, "", found[name], "")
            if (over) exit 1
            print "counts: all " total " are as expected"
        }
        function tell(name, before, now, percent) {
            if (!over++) printf "%-50s %12s %12s %10s\n", "count", "expected", "found", "change"
            printf "%-50s %12s %12s %10s\n", name, before == "" ? "-" : before, now == "" ? "-" : now,
                percent == "" ? "" : sprintf("%+.2f %%", percent)
        }
    ' "$counted" - || {
    echo "counts: if this was the purpose, write them anew: sh scripts/counts.sh --write" >&2
    exit 1
}
