"""The command `tokenfold inspect`: print the description of a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import Latency, Quality
from tokenfold.bundle.summary import Summary, plan_text, summarise
from tokenfold.bundle.tasks import Task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 2 for a folder that is not a valid bundle.
    """
    parser = argparse.ArgumentParser(
        prog="tokenfold inspect",
        description="Check a bundle's files and print its description.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    try:
        summary = summarise(Bundle.open(options.bundle.expanduser()))
    except (BundleError, OSError) as error:
        print(f"tokenfold inspect: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(summary.model_dump_json(indent=2))
    else:
        _print(summary, Console(highlight=False, markup=False))
    return 0


def _print(summary: Summary, console: Console) -> None:
    for table in (_properties(summary), _levels(summary), _quality(summary), _files(summary)):
        if table is not None:
            console.print(table)


def _properties(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = {
        "name": summary.name,
        "folder": summary.folder,
        "kind": summary.kind,
        "method": summary.method,
        "precision": summary.precision,
        "source": summary.source,
        "tasks": ", ".join(map(_task_text, summary.tasks, summary.tasks.values())),
        "images": _preprocess_text(summary.preprocess),
        "texts": f"up to {summary.text.most_tokens} tokens" if summary.text else "",
        "tokens": str(summary.tokens_in),
        "built with": ", ".join(f"{name} {version}" for name, version in summary.versions.items()),
        "fingerprint": summary.fingerprint,
        "format": str(summary.format),
    }
    if summary.measurement is not None:
        measurement = summary.measurement
        rows["measured"] = f"{measurement.measured}, {measurement.machine}, {measurement.runtime}"
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _levels(summary: Summary) -> Table:
    """Return the table of levels; it has a latency column if latency was measured."""
    table = Table(title="levels", title_justify="left")
    batches = [latency.batch for level in summary.levels for latency in level.latency]
    table.add_column("level", no_wrap=True)
    for header in ("FLOPs", "GFLOPs", "tokens"):
        table.add_column(header, justify="right", no_wrap=True)
    if batches:
        table.add_column(f"latency, ms (batch {min(batches)})", justify="right")
    table.add_column("plan")
    for level in summary.levels:
        default = " (default)" if level.name == summary.default_level else ""
        table.add_row(
            level.name + default,
            f"{100 * level.flops_ratio:.1f} %",
            f"{level.flops / 1e9:.2f}",
            str(level.tokens_out),
            *([_latency_text(level.latency)] if batches else []),
            plan_text(level.plan),
        )
    return table


def _quality(summary: Summary) -> Table | None:
    """Return the table of measured quality with 95 % intervals; None without measurements."""
    metrics = {
        task: quality.metric for level in summary.levels for task, quality in level.quality.items()
    }
    if not metrics:
        return None
    table = Table(title="quality, % (95 % interval)", title_justify="left")
    table.add_column("level", no_wrap=True)
    for task, metric in metrics.items():
        table.add_column(f"{task}: {metric}")
    for level in summary.levels:
        cells = [_quality_text(level.quality.get(task)) for task in metrics]
        table.add_row(level.name, *cells)
    return table


def _files(summary: Summary) -> Table:
    table = Table(title="files", title_justify="left")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, size in summary.files.items():
        table.add_row(name, f"{size:,}")
    table.add_row("total", f"{sum(summary.files.values()):,}")
    return table


def _task_text(task: Task, labels: int) -> str:
    return f"{task} ({labels} labels)" if labels else task


def _preprocess_text(preprocess: Preprocess) -> str:
    """Return the input size and the way that images get there."""
    height, width = preprocess.size
    resize = {
        "stretch": "stretched",
        "shorter": f"shorter side scaled to {preprocess.shorter_side}, centre cropped",
        "bounded": f"shorter side scaled to {preprocess.shorter_side}, longer side at most "
        f"{preprocess.longest}, multiples of {preprocess.multiple}",
    }[preprocess.resize]
    return (
        f"{height} x {width} pixels, {resize}, {preprocess.interpolation}, "
        f"mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def _quality_text(quality: Quality | None) -> str:
    if quality is None:
        return ""
    interval = f"{100 * quality.low:.1f}-{100 * quality.high:.1f}"
    return f"{100 * quality.value:.1f} ({interval})"


def _latency_text(latencies: Sequence[Latency]) -> str:
    """Return the latency of the smallest measured batch."""
    if not latencies:
        return ""
    latency = min(latencies, key=lambda measured: measured.batch)
    return f"{latency.p50_ms:.1f}"


if __name__ == "__main__":
    sys.exit(main())
