"""The trees that are stored and restored: made from a seed, or taken from a real build.

Invariants:
- A generated tree is the same bytes on every machine: its only source is the seed.
- Every file is older than the run, so that no tool meets a file of this moment.
- The tree lies in `FOLDER/tree`. Tools that want a workspace get FOLDER, and `tree` as the output.
"""

import hashlib
import math
import os
import random
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

SEED = 20_261_123
DUPLICATES = 0.15
EXECUTABLES = 0.03
BINARIES = 0.25
SIZE_MEDIAN_BYTES = 1_500
SIZE_MEAN_BYTES = 8_000
SIZE_BYTES_MAX = 4_000_000
# A day before any run that this version of the script can make.
MTIME_NS = 1_700_000_000_123_456_789


@dataclass
class Shape:
    """What is in a tree, as the page tells it."""

    files: int = 0
    folders: int = 0
    symlinks: int = 0
    bytes: int = 0
    median_bytes: int = 0
    more_names: int = 0
    digest: str = ""


def generate(folder: Path, files: int, folders: int) -> None:
    """Makes `folder/tree`: log-normal sizes; three files of four are words, the others random."""
    dice = random.Random(SEED)
    words = [
        "".join(dice.choices("abcdefghijklmnopqrstuvwxyz_", k=dice.randint(3, 9))).encode()
        for _ in range(4_096)
    ]
    tree = folder / "tree"
    tree.mkdir(parents=True)
    places = [tree]
    for number in range(folders - 1):
        # A parent from all that there are: some folders deep, most of them near the top.
        place = dice.choice(places) / f"folder-{number:04}"
        place.mkdir()
        places.append(place)
    mu = math.log(SIZE_MEDIAN_BYTES)
    sigma = math.sqrt(2 * math.log(SIZE_MEAN_BYTES / SIZE_MEDIAN_BYTES))
    contents: list[bytes] = []
    for number in range(files):
        if contents and dice.random() < DUPLICATES:
            content = dice.choice(contents)
        else:
            size = min(int(dice.lognormvariate(mu, sigma)), SIZE_BYTES_MAX)
            if dice.random() < BINARIES:
                content = dice.randbytes(size)
            else:
                content = b" ".join(dice.choices(words, k=size // 5 + 1))[:size]
            contents.append(content)
        file = dice.choice(places) / f"file-{number:05}.txt"
        file.write_bytes(content)
        file.chmod(0o755 if dice.random() < EXECUTABLES else 0o644)
        os.utime(file, ns=(MTIME_NS, MTIME_NS + number))


def one_file(folder: Path) -> None:
    """Makes `folder/tree` with one small file: what is left is what a tool costs at all."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    file = tree / "file.txt"
    file.write_bytes(b"small\n")
    os.utime(file, ns=(MTIME_NS, MTIME_NS))


def take(folder: Path, source: Path) -> None:
    """Copies a real tree to `folder/tree`, with its times."""
    folder.mkdir(parents=True)
    # cp keeps nanoseconds, and names that share an inode.
    status = os.spawnlp(os.P_WAIT, "cp", "cp", "-a", "--", str(source), str(folder / "tree"))
    if status != 0:
        shutil.rmtree(folder)
        raise OSError(f"cannot copy {source}")


@dataclass
class Entry:
    """One name in a tree."""

    kind: str
    mode: int
    size: int
    mtime_ns: int
    inode: int
    links: int
    blocks: int


def walk(folder: Path) -> dict[str, Entry]:
    """Stats everything below `folder`."""
    found: dict[str, Entry] = {}
    waiting = [("", folder)]
    while waiting:
        prefix, place = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                name = prefix + entry.name
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    kind = "folder"
                    waiting.append((name + "/", Path(entry.path)))
                else:
                    kind = "symlink" if stat.S_ISLNK(status.st_mode) else "file"
                found[name] = Entry(
                    kind,
                    stat.S_IMODE(status.st_mode),
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ino,
                    status.st_nlink,
                    status.st_blocks,
                )
    return found


def describe(folder: Path) -> Shape:
    """Counts and hashes `folder/tree`."""
    tree = folder / "tree"
    found = walk(tree)
    sizes = sorted(entry.size for entry in found.values() if entry.kind == "file")
    shape = Shape(
        files=len(sizes),
        folders=sum(entry.kind == "folder" for entry in found.values()) + 1,
        symlinks=sum(entry.kind == "symlink" for entry in found.values()),
        bytes=sum(sizes),
        median_bytes=sizes[len(sizes) // 2] if sizes else 0,
        more_names=sum(entry.kind == "file" and entry.links > 1 for entry in found.values()),
    )
    digest = hashlib.sha256()
    for name in sorted(found):
        entry = found[name]
        digest.update(f"{entry.kind} {entry.mode:o} {name}\0".encode("utf-8", "surrogateescape"))
        if entry.kind == "file":
            digest.update(hashlib.sha256((tree / name).read_bytes()).digest())
    shape.digest = digest.hexdigest()
    return shape


@dataclass
class Difference:
    """What a restored tree has and has not, beside its source."""

    files: int = 0
    wrong: int = 0
    linked: int = 0
    mtimes: int = 0
    modes: int = 0
    empty_folders_lost: int = 0


def compare(source: Path, restored: Path, store: Path) -> Difference:
    """Reads both trees. `linked` are files that share their inode with one in `store`."""
    wanted, found = walk(source), walk(restored)
    kept = {entry.inode for entry in walk(store).values()} if store.is_dir() else set()
    result = Difference()
    for name, entry in wanted.items():
        other = found.pop(name, None)
        if entry.kind == "folder":
            result.empty_folders_lost += other is None
        elif other is None or other.kind != entry.kind:
            result.wrong += 1
        elif entry.kind == "symlink":
            result.wrong += os.readlink(source / name) != os.readlink(restored / name)
        else:
            result.files += 1
            same = (source / name).read_bytes() == (restored / name).read_bytes()
            executable = (entry.mode ^ other.mode) & 0o100 == 0
            result.wrong += not (same and executable)
            result.linked += other.inode in kept
            result.mtimes += entry.mtime_ns == other.mtime_ns
            result.modes += entry.mode == other.mode
    result.wrong += sum(entry.kind != "folder" for entry in found.values())
    return result


def usage(folder: Path) -> dict[str, int]:
    """Says what `folder` takes on disk, each inode once, as du does."""
    if not folder.exists():
        return {"bytes": 0, "inodes": 0}
    if folder.is_file():
        return {"bytes": folder.stat().st_blocks * 512, "inodes": 1}
    inodes = {entry.inode: entry.blocks for entry in walk(folder).values()}
    return {"bytes": sum(inodes.values()) * 512, "inodes": len(inodes)}
