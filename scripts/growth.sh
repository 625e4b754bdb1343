#!/bin/sh
# Measures how stores grow and how much heap is taken, and writes docs/growth.md. Needs root.
#
#   scripts/growth.sh            all of it: some minutes, 17 GiB free
#   scripts/growth.sh --quick    small stores; only prints, and leaves docs/ alone
#
# A fresh image of ext4 with a journal is made for it: an ext4 without one, or one that just saw a
# mass deletion, makes new files many times slower. It lies in TMPDIR, else in /tmp.
set -eu

quick=
case ${1:-} in
'') ;;
--quick) quick=--quick ;;
*)
    sed -n '2,5p' "$0" >&2
    exit 2
    ;;
esac
[ "$(id -u)" = 0 ] || { echo "growth: only root can mount an image" >&2; exit 2; }
cd "$(dirname "$0")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/larder-growth-image.XXXXXX")
loop=
down() {
    umount "$work/mount" 2>/dev/null || true
    [ -z "$loop" ] || losetup --detach "$loop" || true
    rm -rf --one-file-system "$work"
}
trap down EXIT
trap 'exit 130' INT TERM

# Preallocated and with direct I/O, so that the image is neither in the page cache twice nor grows
# while it is measured. The default number of inodes would not do for so many small files.
fallocate -l 16G "$work/image"
mkfs.ext4 -q -F -N 3000000 "$work/image"
loop=$(losetup --find --show --direct-io=on "$work/image" 2>/dev/null) ||
    loop=$(losetup --find --show "$work/image")
mkdir "$work/mount"
mount "$loop" "$work/mount"

cargo bench --bench growth -- --place "$work/mount" --json "$work/growth.json" $quick
if [ -z "$quick" ]; then
    python3 benches/growth/plot.py "$work/growth.json" docs
fi
