#!/bin/sh
# Measures how processes share a store and what its limit costs, each row beside its bound, and ends
# with 1 if one is over. Needs root.
#
#   scripts/sharing.sh [OPTION..]            all of it: some ten minutes, 16 GiB free
#   scripts/sharing.sh --quick [OPTION..]    smaller and shorter: some minutes, 4 GiB free
#   scripts/sharing.sh --docs [OPTION..]     also writes docs/sharing.md
#
# All other options go to the program; benches/sharing/main.rs lists them. A fresh image of ext4 with
# a journal is made for it: an ext4 without one, or one that just saw a mass deletion, makes new files
# many times slower. It lies in TMPDIR, else in /tmp.
set -eu

[ "$(id -u)" = 0 ] || { echo "sharing: only root can mount an image" >&2; exit 2; }
cd "$(dirname "$0")/.."

size=16G
inodes=3000000
docs=
# Each argument is looked at once, and kept at the end, but for `--docs`.
for option in "$@"; do
    shift
    case $option in
    --help)
        sed -n '2,11p' "$0"
        exit 0
        ;;
    --docs)
        docs=$PWD/docs/sharing.md
        continue
        ;;
    --quick | --test)
        size=4G
        inodes=500000
        ;;
    esac
    set -- "$@" "$option"
done
[ -z "$docs" ] || set -- "$@" --docs "$docs"

cargo bench --locked --quiet --bench sharing --no-run

work=$(mktemp -d "${TMPDIR:-/tmp}/larder-sharing-image.XXXXXX")
down() {
    status=$?
    trap - EXIT INT TERM
    umount "$work/mount" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    exit "$status"
}
trap down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Preallocated and with direct I/O, so that the image is neither in the page cache twice nor grows
# while it is measured. The default number of inodes would not do for so many small files.
fallocate -l "$size" "$work/image"
mkfs.ext4 -q -F -N "$inodes" "$work/image"
loop=$(losetup --find --show --direct-io=on "$work/image" 2>/dev/null) ||
    loop=$(losetup --find --show "$work/image")
mkdir "$work/mount"
mount "$loop" "$work/mount" || { losetup --detach "$loop"; exit 2; }
# While it is mounted this only asks for what umount does then.
losetup --detach "$loop"

cargo bench --locked --quiet --bench sharing -- --place "$work/mount" "$@"
