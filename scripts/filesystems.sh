#!/bin/sh
# Makes, mounts and unmounts images of real filesystems for tests and benchmarks. Needs root.
#
#   scripts/filesystems.sh up DIR     prints `LARDER_TEST_FILESYSTEMS=...` for what could be mounted
#   scripts/filesystems.sh down DIR   unmounts, detaches and removes
#
# A fresh image also serves benchmarks: an ext4 without a journal, or one that just saw a mass
# deletion, makes new files many times slower.
set -eu

usage() {
    sed -n '2,5p' "$0" >&2
    exit 2
}

[ $# -eq 2 ] || usage
action=$1
place=$2

make_one() {
    name=$1
    size=$2
    shift 2
    image=$place/$name.img
    mount=$place/$name
    command -v "$1" >/dev/null 2>&1 || { echo "SKIPPED: $name: there is no $1" >&2; return 0; }
    mkdir -p "$mount"
    truncate -s "$size" "$image"
    if ! "$@" "$image" >/dev/null 2>&1 || ! mount -o loop "$image" "$mount" 2>/dev/null; then
        echo "SKIPPED: $name cannot be made or mounted here" >&2
        rmdir "$mount"
        rm -f "$image"
        return 0
    fi
    chmod 1777 "$mount"
    list=$list${list:+,}$name=$mount
}

case $action in
up)
    mkdir -p "$place"
    chmod 755 "$place"
    list=
    make_one ext4 2G mkfs.ext4 -q -F
    make_one btrfs 2G mkfs.btrfs -q
    make_one xfs 2G mkfs.xfs -q -m reflink=1
    mkdir -p "$place/tmpfs"
    if mount -t tmpfs -o size=1g tmpfs "$place/tmpfs" 2>/dev/null; then
        chmod 1777 "$place/tmpfs"
        list=$list${list:+,}tmpfs=$place/tmpfs
    else
        echo "SKIPPED: tmpfs cannot be mounted here" >&2
    fi
    echo "LARDER_TEST_FILESYSTEMS=$list"
    ;;
down)
    for name in ext4 btrfs xfs tmpfs; do
        # A loop device that mount made is detached by umount.
        if [ -d "$place/$name" ]; then
            umount "$place/$name" 2>/dev/null || true
            rmdir "$place/$name" 2>/dev/null || true
        fi
        rm -f "$place/$name.img"
    done
    rmdir "$place" 2>/dev/null || true
    ;;
*) usage ;;
esac
