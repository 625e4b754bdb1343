#!/bin/sh
# Makes, mounts and unmounts images of real filesystems for tests and benchmarks. Needs root.
#
#   scripts/filesystems.sh up DIR [SIZE]  prints `LARDER_TEST_FILESYSTEMS=...` for what could be mounted
#   scripts/filesystems.sh down DIR       unmounts, detaches and removes
#
# A fresh image also serves benchmarks: an ext4 without a journal, or one that just saw a mass
# deletion, makes new files many times slower. With a SIZE (such as 8G) the images are made for
# measuring: allocated beforehand, read and written past the page cache of the filesystem below.
set -eu

usage() {
    sed -n '2,5p' "$0" >&2
    exit 2
}

[ $# -eq 2 ] || { [ $# -eq 3 ] && [ "$1" = up ]; } || usage
action=$1
place=$2
size=${3:-}

make_image() {
    if [ -n "$size" ]; then
        fallocate -l "$size" "$1"
    else
        truncate -s 2G "$1"
    fi
}

mount_image() {
    if [ -z "$size" ]; then
        mount -o loop "$1" "$2"
        return
    fi
    device=$(losetup --find --show --direct-io=on "$1") || return 1
    mounted=0
    mount "$device" "$2" || mounted=1
    # While it is mounted this only asks for what `mount -o loop` does: umount detaches it.
    losetup --detach "$device"
    return "$mounted"
}

make_one() {
    name=$1
    shift
    image=$place/$name.img
    mount=$place/$name
    command -v "$1" >/dev/null 2>&1 || { echo "SKIPPED: $name: there is no $1" >&2; return 0; }
    mkdir -p "$mount"
    if ! make_image "$image" || ! "$@" "$image" >/dev/null 2>&1 || ! mount_image "$image" "$mount" 2>/dev/null; then
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
    make_one ext4 mkfs.ext4 -q -F
    make_one btrfs mkfs.btrfs -q
    make_one xfs mkfs.xfs -q -m reflink=1
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
        # The loop device is detached by umount.
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
