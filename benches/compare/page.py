"""Makes docs/benchmarks.md and its plots from the figures of a run, and from nothing else.

Every statement about who is faster is computed. What is written by hand says what the operations
mean and what the peers do; it is in `peers.py` and in the texts below.
"""

from pathlib import Path
from statistics import median
from textwrap import fill as fill_text

import plot
from peers import OPERATIONS, PEERS, Peer
from plot import milliseconds

BY_NAME = {peer.name: peer for peer in PEERS}
TREES = {
    "W0": "one file of 6 bytes: what a tool costs before it does anything",
    "W1": "generated: log-normal sizes, 15 % of the files have the content of another, 3 % are "
    "executable; three contents of four are words, the others random",
    "W3": "a real Cargo target directory",
}
KINDS = {"larder": "Larder", "tool": "Tools and libraries", "runner": "Task runners"}
MEANING = {
    "store": "the tree becomes an entry; nothing of it is known. The store exists already and "
    "holds one small file, or is initialised.",
    "again": "the same tree under another key; all contents are known.",
    "restore": "the tree is made where there is none.",
    "noop": "the same restore once more, with everything in place.",
    "lookup": "a process is asked whether there is an entry, and makes no outputs.",
}


class Figures:
    """The figures with the questions that the page asks."""

    def __init__(self, figures: dict) -> None:
        self.all = figures
        self.trees: dict[str, dict] = figures["trees"]

    def record(self, tree: str, peer: str) -> dict:
        empty = {"wall": {}, "rss_kib": {}, "disk": {}, "restored": {}, "failed": ""}
        return self.trees[tree]["results"].get(peer, empty)

    def runs(self, tree: str, peer: str, operation: str) -> list[float]:
        """Milliseconds; none if this peer failed, or cannot do this."""
        record = self.record(tree, peer)
        return [] if record["failed"] else [1000 * s for s in record["wall"].get(operation, [])]

    def peers(self, tree: str) -> list[Peer]:
        return [peer for peer in PEERS if self.record(tree, peer.name)["wall"]
                and not self.record(tree, peer.name)["failed"]]

    def wins(self, tree: str, peer: Peer, operation: str) -> bool:
        mine, theirs = self.runs(tree, peer.like, operation), self.runs(tree, peer.name, operation)
        return peer.kind != "larder" and bool(mine and theirs) and median(theirs) < median(mine)


def write(figures: dict, docs: Path) -> None:
    """Writes the page and the plots; plots of an earlier run are removed."""
    known = Figures(figures)
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    parts = [
        introduction(known),
        *(tree_section(known, tree, folder) for tree in known.trees),
        resources(known),
        kept(known),
        work(known),
        faster(known),
        missing(known),
        commands(known),
    ]
    (docs / "benchmarks.md").write_text("\n\n".join(part for part in parts if part) + "\n")


def wrapped(text: str, indent: str = "") -> str:
    """Lines of 120 columns, as in the other documents."""
    words = {"break_on_hyphens": False, "break_long_words": False}
    return fill_text(text, 120, subsequent_indent=indent, **words)


def bullet(text: str) -> str:
    return wrapped("- " + text, "  ")


def introduction(known: Figures) -> str:
    all_, host = known.all, known.all["machine"]
    loop = ""
    if host["loop"]:
        loop = " on a loop device" + (" with direct I/O" if host["direct_io"] else "")
    journal = " with a journal" if host["filesystem"] == "ext4" and host["journal"] else ""
    journal = journal if host["journal"] else " **without a journal**"
    quick = ""
    if all_["quick"] or all_["runs"] < 5:
        quick = "> **A short run, to try the script.** These figures say little.\n\n"
    trees = "\n".join(
        f"| {name} | {shape['files']:,} | {shape['folders']:,} | {shape['symlinks']:,} "
        f"| {shape['bytes'] / 1e6:,.1f} | {shape['median_bytes'] / 1e3:,.1f} | {TREES[name]}"
        + (f"; {shape['more_names']:,} files share an inode" if shape["more_names"] else "")
        + " |"
        for name, shape in ((name, tree["shape"]) for name, tree in known.trees.items())
    )
    operations = "\n".join(
        bullet(f"**{OPERATIONS[name]}:** {text}") for name, text in MEANING.items()
    )
    versions = ", ".join(all_["versions"].values())
    return f"""# Benchmarks
This page is made by `benches/compare/compare.py`; do not edit it.

{quick}Larder beside other caches, and beside plain tools that are no caches but show what the work costs.
All figures are of one run on {all_["date"]}, which took {all_["minutes"]:.0f} minutes: one machine, one filesystem, the peers
by turns. Compare figures within a table; on another machine all of them are others.

| | |
| --- | --- |
| Processor | {host["processor"]}, {host["cores"]} cores |
| Memory | {host["memory_gib"]} GiB |
| System | {host["system"]}, Linux {host["kernel"]}, {"as root" if host["root"] else "not as root"} |
| Filesystem | {host["filesystem"]}{journal}{loop}, `{host["mount_options"]}` |
| Versions | {versions} |

To repeat it, see `python3 benches/compare/compare.py --help`. The raw figures, with the processor time of each run, are
in [figures.json](benchmarks/figures.json).

## How it is measured
{operations}

Each is a whole process, from its start to its end, after a `sync` and a pause of 0.1 s. No `sync` of ours is in the time,
so what a tool leaves to the kernel does not count. The page cache is warm. There are {all_["runs"]} rounds through all peers,
each with a new store and five lookups, after one that is not timed: in that one the peak memory is taken, and **each
restored tree is compared with its source**, bytes, names and executable bits. A peer that brings back something else is
not measured.

Task runners are not told to store; they run a task. The task is one `mv` of a tree that is ready, so their stores and
`larder run`'s hold the start of a process (for Turborepo, of npm) as well. Nothing is subtracted: W0 shows what each
tool costs by itself. Their projects were loaded once before, by another task.

| Tree | Files | Folders | Symlinks | MB | Median kB | |
| --- | --- | --- | --- | --- | --- | --- |
{trees}"""


def tree_section(known: Figures, tree: str, folder: Path) -> str:
    plots = []
    for operation, title in OPERATIONS.items():
        # Of a tree of one file only the table is of use, and a lookup does not look at the tree.
        if tree == "W0" or operation == "lookup" and tree != "W1":
            continue
        path = draw(known, tree, operation, folder)
        if path:
            plots.append(f"![{title}, {tree}](benchmarks/{path})")
    shape = known.trees[tree]["shape"]
    files = "1 file" if shape["files"] == 1 else f"{shape['files']:,} files"
    head = f"## {tree}: {files}\n"
    head += wrapped(
        "Milliseconds, median and (minimum). **Bold:** faster than Larder; task runners are judged "
        "beside `larder run`, all others beside Larder's defaults."
    ) + "\n"
    lines = ["| | " + " | ".join(OPERATIONS.values()) + " |", "| --- |" + " ---: |" * 5]
    kind = ""
    for peer in known.peers(tree):
        if peer.kind != kind:
            kind = peer.kind
            lines.append(f"| *{KINDS[kind]}* | | | | | |")
        cells = (time_cell(known, tree, peer, operation) for operation in OPERATIONS)
        lines.append(f"| {peer.title} | " + " | ".join(cells) + " |")
    return "\n\n".join([head + "\n" + "\n".join(lines), *plots])


def time_cell(known: Figures, tree: str, peer: Peer, operation: str) -> str:
    runs = known.runs(tree, peer.name, operation)
    if not runs:
        return "–"
    text = milliseconds(median(runs))
    if known.wins(tree, peer, operation):
        text = f"**{text}**"
    return f"{text} ({milliseconds(min(runs))})"


def draw(known: Figures, tree: str, operation: str, folder: Path) -> str | None:
    rows = []
    for peer in known.peers(tree):
        runs = known.runs(tree, peer.name, operation)
        kind = peer.kind
        if kind == "larder" and peer.name not in ("larder", "larder-run"):
            kind = "variant"
        if runs:
            rows.append(plot.Bar(peer.title, kind, median(runs), min(runs), max(runs)))
    if not rows:
        return None
    shape = known.trees[tree]["shape"]
    subtitle = f"{tree}: {shape['files']:,} files, {shape['bytes'] / 1e6:,.0f} MB. "
    subtitle += f"Milliseconds, median of {known.all['runs']}, with the range"
    if operation == "lookup":
        subtitle = "A process that makes nothing. Milliseconds, median, with the range"
    name = f"{tree.lower()}-{operation}.svg"
    (folder / name).write_text(plot.bars(OPERATIONS[operation], subtitle, rows))
    return name


def resources(known: Figures) -> str:
    """Memory and disk, of the trees that are not trivial."""
    trees = [tree for tree in known.trees if tree != "W0"] or list(known.trees)
    lines = ["| | " + " | ".join(
        f"{tree}: memory | {tree}: store, MB | inodes | second key, MB" for tree in trees
    ) + " |", "| --- |" + " ---: |" * 4 * len(trees)]
    for peer in PEERS:
        cells: list[str] = []
        for tree in trees:
            record = known.record(tree, peer.name)
            if record["failed"] or not record["wall"]:
                cells += ["–"] * 4
                continue
            peaks, disk = record["rss_kib"].values(), record["disk"]
            cells.append(f"{max(peaks) / 1024:,.0f}" if peaks else "–")
            if "store" in disk:
                cells.append(f"{disk['store']['bytes'] / 1e6:,.1f}")
                cells.append(f"{disk['store']['inodes']:,}")
            else:
                cells += ["–", "–"]
            if "again" in disk and "store" in disk:
                cells.append(f"+{(disk['again']['bytes'] - disk['store']['bytes']) / 1e6:,.1f}")
            else:
                cells.append("–")
        if set(cells) != {"–"}:
            lines.append(f"| {peer.title} | " + " | ".join(cells) + " |")
    return (
        "## Memory and disk\n"
        + wrapped(
            "Memory is the peak of the largest process over all operations, MiB, without what a "
            "peer leaves running. Disk is what `du` would count, each inode once; the names that "
            "`cp -al` makes share their inodes with the workspace. *Second key* is what storing "
            "the same tree under another key adds."
        )
        + "\n\n"
        + "\n".join(lines)
    )


def kept(known: Figures) -> str:
    """What the restored files are, seen in the first round."""
    tree = next((name for name in ("W3", "W1", "W0") if name in known.trees), None)
    lines = [
        "| | Links into the store | Times to the nanosecond | All permission bits "
        "| Empty folders lost |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for peer in known.peers(tree):
        seen = known.record(tree, peer.name)["restored"].get("restore")
        if not seen:
            continue
        files = max(seen["files"], 1)
        share = (f"{100 * seen[key] / files:.0f} %" for key in ("linked", "mtimes", "modes"))
        lines.append(f"| {peer.title} | {' | '.join(share)} | {seen['empty_folders_lost']} |")
    return (
        "## What comes back\n"
        + wrapped(
            f"Of the files of {tree}, after the first restore. Larder's links carry no write bits, "
            "so that tools do not write into the store, and count as other permissions here. The "
            "links of the others can be written to; those of `cp -al` are the workspace's files."
        )
        + "\n\n"
        + "\n".join(lines)
    )


def work(known: Figures) -> str:
    shown = [peer for peer in PEERS if any(known.record(t, peer.name)["wall"] for t in known.trees)]
    lines = [bullet(f"**{peer.title}.** {peer.work}") for peer in shown]
    return "## Who does more, who does less\n" + "\n".join(lines)


def faster(known: Figures) -> str:
    """Every cell in which a peer is faster, with the settings of Larder that are closer to it."""
    lines = []
    for tree in known.trees:
        for operation, title in OPERATIONS.items():
            found = [peer for peer in known.peers(tree) if known.wins(tree, peer, operation)]
            found.sort(key=lambda peer: median(known.runs(tree, peer.name, operation)))
            for peer in found:
                lines.append(faster_line(known, tree, operation, title, peer))
    text = "## Where others are faster\n"
    if not lines:
        return text + "In no cell of this run."
    return (
        text
        + wrapped(
            "Every cell of this run in which a peer's median is below Larder's, from the figures. "
            "*Overlap* says that some run of Larder's was as fast as some run of the peer's."
        )
        + "\n\n"
        + "| Tree | Operation | Peer | Its ms | Larder's ms | Factor | |\n"
        + "| --- | --- | --- | ---: | ---: | ---: | --- |\n"
        + "\n".join(lines)
    )


def faster_line(known: Figures, tree: str, operation: str, title: str, peer: Peer) -> str:
    theirs = known.runs(tree, peer.name, operation)
    mine = known.runs(tree, peer.like, operation)
    remarks = ["overlap"] if min(mine) <= max(theirs) else []
    for other in peer.also:
        runs = known.runs(tree, other, operation)
        if runs:
            remarks.append(f"{BY_NAME[other].title}: {milliseconds(median(runs))}")
    return (
        f"| {tree} | {title} | {peer.title} | {milliseconds(median(theirs))} "
        f"| {milliseconds(median(mine))} | {median(mine) / median(theirs):.1f} "
        f"| {'; '.join(remarks)} |"
    )


def missing(known: Figures) -> str:
    lines = []
    for peer in PEERS:
        for tree in known.trees:
            reason = known.record(tree, peer.name)["failed"]
            if reason:
                lines.append(bullet(f"**{peer.title}, {tree}:** not measured: {reason}"))
    return "## Not measured\n" + "\n".join(lines) if lines else ""


def commands(known: Figures) -> str:
    """The very lines, with names for the places."""
    parts = [
        "## Commands\n"
        + wrapped(
            "`$SOURCE` holds the folder `tree` that is stored, `$STORE` is the peer's store, and "
            "`$WORKSPACE` the folder where the tree comes back; for runners, in its folder `app`, "
            "which has `input.txt`. `$CASE` is the folder above both. Lines without a remark are "
            "run before, untimed. Where one line stands for several operations, the state makes "
            "the difference: `input.txt` is another one for a second store, and the output is "
            "gone before a restore."
        )
    ]
    for peer in PEERS:
        if not any(known.record(tree, peer.name)["wall"] for tree in known.trees):
            continue
        seen: dict[str, list[str]] = {}
        for name, command in peer.commands.items():
            if not name.startswith("."):
                seen.setdefault(shell(command), []).append(OPERATIONS[name].lower())
        lines = [f"{line}  # {', '.join(names)}" for line, names in seen.items()]
        if peer.prepare:
            lines.insert(0, shell(peer.prepare))
        values = [f"{name}={fill(value)}" for name, value in peer.environment.items()]
        lines = ([" ".join(values)] if values else []) + lines
        block = "\n".join(lines)
        files = "".join(
            f"\n\n`{name}`:\n\n```{name.rsplit('.', 1)[1]}\n{text.strip()}\n```"
            for name, text in peer.files.items()
        )
        head = f"<details><summary>{peer.title}</summary>"
        parts.append(f"{head}\n\n```sh\n{block}\n```{files}\n\n</details>")
    return "\n\n".join(parts)


def shell(command: list[str] | str) -> str:
    return fill(command if isinstance(command, str) else " ".join(command))


def fill(text: str) -> str:
    for name in ("source", "store", "workspace", "case", "node_modules"):
        text = text.replace("{" + name + "}", "$" + name.upper())
    for tool in ("larder", "turbo", "moon", "cacache-driver"):
        text = text.replace("{" + tool + "}", tool)
    return text
