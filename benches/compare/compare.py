#!/usr/bin/env python3
"""Compares Larder with other caches and plain tools, and writes docs/benchmarks.md.

Everything runs on one machine, in one run, on one filesystem, round after round through all peers.
PLACE should be a fresh ext4 with a journal (a filesystem without one makes new files many times
slower after a removal); as root:

    fallocate -l 8G /tmp/place.img && mkfs.ext4 -q -F /tmp/place.img
    mkdir -p /tmp/place && mount -o loop /tmp/place.img /tmp/place
    cargo build --release
    python3 benches/compare/compare.py --work /tmp/peers --place /tmp/place \\
        --larder target/release/larder --target-dir target/release
    umount /tmp/place && rm /tmp/place.img

WORK gets the tools from npm and crates.io; Debian packages are installed if this runs as root.
A peer that cannot be had or fails is named in the page with the reason. On two cores all of it
takes about half an hour, and --quick --runs 1 five minutes.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import page
import workload
from measure import NotMeasured, machine, run
from peers import OPERATIONS, PEERS, Peer, Tools, environment

DOCS = Path(__file__).resolve().parents[2] / "docs"
LOOKUPS = 5


class Case:
    """One peer with one tree in one round: an own folder, from nothing to removed."""

    def __init__(self, lab: "Lab", peer: Peer, tree: Path) -> None:
        self.lab, self.peer, self.source = lab, peer, tree
        self.folder = lab.place / "run" / peer.name
        self.store = self.folder / "store"
        self.workspace = self.folder / "workspace"
        self.app = self.workspace / "app"
        # Runners have the tree in a project of their workspace.
        self.is_runner = peer.kind == "runner" or peer.name == "larder-run"
        self.restored = (self.app if self.is_runner else self.workspace) / "tree"
        self.made = self.folder / "made"
        self.names = {
            **lab.tools.paths,
            "source": str(tree),
            "store": str(self.store),
            "workspace": str(self.workspace),
            "case": str(self.folder),
        }
        self.environment = {
            **lab.environment,
            **{name: self.fill(value) for name, value in peer.environment.items()},
        }
        self.stores = [Path(self.fill(path)) for path in peer.stores]

    def fill(self, text: str) -> str:
        return text.format_map(self.names)

    def run(self, command: list[str] | str, memory: bool):
        if isinstance(command, str):
            argv = ["sh", "-c", self.fill(command)]
        else:
            argv = [self.fill(word) for word in command]
        return run(argv, self.folder, self.environment, self.lab.log, memory)

    def __enter__(self) -> "Case":
        remove(self.folder)
        self.workspace.mkdir(parents=True)
        (self.folder / "warm").mkdir()
        (self.folder / "warm" / "file").write_text("warm\n")
        if self.is_runner:
            self.app.mkdir()
            (self.app / "input.txt").write_text("one\n")
            for name, text in self.peer.files.items():
                (self.workspace / name).parent.mkdir(exist_ok=True)
                (self.workspace / name).write_text(text)
            if self.peer.files:
                self.commit()
        return self

    def __exit__(self, *_: object) -> None:
        remove(self.folder)

    def commit(self) -> None:
        """The runners ask git for the files of a workspace, and moon for its branch."""
        git = ["git", "-C", str(self.workspace), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "files"]):
            subprocess.run([*git, *words], check=False, env=self.environment)

    def rounds(self, memory: bool, record: "Record") -> None:
        if self.peer.prepare:
            self.run(self.peer.prepare, False)
        for name, command in self.peer.commands.items():
            kept = None if name.startswith(".") else record
            # A lookup takes milliseconds and changes nothing, so it can be asked more often.
            for _ in range(1 if memory or name != "lookup" else LOOKUPS):
                self.operation(name.lstrip("."), command, memory, kept)

    def operation(self, name: str, command, memory: bool, record: "Record | None") -> None:
        if self.is_runner and name in ("store", "again"):
            if name == "again":
                (self.app / "input.txt").write_text("two\n")
            with Borrowed(self):
                taken = self.run(command, memory)
        else:
            taken = self.run(command, memory)
        if record is None:
            return
        record.take(name, taken, memory)
        if memory and name in ("store", "again"):
            sizes = [workload.usage(store) for store in self.stores]
            record.disk[name] = {key: sum(size[key] for size in sizes) for key in sizes[0]}
        if memory and name in ("restore", "noop"):
            store = self.stores[0]
            difference = workload.compare(self.source / "tree", self.restored, store)
            if difference.wrong:
                raise NotMeasured(f"{OPERATIONS[name]}: {difference.wrong} names are not as stored")
            record.restored[name] = dataclasses.asdict(difference)


class Borrowed:
    """Lends the tree itself to a task, which moves it to where it is an output."""

    def __init__(self, case: Case) -> None:
        self.case, self.tree = case, case.source / "tree"

    def __enter__(self) -> None:
        self.tree.rename(self.case.made)

    def __exit__(self, *_: object) -> None:
        made, moved = self.case.made, self.case.restored
        (made if made.exists() else moved).rename(self.tree)


class Record:
    """What one peer did with one tree."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.rss_kib: dict[str, int] = {}
        self.disk: dict[str, dict[str, int]] = {}
        self.restored: dict[str, dict[str, int]] = {}
        self.failed = ""

    def take(self, name: str, taken, memory: bool) -> None:
        if memory:
            if taken.rss_kib is not None:
                self.rss_kib[name] = taken.rss_kib
            return
        self.wall.setdefault(name, []).append(round(taken.wall_seconds, 6))
        self.cpu.setdefault(name, []).append(round(taken.cpu_seconds, 6))


class Lab:
    """The place, the tools and the trees of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.place = options.place.resolve()
        self.work = options.work.resolve()
        self.tools = Tools(self.work, options.larder, not options.no_install)
        self.environment = environment(self.work)
        self.log = self.work / "last.log"
        self.trees = self.make_trees()

    def make_trees(self) -> dict[str, Path]:
        folder = self.place / "trees"
        remove(folder)
        trees = {name: folder / name for name in ("W1", "W3", "W0")}
        workload.one_file(trees["W0"])
        files, folders = (2_000, 150) if self.options.quick else (20_000, 1_500)
        workload.generate(trees["W1"], files, folders)
        if self.options.target_dir:
            workload.take(trees["W3"], self.options.target_dir)
        else:
            del trees["W3"]
        wanted = self.options.trees
        return {name: tree for name, tree in trees.items() if not wanted or name in wanted}

    def measure(self) -> dict[str, object]:
        peers = [peer for peer in PEERS if not self.options.only or peer.name in self.options.only]
        results: dict[str, object] = {}
        for name, tree in self.trees.items():
            shape = workload.describe(tree)
            records = {peer.name: Record() for peer in peers}
            for number in range(self.options.runs + 1):
                # Nobody is always first, and nobody always follows the same one's removal.
                turn = number * 7 % len(peers)
                for peer in peers[turn:] + peers[:turn]:
                    self.one(peer, tree, number == 0, records[peer.name], f"{name} round {number}")
            if workload.describe(tree).digest != shape.digest:
                raise SystemExit(f"{name} was changed by one of the peers; the figures are void")
            results[name] = {
                "shape": dataclasses.asdict(shape),
                "results": {peer: vars(record) for peer, record in records.items()},
            }
        return results

    def one(self, peer: Peer, tree: Path, memory: bool, record: Record, where: str) -> None:
        record.failed = record.failed or self.tools.missing.get(peer.tool, "")
        if record.failed:
            return
        start = time.monotonic()
        try:
            with Case(self, peer, tree) as case:
                case.rounds(memory, record)
        except NotMeasured as reason:
            record.failed = str(reason)
        seconds = time.monotonic() - start
        print(f"{where}: {peer.title}: {record.failed or f'{seconds:.1f} s'}", flush=True)


def remove(folder: Path) -> None:
    """As rm does, which is faster than Python; a folder without write bits is opened first."""
    if folder.exists():
        if os.geteuid() != 0:
            subprocess.run(["chmod", "-R", "u+rwX", "--", str(folder)], check=False)
        subprocess.run(["rm", "-rf", "--", str(folder)], check=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where the tools are installed; reused")
    parser.add_argument("--place", type=Path, help="where trees and stores lie")
    parser.add_argument("--larder", type=Path, help="the program that is compared")
    parser.add_argument("--target-dir", type=Path, help="a Cargo target directory, for the tree W3")
    parser.add_argument("--quick", action="store_true", help="2,000 files in W1 instead of 20,000")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds after the first [5]")
    parser.add_argument("--trees", nargs="+", choices=("W0", "W1", "W3"), help="only these trees")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--no-install", action="store_true", help="take only what is there already")
    parser.add_argument("--anyway", action="store_true", help="go on without a journal")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes [docs]")
    parser.add_argument("--render-only", action="store_true", help="only write the page again")
    options = parser.parse_args()
    if not options.render_only:
        for name in ("work", "place", "larder"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed, or --render-only")
    return options


def main() -> None:
    options = arguments()
    folder = options.docs / "benchmarks"
    figures = folder / "figures.json"
    if not options.render_only:
        # A stop must not lose the tree that a task has borrowed, nor leave a half run behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        host = machine(options.place)
        if not host["journal"] and not options.anyway:
            raise SystemExit("PLACE has no journal: figures would mislead (--anyway goes on)")
        lab = Lab(options)
        start = time.monotonic()
        trees = lab.measure()
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "quick": options.quick,
            "runs": options.runs,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "machine": host,
            "versions": lab.tools.versions,
            "trees": trees,
        }
        remove(lab.place / "trees")
        folder.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(result, indent=1) + "\n")
        shutil.rmtree(lab.place / "run", ignore_errors=True)
    page.write(json.loads(figures.read_text()), options.docs)
    print(f"{options.docs / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
