"""Horizontal bars as SVG, without any library. A white ground, so that dark pages show them too."""

import math
from dataclasses import dataclass
from html import escape

FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
COLOURS = {"larder": "#d9480f", "variant": "#f4a582", "tool": "#9aa5b1", "runner": "#4c78a8"}
LEGEND = {
    "larder": "Larder",
    "variant": "Larder, other settings",
    "tool": "tools and libraries",
    "runner": "task runners",
}
INK, FAINT = "#1f2933", "#d5dbe1"
WIDTH, LABELS, VALUES = 860, 190, 95
ROW, BAR, TOP = 26, 16, 92
LOG_FROM = 25


@dataclass
class Bar:
    """One value, its range, and whose it is."""

    label: str
    kind: str
    value: float
    low: float
    high: float


def milliseconds(value: float) -> str:
    """Three digits at most, so that a table can be read at a glance."""
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:,.0f}"


def bars(title: str, subtitle: str, rows: list[Bar]) -> str:
    """Draws the bars from the smallest down; the thin line is the range of all runs."""
    rows = sorted(rows, key=lambda row: row.value)
    largest = max(row.high for row in rows)
    smallest = min(row.low for row in rows)
    log = largest / smallest > LOG_FROM
    span = WIDTH - LABELS - VALUES
    start, ticks, end = log_axis(smallest, largest) if log else linear_axis(largest)

    def across(value: float) -> float:
        if log:
            return LABELS + span * math.log(value / start) / math.log(end / start)
        return LABELS + span * value / end

    height = TOP + ROW * len(rows) + 34
    name = escape(f"{title}. {subtitle}", quote=True)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{name}" '
        f'font-family="{FONT}" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="17" font-weight="600">{escape(title)}</text>',
        f'<text x="16" y="48" fill="#52606d">{escape(subtitle)}'
        f"{'; logarithmic scale' if log else ''}</text>",
        *legend([row.kind for row in rows]),
    ]
    bottom = TOP + ROW * len(rows)
    for tick in ticks:
        x = across(tick)
        out.append(f'<path d="M{x:.1f} {TOP - 4}V{bottom}" stroke="{FAINT}"/>')
        out.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" font-size="12" '
            f'fill="#52606d">{tick:,g}</text>'
        )
    for number, row in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        bold = ' font-weight="700"' if row.kind == "larder" else ""
        x, low, high = across(row.value), across(row.low), across(row.high)
        out += [
            f'<text x="{LABELS - 10}" y="{y + 4.5}" text-anchor="end"{bold}>'
            f"{escape(row.label)}</text>",
            f'<rect x="{LABELS}" y="{y - BAR / 2}" width="{max(x - LABELS, 1):.1f}" '
            f'height="{BAR}" rx="2" fill="{COLOURS[row.kind]}"/>',
            f'<path d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 3}v6M{high:.1f} {y - 3}v6" '
            f'stroke="{INK}" stroke-opacity="0.55" fill="none"/>',
            f'<text x="{max(x, high) + 7:.1f}" y="{y + 4.5}"{bold}>'
            f"{milliseconds(row.value)}</text>",
        ]
    return "\n".join([*out, "</svg>", ""])


def legend(kinds: list[str]) -> list[str]:
    out, x = [], 16
    for kind, words in LEGEND.items():
        if kind in kinds:
            box = f'<rect x="{x}" y="62" width="12" height="12" rx="2"'
            out.append(f'{box} fill="{COLOURS[kind]}"/>')
            out.append(f'<text x="{x + 18}" y="72.5" font-size="12">{words}</text>')
            x += 46 + round(6.4 * len(words))
    return out


def linear_axis(largest: float) -> tuple[float, list[float], float]:
    step = 10 ** math.floor(math.log10(largest))
    step = next(part * step for part in (0.2, 0.5, 1, 2) if largest / (part * step) <= 6)
    return 0, [step * number for number in range(math.floor(largest / step) + 1)], largest


def log_axis(smallest: float, largest: float) -> tuple[float, list[float], float]:
    """From a round number below the smallest, so that it has a bar too."""
    grid = [part * 10**power for power in range(-3, 8) for part in (1, 2, 5)]
    start = max(tick for tick in grid if tick < smallest * 0.8)
    ticks = [tick for tick in grid if start <= tick <= largest]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if math.log10(tick) % 1 < 0.01 or tick == start]
    return start, ticks, largest
