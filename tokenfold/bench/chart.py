"""A chart of quality over speed, from the profiles of bundles, as SVG.

    python -m tokenfold.bench.chart BUNDLE[:TASK] ... --out docs/images/levels.svg

Each bundle is a line with one point per level: the measured speedup over the unreduced network, and
the measured quality with its 95 % interval. Colours suit light and dark pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from tokenfold.bundle.bundle import Bundle, BundleError

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 52, 140, 40, 52
COLOURS = ("#19937f", "#8d6bd1", "#c2781a", "#c2483f", "#3f7fc2")
TEXT, GRID = "#7d8085", "#7d808540"
STEPS = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
MAX_TICKS = 7
TIMES = "\N{MULTIPLICATION SIGN}"


class Point(NamedTuple):
    """One level: speedup over the unreduced network, and quality with its interval, in percent."""

    level: str
    speedup: float
    quality: float
    low: float
    high: float


class Line(NamedTuple):
    """The measured levels of a bundle for one task."""

    title: str
    points: list[Point]


class Scale(NamedTuple):
    """A linear axis from `low` to `high`, drawn from pixel `begin` to pixel `end`."""

    low: float
    high: float
    begin: float
    end: float

    def pixel(self, value: float) -> float:
        """Return the position of a value, in pixels."""
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return at most `MAX_TICKS` round values."""
        span = self.high - self.low
        step = next((step for step in STEPS if span / step < MAX_TICKS), span)
        first = -(-self.low // step)
        return [
            number * step
            for number in range(int(first), int(self.high / step) + 1)
            if number * step >= self.low
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code, 2 for a bundle that cannot be charted."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.chart", description=__doc__)
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE[:TASK]")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        lines = [read(*name.partition(":")[::2]) for name in options.bundles]
        options.out.write_text(svg(lines))
    except (BundleError, OSError, ValueError) as error:
        print(f"chart: {error}", file=sys.stderr)
        return 2
    return 0


def read(folder: str, task: str = "") -> Line:
    """Read the measured levels of a bundle.

    Args:
        folder: folder of the bundle.
        task: task whose quality is shown; by default the first measured one.

    Raises:
        BundleError: the folder is not a bundle.
        ValueError: speed or quality was not measured.
    """
    bundle = Bundle.open(Path(folder))
    profile = bundle.profile
    if profile is None:
        raise ValueError(f"{folder}: profile.json is missing; run `tokenfold bench --save`")
    points: list[Point] = []
    base = 0.0
    metric = ""
    for name in bundle.manifest.levels:
        level = profile.levels.get(name)
        speed = level.images_per_second if level else None
        if level is None or not speed or not level.quality:
            continue
        shown_task = task or next(iter(level.quality))
        quality = next((value for key, value in level.quality.items() if key == shown_task), None)
        if quality is None:
            raise ValueError(f"{folder}: the quality of {shown_task!r} was not measured")
        metric = quality.metric
        base = base or speed
        percents = [100 * value for value in (quality.value, quality.low, quality.high)]
        points.append(Point(name, speed / base, *percents))
    if not points:
        raise ValueError(f"{folder}: no level has both a measured speed and a measured quality")
    return Line(f"{bundle.manifest.name}: {metric}", points)


def svg(lines: Sequence[Line]) -> str:
    """Draw lines as an SVG document."""
    points = [point for line in lines for point in line.points]
    x = Scale(0.95, max(point.speedup for point in points) * 1.03, LEFT, WIDTH - RIGHT)
    lowest, highest = min(point.low for point in points), max(point.high for point in points)
    margin = (highest - lowest) * 0.08 or 1.0
    y = Scale(lowest - margin, min(highest + margin, 100.0), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Quality over speedup" font-family="system-ui, sans-serif" font-size="13" '
        f'fill="{TEXT}">',
        *_axes(x, y),
    ]
    label_positions = _spread([y.pixel(line.points[-1].quality) for line in lines])
    highest_line = max(lines, key=lambda line: line.points[0].quality)
    for number, (line, label_position) in enumerate(zip(lines, label_positions, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        # Only the highest line has its level names above it, so that names do not overlap where
        # lines are close.
        parts += _line_elements(line, x, y, colour, above=line is highest_line)
        parts += _title_elements(line.title, x.end + 14, label_position, colour)
    return "\n".join([*parts, "</svg>", ""])


def _axes(x: Scale, y: Scale) -> list[str]:
    parts = []
    for value in y.ticks():
        down = y.pixel(value)
        parts.append(f'<path d="M{x.begin} {down:.1f}H{x.end}" stroke="{GRID}"/>')
        parts.append(
            f'<text x="{x.begin - 8}" y="{down + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in x.ticks():
        across = x.pixel(value)
        parts.append(f'<path d="M{across:.1f} {y.begin}v5" stroke="{TEXT}"/>')
        parts.append(
            f'<text x="{across:.1f}" y="{y.begin + 20}" text-anchor="middle">'
            f"{value:g}{TIMES}</text>"
        )
    parts.append(f'<path d="M{x.begin} {y.begin}H{x.end}" stroke="{TEXT}"/>')
    middle = (x.begin + x.end) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
        "images per second, relative to the unreduced network</text>"
    )
    parts.append(f'<text x="{x.begin - 44}" y="{TOP - 16}">quality, %</text>')
    return parts


def _line_elements(line: Line, x: Scale, y: Scale, colour: str, *, above: bool) -> list[str]:
    places = [(x.pixel(point.speedup), y.pixel(point.quality)) for point in line.points]
    path = "L".join(f"{across:.1f} {down:.1f}" for across, down in places)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for point, (across, down) in zip(line.points, places, strict=True):
        interval = f"M{across:.1f} {y.pixel(point.low):.1f}V{y.pixel(point.high):.1f}"
        parts.append(f'<path d="{interval}" stroke="{colour}" stroke-opacity=".5"/>')
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{colour}"><title>'
            f"{escape(point.level)}: {point.speedup:.2f}{TIMES}, {point.quality:.1f} %"
            "</title></circle>"
        )
        beside = y.pixel(point.high) - 5 if above else y.pixel(point.low) + 12
        parts.append(
            f'<text x="{across:.1f}" y="{beside:.1f}" text-anchor="middle" font-size="11">'
            f"{escape(point.level)}</text>"
        )
    return parts


def _title_elements(title: str, across: float, down: float, colour: str) -> list[str]:
    name, _, metric = title.partition(": ")
    return [
        f'<text x="{across:.1f}" y="{down:.1f}" fill="{colour}" font-weight="600">'
        f"{escape(name)}</text>",
        f'<text x="{across:.1f}" y="{down + 15:.1f}" fill="{colour}" font-size="12">'
        f"{escape(metric)}</text>",
    ]


def _spread(positions: Sequence[float], distance: float = 42.0) -> list[float]:
    """Return the positions, moved down so that they are at least `distance` pixels apart."""
    spread = list(positions)
    previous = float("-inf")
    for index in sorted(range(len(spread)), key=lambda index: spread[index]):
        spread[index] = previous = max(spread[index], previous + distance)
    return spread


if __name__ == "__main__":
    sys.exit(main())
