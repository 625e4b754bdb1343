#!/usr/bin/env python3
"""Makes docs/growth.md and the drawings in docs/growth/ from the figures of the benchmark.

    benches/growth/plot.py FIGURES.json DOCS

Needs nothing beside Python 3. What is drawn is only what the JSON file holds, so the same figures
give the same files.
"""

import json
import math
import sys
from datetime import datetime, timezone
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 720
MIB = 1 << 20
# Can be told apart by those who see few colours.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"]
BOUND_COLOUR = "#c1272d"
FAINT = "#dddddd"
DARK = "#222222"


class Drawing:
    """An SVG on a white ground."""

    def __init__(self, title, height):
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif" '
            f'font-size="13" fill="{DARK}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        ]
        self.text(20, 26, title, size=16, weight="bold")

    def text(self, x, y, words, anchor="start", size=13, weight="normal"):
        # The white rim keeps figures readable where a line passes behind them.
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" stroke="white" stroke-width="3" paint-order="stroke">'
            f"{escape(words)}</text>"
        )

    def line(self, x1, y1, x2, y2, colour=FAINT, width=1.0, dashes=""):
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}" stroke-width="{width}"{dashed}/>'
        )

    def rectangle(self, x, y, width, height, colour):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0.8):.1f}" '
            f'fill="{colour}"/>'
        )

    def curve(self, points, colour, dashes=""):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'
        )
        for x, y in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')

    def legend(self, entries):
        """One line below the title: (words, colour, whether it is a bound)."""
        x = 20
        for words, colour, is_bound in entries:
            if is_bound:
                self.line(x, 46, x + 18, 46, colour, 2, "6 4")
            else:
                self.rectangle(x + 3, 40, 12, 12, colour)
            self.text(x + 24, 51, words)
            x += 24 + 6.6 * len(words) + 22

    def write(self, file):
        file.write_text("\n".join([*self.parts, "</svg>\n"]), encoding="utf-8")


class Axis:
    """A scale from 0, with round marks."""

    def __init__(self, most, start, end):
        step = 10 ** math.floor(math.log10(most / 4))
        while most / step > 5:
            step *= 2 if most / step <= 10 else 2.5 if most / step <= 12.5 else 5
        self.top = step * math.ceil(most * 1.02 / step)
        self.marks = [step * mark for mark in range(round(self.top / step) + 1)]
        self.start, self.end = start, end

    def at(self, value):
        return self.start + (self.end - self.start) * value / self.top


LEFT, RIGHT = 66, WIDTH - 30
TOP, BOTTOM = 74, 330
HEIGHT = 386


def number(value):
    return f"{value:,.10g}"


def upright(drawing, axis):
    for mark in axis.marks:
        drawing.line(LEFT, axis.at(mark), RIGHT, axis.at(mark))
        drawing.text(LEFT - 8, axis.at(mark) + 4.5, number(round(mark, 6)), anchor="end")


def bound_across(drawing, axis, bound):
    drawing.line(LEFT, axis.at(bound), RIGHT, axis.at(bound), BOUND_COLOUR, 2, "6 4")


def bars(title, unit, labels, series, bound, is_stacked=False, digits=2):
    """Bars in groups, or on top of each other. `series` are (name, values)."""
    totals = [sum(values) for values in zip(*(values for _, values in series))]
    most = max(totals) if is_stacked else max(max(values) for _, values in series)
    drawing = Drawing(f"{title}, {unit}", HEIGHT)
    axis = Axis(max(most * 1.08, bound), BOTTOM, TOP)
    upright(drawing, axis)
    slot = (RIGHT - LEFT) / len(labels)
    columns = 1 if is_stacked else len(series)
    width = min(70, slot * 0.7 / columns)
    # Written last, over the line of the bound.
    written = []
    for place, label in enumerate(labels):
        middle = LEFT + slot * (place + 0.5)
        below = 0
        for index, (_, values) in enumerate(series):
            value = values[place]
            column = 0 if is_stacked else index
            x = middle + (column - columns / 2) * width
            top = axis.at(below + value)
            drawing.rectangle(x + 2, top, width - 4, axis.at(below) - top, COLOURS[index])
            if is_stacked:
                below += value
            else:
                written.append((x + width / 2, top - 6, value))
        if is_stacked:
            written.append((middle, axis.at(below) - 6, below))
        for row, words in enumerate(label):
            drawing.text(middle, BOTTOM + 20 + 17 * row, words, anchor="middle")
    drawing.line(LEFT, BOTTOM, RIGHT, BOTTOM, DARK)
    bound_across(drawing, axis, bound)
    for x, y, value in written:
        if y - 12 < axis.at(bound) < y + 5:
            y = axis.at(bound) - 6
        drawing.text(x, y, f"{value:,.{digits}f}", anchor="middle")
    entries = [(name, COLOURS[index], False) for index, (name, _) in enumerate(series)]
    drawing.legend([*entries, (f"bound: {number(bound)}", BOUND_COLOUR, True)])
    return drawing


def curves(title, unit, below, places, series, bound):
    """Lines over a logarithmic scale. `series` are (name, values, whether it is a p99)."""
    drawing = Drawing(f"{title}, {unit}", HEIGHT)
    axis = Axis(max(bound, max(max(values) for _, values, _ in series)) * 1.05, BOTTOM, TOP)
    upright(drawing, axis)
    least, most = math.log10(places[0]), math.log10(places[-1])

    def across(place):
        return LEFT + 40 + (RIGHT - LEFT - 80) * (math.log10(place) - least) / (most - least)

    for place in places:
        drawing.line(across(place), TOP, across(place), BOTTOM)
        drawing.text(across(place), BOTTOM + 20, f"{place:,}", anchor="middle")
    drawing.text((LEFT + RIGHT) / 2, BOTTOM + 42, below, anchor="middle")
    drawing.line(LEFT, BOTTOM, RIGHT, BOTTOM, DARK)
    for index, (_, values, is_tail) in enumerate(series):
        points = [(across(place), axis.at(value)) for place, value in zip(places, values)]
        drawing.curve(points, COLOURS[index], "2 3" if is_tail else "")
    bound_across(drawing, axis, bound)
    entries = [(name, COLOURS[index], False) for index, (name, _, _) in enumerate(series)]
    drawing.legend([*entries, (f"bound, hit p50: {bound:.1f} {unit}", BOUND_COLOUR, True)])
    return drawing


def lying_bars(title, unit, rows, bound):
    """Bars from left to right, for labels that are long. `rows` are (label, value)."""
    left, top, step = 320, 66, 24
    bottom = top + step * len(rows)
    drawing = Drawing(f"{title}, {unit}", bottom + 40)
    # Room for the figure behind the longest bar.
    axis = Axis(max(bound, 1.2 * max(value for _, value in rows)), left, RIGHT - 14)
    for mark in axis.marks:
        drawing.line(axis.at(mark), top, axis.at(mark), bottom)
        drawing.text(axis.at(mark), bottom + 20, number(round(mark, 6)), anchor="middle")
    for index, (label, value) in enumerate(rows):
        y = top + step * index
        drawing.text(left - 8, y + 16, label, anchor="end")
        drawing.rectangle(left, y + 4, axis.at(value) - left, step - 8, COLOURS[0])
        drawing.text(axis.at(value) + 6, y + 16, f"{value:,.2f}")
    drawing.line(left, top, left, bottom, DARK)
    drawing.line(axis.at(bound), top, axis.at(bound), bottom, BOUND_COLOUR, 2, "6 4")
    drawing.legend([
        ("peak", COLOURS[0], False),
        (f"bound: {number(bound)}", BOUND_COLOUR, True),
    ])
    return drawing


def short(count):
    """1,234,567 as 1.23M, for labels."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def table(heads, rows):
    """The first column is words, the others are figures."""
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def peaks_of(figures, workload):
    return [peak for peak in figures["heap"] if peak["workload"] == workload]


def heap_bound(figures, workload):
    return next(
        check["bound"] for check in figures["checks"] if check["what"].startswith(f"heap, {workload}")
    )


def bound_of(figures, start):
    return next(check["bound"] for check in figures["checks"] if check["what"].startswith(start))


def per_output(store, part, kind="length"):
    return store[part][kind] / store["outputs"]


def drawings(figures):
    stores, by_tasks = figures["stores"], figures["stores"][:-1]
    labels = [
        (f"{short(store['tasks'])} tasks", f"{short(store['blobs'])} blobs") for store in stores
    ]
    tasks = [store["tasks"] for store in by_tasks]

    def lookups(kind, quantile):
        return [store[kind][quantile] for store in by_tasks]

    growth_max = bound_of(figures, "lookup")
    yield "lookup", curves(
        "One lookup",
        "µs",
        "tasks in the store",
        tasks,
        [
            ("hit, p50", lookups("hit", "p50_us"), False),
            ("miss, p50", lookups("miss", "p50_us"), False),
            ("floor of the hit, p50", lookups("floor", "p50_us"), False),
            ("hit, p99", lookups("hit", "p99_us"), True),
        ],
        growth_max * by_tasks[0]["hit"]["p50_us"],
    )
    yield "open", bars(
        "Opening a store, and its first lookup",
        "ms",
        labels,
        [
            ("open", [store["open_ms"]["median"] for store in stores]),
            ("first lookup", [store["first_lookup_ms"]["median"] for store in stores]),
        ],
        bound_of(figures, "open"),
        is_stacked=True,
    )
    yield "output-bytes", bars(
        "Index and manifests, for each output of each task",
        "bytes",
        labels,
        [
            ("manifests", [per_output(store, "manifests") for store in stores]),
            ("index", [per_output(store, "index") for store in stores]),
        ],
        bound_of(figures, "index and manifests"),
        is_stacked=True,
        digits=1,
    )
    yield "blob-bytes", bars(
        "Table of stamps, for each blob",
        "bytes",
        labels,
        [("stamps", [store["stamps"]["length"] / store["blobs"] for store in stores])],
        bound_of(figures, "stamps"),
        digits=1,
    )
    blobs = short(stores[-1]["blobs"])
    yield "large", bars(
        f"W1: store of {blobs} blobs over an empty one",
        "ratio of medians",
        [tuple(step["step"].split(", ", 1)) for step in figures["large"]],
        [("large over empty", [ratio(step) for step in figures["large"]])],
        bound_of(figures, "W1"),
    )
    for workload in ("W1", "W2"):
        rows = [(peak["step"], peak["peak_bytes"] / MIB) for peak in peaks_of(figures, workload)]
        yield f"heap-{workload.lower()}", lying_bars(
            f"Heap for {workload}", "MiB", rows, heap_bound(figures, workload)
        )


def ratio(step):
    return step["large_seconds"]["median"] / step["empty_seconds"]["median"]


def page(figures):
    setting, stores = figures["setting"], figures["stores"]
    day = datetime.fromtimestamp(setting["measured_at"], timezone.utc).date().isoformat()
    sizes = " + ".join(f"{size >> 20:,} MiB" for size in setting["large_files_bytes"])
    blobs = short(stores[-1]["blobs"])
    is_full = setting["size"] == "full"

    def name(store):
        return f"{store['tasks']:,} tasks, {store['blobs']:,} blobs"

    def bytes_row(store, part, count):
        length, allocated = store[part]["length"], store[part]["allocated"]
        figures = [f"{length:,}", f"{allocated:,}", f"{length / count:.1f}", f"{allocated / count:.1f}"]
        return [name(store), *figures]

    over = [check for check in figures["checks"] if check["verdict"] == "OVER"]
    held = [check for check in figures["checks"] if check["bound"] is not None]
    verdict = f"{len(over)} of {len(held)} figures are over their bound." if over \
        else f"All {len(held)} figures are within their bounds."

    def section(title, drawing, words, *tables):
        return [f"## {title}", words, f"![{title}](growth/{drawing}.svg)", *tables]

    parts = [
        "# Growth and memory",
        "This page and its drawings are made by `sh scripts/growth.sh`, as root; do not edit them. "
        "The script makes an image of ext4, runs `cargo bench --bench growth` on it, and gives the "
        "figures to `benches/growth/plot.py`.",
        f"Measured {day} with Larder {setting['version']}, {setting['cores']} cores, Linux "
        f"{setting['kernel']}, {setting['filesystem']} on a fresh, preallocated loop image, "
        "durability `relaxed` unless a row says otherwise, everything in the page cache. Absolute "
        "times do not carry over to another machine; ratios of one run do."
        + ("" if is_full else f" **Sizes of this run: {setting['size']}, not those that the bounds "
           "are meant for.**"),
        "Each task of the first three stores has 20 small outputs: 8 have contents of their own, 6 "
        "share them with nine other tasks, 6 with all. The last store holds tasks with 1,000 tiny "
        f"blobs each. W1 is a tree of {setting['tree_files']:,} small files in "
        f"{setting['tree_folders']:,} folders, W2 two files of {sizes}.",
        "## Bounds",
        f"{verdict} Floors have none: they are what plain loops of the same system calls, and of a "
        "bare redb, take in the same places.",
        table(
            ["", "Figure", "Bound", ""],
            [
                [
                    check["what"],
                    f"{check['figure']:,.2f} {check['unit']}",
                    "-" if check["bound"] is None else f"{number(check['bound'])} {check['unit']}",
                    f"**{check['verdict']}**" if check["verdict"] == "OVER" else check["verdict"],
                ]
                for check in figures["checks"]
            ],
        ),
        *section(
            "Lookup",
            "lookup",
            f"{setting['lookups']:,} lookups of each kind and store, in random order, after each "
            "task was asked for once. The stores take turns in rounds; the figures are medians of "
            "the rounds. The floor is a stat of the manifest and a get in a bare redb of as many rows. "
            "Microseconds.",
            table(
                ["Store", "Hit, p50", "Hit, p99", "Miss, p50", "Miss, p99", "Floor of the hit, p50"],
                [
                    [name(store)]
                    + [
                        f"{store[kind][quantile]:.2f}"
                        for kind in ("hit", "miss")
                        for quantile in ("p50_us", "p99_us")
                    ]
                    + [f"{store['floor']['p50_us']:.2f}"]
                    for store in stores
                ],
            ),
        ),
        *section(
            "Open",
            "open",
            f"Median of {setting['opens']}. The index is opened by the first lookup, so that one is "
            "shown, too. Milliseconds.",
            table(
                ["Store", "Open", "Most", "First lookup", "Most", "Both"],
                [
                    [name(store)]
                    + [
                        f"{figure:.2f}"
                        for figure in (
                            store["open_ms"]["median"],
                            store["open_ms"]["most"],
                            store["first_lookup_ms"]["median"],
                            store["first_lookup_ms"]["most"],
                            store["open_and_first_lookup_ms"]["median"],
                        )
                    ]
                    for store in stores
                ],
            ),
        ),
        *section(
            "Bytes for each output",
            "output-bytes",
            "The bound is held against the lengths of `index.redb` and of all manifests. On disk a "
            "manifest takes whole blocks, which for tasks with few outputs is more than its length. "
            "No task has key parts.",
            "Manifests:",
            table(
                ["Store", "Length", "Allocated", "Length an output", "Allocated an output"],
                [bytes_row(store, "manifests", store["outputs"]) for store in stores],
            ),
            "Index:",
            table(
                ["Store", "Length", "Allocated", "Length an output", "Allocated an output"],
                [bytes_row(store, "index", store["outputs"]) for store in stores],
            ),
        ),
        *section(
            "Bytes for each blob",
            "blob-bytes",
            "The table of stamps, `stamps`. What the blobs themselves take is not in it.",
            table(
                ["Store", "Length", "Allocated", "Length a blob", "Allocated a blob"],
                [bytes_row(store, "stamps", store["blobs"]) for store in stores],
            ),
        ),
        *section(
            f"W1 into a store of {blobs} blobs",
            "large",
            f"{setting['pairs']} times a tree with new contents goes into the large store and into "
            "one with a single entry, and comes back from both, twice in each mode, in changing "
            "order. Each step begins with a `syncfs`, and with the store and its index open. "
            "Seconds, median (least to most).",
            table(
                ["Step", "Empty store", "Large store", "Ratio of medians"],
                [
                    [step["step"]]
                    + [
                        f"{step[which]['median']:.3f} ({step[which]['least']:.3f} to "
                        f"{step[which]['most']:.3f})"
                        for which in ("empty_seconds", "large_seconds")
                    ]
                    + [f"{ratio(step):.2f}"]
                    for step in figures["large"]
                ],
            ),
        ),
        "## Heap",
        "The most that the heap rose in one step, from opening the store to the result, as counted "
        "by the program's allocator. Maps of files and the page cache are not in it; thread stacks "
        "neither. Where a filesystem cannot do what a mode asks for, the engine does the next best, "
        "and the column says what was done.",
        "![Heap for W1](growth/heap-w1.svg)",
        "![Heap for W2](growth/heap-w2.svg)",
        *(
            table(
                [workload, "Done", "Peak, MiB"],
                [
                    [peak["step"], peak["done"], f"{peak['peak_bytes'] / MIB:.2f}"]
                    for peak in peaks_of(figures, workload)
                ],
            )
            for workload in ("W1", "W2", "eviction")
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    docs = Path(sys.argv[2])
    folder = docs / "growth"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings(figures):
        drawing.write(folder / f"{name}.svg")
    (docs / "growth.md").write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
