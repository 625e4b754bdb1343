#!/bin/sh
# Measures Larder against its floors on fresh ext4, xfs and btrfs. Needs root and some 30 GB, 8 GB
# with `--quick`; takes a few minutes with that, else much longer.
#
#   scripts/bench.sh [OPTION..]               images go to a temporary folder
#   scripts/bench.sh --images DIR [OPTION..]  images go to DIR, which is made and removed
#
# All other options go to the program; benches/trees.rs lists them. Its exit status is ours: 1 if a
# bound was not kept.
set -eu
cd "$(dirname "$0")/.."

images=
case ${1:-} in
--images)
    [ $# -ge 2 ] || { sed -n '5,6p' "$0" >&2; exit 2; }
    images=$2
    shift 2
    ;;
--help)
    sed -n '2,9p' "$0"
    exit 0
    ;;
esac
[ "$(id -u)" = 0 ] || { echo "error: only root can mount images" >&2; exit 2; }

place=$(mktemp -d)
[ -n "$images" ] || images=$place/images
cleanup() {
    status=$?
    trap - EXIT INT TERM
    sh scripts/filesystems.sh down "$images"
    rm -rf "$place"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

tools=${CARGO_TARGET_DIR:-target}/tools
case $tools in
/*) ;;
*) tools=$PWD/$tools ;;
esac
PATH=$tools/bin:$PATH
export PATH
command -v b3sum >/dev/null 2>&1 || cargo install --locked --quiet --root "$tools" b3sum ||
    echo "there is no b3sum; the program does without" >&2

# A real target directory: this package's own, of the command and its unit tests, some 800 MB in 2,000
# files, unless `--target-dir` names another one. The build of the benchmark comes first, so that nothing
# but the measuring happens once the images are there.
cargo bench --locked --quiet --bench trees --no-run
quick= has_target=
size=8G
for option in "$@"; do
    case $option in
    --quick | --test) quick=1 size=2G ;;
    --target-dir) has_target=1 ;;
    esac
done
if [ -z "$quick$has_target" ]; then
    export CARGO_INCREMENTAL=0
    CARGO_TARGET_DIR=$place/target cargo test --locked --quiet --no-run --lib --bins
    CARGO_TARGET_DIR=$place/target cargo build --locked --quiet
    set -- --target-dir "$place/target" "$@"
fi

found=$(sh scripts/filesystems.sh up "$images" "$size")
LARDER_TEST_FILESYSTEMS=${found#LARDER_TEST_FILESYSTEMS=}
export LARDER_TEST_FILESYSTEMS
cargo bench --locked --quiet --bench trees -- "$@"
