#!/usr/bin/env python3
"""Makes docs/reliability.md from what the rigs have printed.

    tests/rigs/table.py FIGURES PAGE [NOTE..]

Needs nothing beside Python 3. What the page says is only what the figures hold.
"""

import os
import platform
import re
import sys
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path

# Rig: what it does, and what its unit is called.
RIGS = {
    "power": "Power cuts, exact: every write, flush and acknowledgement of a disk is logged while several processes "
    "work on a filesystem there; any prefix, without the unflushed writes, with some of them, in another order or "
    "torn by sector becomes an image that is mounted and read back in full, some read-only, and some are worked on "
    "and cut again.",
    "live": "Power cuts, live: a filesystem under load from several processes is shut down (FS_IOC_SHUTDOWN), "
    "mounted and read back; only acknowledgements that were read before count.",
    "calls": "Every system call of every operation goes wrong once: an error, a kill, a success that is a lie, or "
    "half of what was asked. Then everything is read back.",
    "small": "Full disks, no inodes, quotas, few descriptors, files of limited size: a clear error, reads go on.",
    "index": "The index on a disk in memory that loses, tears and reorders what was not synced, cut again and again, "
    "also while it recovers.",
    "rot": "Every file of a store is flipped, cut, extended, removed, or replaced by a directory, a symlink, a FIFO.",
    "swap": "Directories are swapped for symlinks while restores, stores and removals run, and hostile manifests are "
    "restored: nothing outside changes.",
    "sources": "Sources change while they are stored, on tmpfs, xfs and btrfs.",
}


# Beside the rigs: what else may say that it was skipped.
MUTATIONS = "mutations"


def parse(text):
    rigs, mutations, controls, fuzz, torture = {}, [], [], [], []
    skips = defaultdict(list)
    target = None
    for line in text.splitlines():
        if found := re.match(r"RIG (\w+): (.*)", line):
            rigs[found[1]] = numbers(found[2])
        elif found := re.match(r"SKIPPED: (\w+): (.*)", line):
            skips[found[1]].append(found[2])
        elif found := re.match(r"without (\w+), ([^:]+): RIG (\w+): (.*)", line):
            mutations.append((found[1], found[3], found[2], numbers(found[4])))
        elif found := re.match(r"with all steps, ([^:]+): RIG (\w+): (.*)", line):
            controls.append((found[2], found[1], numbers(found[3])))
        elif found := re.match(r"fuzzing (\w+) for", line):
            target = found[1]
        elif found := re.match(r"stat::number_of_executed_units:\s*(\d+)", line):
            fuzz.append((target, int(found[1])))
        elif line.startswith("TORTURE "):
            torture.append(line.removeprefix("TORTURE "))
    return rigs, skips, mutations, controls, fuzz, torture


def numbers(figures):
    parts = [part.split("=", 1) for part in figures.split(", ") if "=" in part]
    return {name: int(number) for name, number in parts}


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def words(figures):
    shown = {name: number for name, number in figures.items() if name not in ("seconds", "violations")}
    return ", ".join(f"{name.replace('_', ' ').replace('-', ' ')} {number:,}" for name, number in shown.items())


def row(rig, what, figures, skips):
    skipped = [f"**skipped: {reason}**" for reason in skips]
    if figures is None:
        return [f"`{rig}`", what, "; ".join(skipped) or "**not run**", "", ""]
    # Nothing but seconds and violations: it did nothing.
    seconds, violations = (f"{figures[name]:,}" for name in ("seconds", "violations"))
    if skipped and len(figures) == 2:
        violations = "none looked for"
    told = "; ".join([*skipped, words(figures)] if words(figures) else skipped)
    return [f"`{rig}`", what, told, seconds, f"**{violations}**"]


def page(text, version, note):
    rigs, skips, mutations, controls, fuzz, torture = parse(text)
    broken = [rig for rig, figures in rigs.items() if figures["violations"] > 0]
    day = datetime.now(timezone.utc).date().isoformat()
    kernel = ".".join(platform.release().split(".")[:2])
    lines = [
        "# Reliability",
        "This page is made by `sh scripts/rigs.sh --long`, as root; do not edit it. DESIGN.md, section 14, has the "
        "guarantees that these rigs try to break. A violation is anything that a guarantee rules out: wrong bytes, "
        "an acknowledged entry that is gone, a panic, a hang, a store that does not open or work any more.",
        "",
        f"{day}, Larder {version}, {os.cpu_count()} cores, Linux {kernel}.",
        *([""] + [note] if note else []),
        *([f"\n**This run found violations: {', '.join(broken)}.**"] if broken else []),
        "",
        "## Rigs",
        *table(
            ["Rig", "What it does", "Figures", "Seconds", "Violations"],
            [row(rig, what, rigs.get(rig), skips[rig]) for rig, what in RIGS.items()],
        ),
        "",
        *[f"Torture, eight processes that are killed while they store, restore, evict and repair: {line}." for line in torture],
        "",
        "## Steps that are left out",
        "A rig that finds nothing proves nothing. Each step that a guarantee rests on was left out once; the rig "
        "beside it must notice, and stops soon after it has.",
        "",
        *table(
            ["Step left out", "Rig", "On", "Violations found", "Seconds"],
            [
                [f"`{step}`", f"`{rig}`", kind, f"{figures['violations']:,}", str(figures["seconds"])]
                for step, rig, kind, figures in mutations
            ],
        ),
        *[f"\n**Skipped: {reason}**" for reason in skips[MUTATIONS]],
        "",
        "With nothing left out the same rigs, with the same seed, must find nothing.",
        "",
        *table(
            ["Rig", "On", "Violations found", "Seconds"],
            [
                [f"`{rig}`", kind, f"{figures['violations']:,}", str(figures["seconds"])]
                for rig, kind, figures in controls
            ],
        ),
        "",
        "## Fuzzing",
        f"{sum(count for _, count in fuzz):,} executions in all.",
        "",
        *table(["Target", "Executions"], [[f"`{target}`", f"{count:,}"] for target, count in fuzz]),
    ]
    return "\n".join(lines) + "\n"


def main():
    figures, target, *note = sys.argv[1:]
    manifest = Path(__file__).resolve().parents[2] / "Cargo.toml"
    version = re.search(r'^version = "(.*)"', manifest.read_text(), re.M)[1]
    Path(target).write_text(page(Path(figures).read_text(), version, " ".join(note)), encoding="utf-8")


if __name__ == "__main__":
    main()
