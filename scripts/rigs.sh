#!/bin/sh
# Runs the rigs: programs that try to break each guarantee of DESIGN.md, section 14, and the check that
# they would notice. Needs root, loop devices, FUSE, and what makes ext4, xfs and btrfs; a rig that
# cannot work says that it is skipped, which is a failure with REQUIRE_RIGS=1 (as in CI).
#
#   scripts/rigs.sh [RIG..]          some minutes; RIG: power live calls small index rot swap sources
#                                    mutations
#   scripts/rigs.sh --long [RIG..]   about an hour, with fuzzing and torture; writes docs/reliability.md
#                                    if all was run and nothing found. With names: these rigs alone
#
# Ends with 1 if a guarantee was broken, or if a rig does not notice that a step is left out.
set -eu
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,11p' "$0" >&2
    exit 2
}

long=
case ${1:-} in
--long) long=1; shift ;;
esac
for name in "$@"; do
    case $name in
    power | live | calls | small | index | rot | swap | sources | mutations) ;;
    *)
        echo "rigs: there is no rig $name" >&2
        usage
        ;;
    esac
done
wanted=$*
whole=
[ -z "$long" ] || [ -n "$wanted" ] || whole=1

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    missing=
    command -v mkfs.btrfs >/dev/null 2>&1 || missing="$missing btrfs-progs"
    command -v mkfs.xfs >/dev/null 2>&1 || missing="$missing xfsprogs"
    command -v mkfs.ext4 >/dev/null 2>&1 || missing="$missing e2fsprogs"
    [ -z "$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null; }
fi

# Steps can only be left out in a build of its own.
target=$PWD/tests/rigs/target
(cd tests/rigs && CARGO_TARGET_DIR=$target RUSTFLAGS="--cfg larder_rigs" cargo build --locked --quiet --release)
rigs=$target/release/larder-rigs

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# Kept, whatever is found.
figures=$target/figures
: >"$figures"
failed=

# A rig and its words; with a count for either length.
run() {
    rig=$1 count=$2
    shift 2
    [ -z "$wanted" ] || case " $wanted " in *" $rig "*) ;; *) return 0 ;; esac
    status=0
    "$rigs" "$rig" $count "$@" >"$place/out" || status=$?
    cat "$place/out"
    cat "$place/out" >>"$figures"
    # 3: skipped, and nobody insists.
    case $status in 0 | 3) ;; *) failed="$failed $rig" ;; esac
}

if [ -z "$long" ]; then
    run power "--count 1500"
    run live "--count 120"
    run calls "--count 9000"
    run small "--count 1000"
    run index "--count 100000"
    run rot "--count 4000"
    run swap "--count 3000"
    run sources "--count 900"
else
    if [ -n "$whole" ]; then
        # A processor each.
        sh scripts/fuzz.sh 120 >"$place/fuzz" 2>&1 &
        fuzz=$!
    fi
    run power "--count 10500"
    run live "--count 600"
    run calls ""
    run small ""
    run index "--count 1100000"
    run rot "--count 24000"
    run swap "--count 40000"
    run sources "--count 9000"
fi
if [ -n "$whole" ]; then
    LARDER_TORTURE_SECONDS=240 LARDER_TORTURE_PROCESSES=8 \
        cargo test --locked --quiet --release --test torture -- --nocapture --test-threads=1 \
        >"$place/out" 2>&1 || failed="$failed torture"
    grep ' kills; ' "$place/out" | sed 's/^/TORTURE /' | tee -a "$figures"
    wait "$fuzz" || failed="$failed fuzz"
    cat "$place/fuzz" | tee -a "$figures"
fi
run mutations ""

if [ -n "$failed" ]; then
    echo "rigs: failed:$failed; the figures are in $figures" >&2
    exit 1
fi
[ -z "$whole" ] || python3 tests/rigs/table.py "$figures" docs/reliability.md
