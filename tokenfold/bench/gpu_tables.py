"""The bench's figures of a GPU as Markdown, for docs/gpu.md.

    python -m tokenfold.bench.gpu_tables vit-b16.json vit-l16.json --into docs/gpu.md

The files are what `tokenfold bench --backend cuda --out`, or `--backend tensorrt`, wrote. Without
--into the tables are printed; with it they take the place of what stands between two marks in the
file, of which each backend has its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tokenfold.bench.engine_report import TensorRt, ratio_for
from tokenfold.bench.gpu_report import GpuReport, GpuRow, TorchSpeed
from tokenfold.bench.report import RelativeSpeed


class Marks(NamedTuple):
    """Lines of a document, between which tables stand."""

    begin: str
    end: str


CUDA = Marks("<!-- bench: written by tokenfold.bench.gpu_tables -->", "<!-- end of bench -->")
TENSORRT = Marks(
    "<!-- bench of TensorRT: written by tokenfold.bench.gpu_tables -->",
    "<!-- end of bench of TensorRT -->",
)

EFFICIENCY, RATIO = 0.9, 1.5
"""Goals: speedup over what FLOPs promise, and speed over the best of PyTorch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.gpu_tables")
    parser.add_argument("found", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--into", type=Path, metavar="FILE", help="a file with the marks")
    options = parser.parse_args(arguments)
    try:
        reports = [GpuReport.model_validate_json(path.read_text()) for path in options.found]
        if options.into is None:
            print(markdown(reports))
        else:
            options.into.write_text(insert_reports(reports, options.into.read_text()))
    except (OSError, ValidationError, ValueError) as error:
        print(f"gpu_tables: {error}", file=sys.stderr)
        return 2
    return 0


def insert_reports(reports: Sequence[GpuReport], into: str) -> str:
    """A document with the chapters of reports between the marks of their backends.

    Raises:
        ValueError: see `replace_between`.
    """
    for marks, own in (
        (CUDA, [one for one in reports if one.tensorrt is None]),
        (TENSORRT, [one for one in reports if one.tensorrt is not None]),
    ):
        if own:
            into = replace_between(markdown(own), into, marks)
    return into


def replace_between(text: str, into: str, marks: Marks = CUDA) -> str:
    """A document with `text` between the marks, instead of what stands there.

    Raises:
        ValueError: it does not have each mark once, in this order.
    """
    before, begin, rest = into.partition(marks.begin)
    _, end, after = rest.partition(marks.end)
    if not begin or not end:
        raise ValueError(f"expected {marks.begin!r}, and {marks.end!r} behind it")
    return f"{before}{marks.begin}\n\n{text}\n\n{marks.end}{after}"


def markdown(reports: Sequence[GpuReport]) -> str:
    """A chapter for each report."""
    return "\n\n".join("\n\n".join(_chapter(report)) for report in reports)


def _chapter(report: GpuReport) -> list[str]:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    about = (
        f"{machine.date}, {machine.gpu}, driver {machine.driver}, CUDA {machine.cuda}, {versions}; "
        f"{machine.processor}. {report.method}, {report.tokens} tokens, "
        f"{'compiled' if report.native else 'portable'} ops. Medians of {report.rounds} rounds of "
        f"{report.seconds:g} s."
    )
    if report.tensorrt is not None:
        about += f" {report.tensorrt.about}."
    found = [f"### {report.source}, {report.precision}", about, _speeds(report)]
    if report.memory:
        found.append(_memory(report))
    if report.tensorrt is not None:
        found.append(_engines(report.tensorrt))
    found.append("\n".join(_goals(report)))
    if not report.complete:
        found.append("The measuring was interrupted.")
    if report.lost:
        found.append("\n".join(f"- Not measured: {one}" for one in report.lost))
    return found


def _speeds(report: GpuReport) -> str:
    ways = list(dict.fromkeys(one.way for one in report.torch))
    others = {} if report.tensorrt is None else report.tensorrt.beside()
    columns = [
        *("batch", "level", "FLOPs left", "images/s", "speedup", "efficiency"),
        *("images/s from host", "efficiency", "p50 ms"),
        *(f"PyTorch {way}" for way in ways),
        *(["against the better"] if ways else []),
        *(column for name in others for column in (name, "against it")),
    ]
    by_row = {(one.way, one.level, one.batch): one for one in report.torch}
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in report.rows:
        best = report.best(row.level, row.batch)
        on_device = row.device
        cells = [
            *(str(row.batch), row.level, f"{row.flops_ratio:.3f}"),
            f"{on_device.images_per_second:.0f}",
            f"{on_device.speedup:.2f}",
            f"{on_device.efficiency:.3f}",
            f"{row.served.images_per_second:.0f}",
            f"{row.served.efficiency:.3f}",
            f"{row.p50_ms:.2f}",
            *(_torch(by_row.get((way, row.level, row.batch))) for way in ways),
        ]
        if ways:
            cells.append("" if best is None else f"{best.ratio:.2f} x")
        for found in others.values():
            cells += _beside(ratio_for(found, row.level, row.batch))
        lines.append(_line(cells))
    return "\n".join(lines)


def _torch(found: TorchSpeed | None) -> str:
    if found is None:
        return ""
    # Where a CUDA graph did not help, say so.
    return f"{found.images_per_second:.0f}{'' if found.graph else ' (no graph)'}"


def _beside(found: RelativeSpeed | None) -> tuple[str, str]:
    return ("", "") if found is None else (f"{found.images_per_second:.0f}", f"{found.ratio:.2f} x")


def _engines(tensorrt: TensorRt) -> str:
    columns = ("engines", "files", "MB", "loaded MB")
    rows = [(name, *one.cells) for name, one in tensorrt.sets.items()]
    return "\n".join(map(_line, [columns, ["---"] * len(columns), *rows]))


def _memory(report: GpuReport) -> str:
    columns = ("batch", "level", "peak MB", "beyond loading MB", "of unreduced")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for one in report.memory:
        ratio = "" if one.working_ratio is None else f"{one.working_ratio:.2f}"
        cells = (str(one.batch), one.level, f"{one.peak_mb:.0f}", f"{one.working_mb:.0f}", ratio)
        lines.append(_line(cells))
    return "\n".join(lines)


def _goals(report: GpuReport) -> list[str]:
    """How far the goals were reached, and where they were not."""
    reduced = [row for row in report.rows if row.flops_ratio < 1]
    goals = []
    if reduced:
        short = [_at(row) for row in reduced if row.device.efficiency < EFFICIENCY]
        least = min(row.device.efficiency for row in reduced)
        goals.append(f"- Efficiency of {EFFICIENCY:g}: {_reached(short, f'{least:.3f}')}")
    ratios = [
        (row, best)
        for row in report.rows
        if (best := report.best(row.level, row.batch)) is not None
    ]
    if ratios:
        short = [_at(row) for row, best in ratios if best.ratio < RATIO]
        worst = min(best.ratio for _, best in ratios)
        goals.append(f"- {RATIO:g} times the better PyTorch: {_reached(short, f'{worst:.2f}')}")
    alone = {row.level: row for row in report.rows if row.batch == 1}
    unreduced = next((row for row in alone.values() if row.flops_ratio == 1), None)
    if unreduced is not None and len(alone) > 1:
        slower = [
            f"{row.level} ({row.p50_ms:.2f} ms, unreduced {unreduced.p50_ms:.2f})"
            for row in alone.values()
            if row.p50_ms > unreduced.p50_ms
        ]
        told = f"not at {', '.join(slower)}" if slower else "reached at every level"
        goals.append(f"- One image takes no longer reduced than unreduced: {told}.")
    return goals


def _at(row: GpuRow) -> str:
    return f"{row.level} of batch {row.batch}"


def _reached(short: Sequence[str], least: str) -> str:
    if not short:
        return f"reached everywhere; least {least}."
    return f"not at {', '.join(short)}; least {least}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
