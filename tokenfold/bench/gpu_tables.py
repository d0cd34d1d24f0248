"""Write the bench's GPU figures as Markdown, for docs/gpu.md.

    python -m tokenfold.bench.gpu_tables vit-b16.json vit-l16.json --into docs/gpu.md

The inputs are files written by `tokenfold bench --out` with `--backend cuda` or `tensorrt`. Without
--into, the tables are printed. With --into, they replace the text between two marks in the file;
each backend has its own pair of marks.
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
    """Two lines of a document that enclose generated tables."""

    begin: str
    end: str


CUDA = Marks("<!-- bench: written by tokenfold.bench.gpu_tables -->", "<!-- end of bench -->")
TENSORRT = Marks(
    "<!-- bench of TensorRT: written by tokenfold.bench.gpu_tables -->",
    "<!-- end of bench of TensorRT -->",
)

EFFICIENCY, RATIO = 0.9, 1.5
"""Goals: efficiency (speedup over the speedup that FLOPs promise), and speed relative to the best
way to run PyTorch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 2 for errors that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.gpu_tables")
    parser.add_argument("paths", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--into", type=Path, metavar="FILE", help="a file with the marks")
    options = parser.parse_args(arguments)
    try:
        reports = [GpuReport.model_validate_json(path.read_text()) for path in options.paths]
        if options.into is None:
            print(markdown(reports))
        else:
            options.into.write_text(insert_reports(reports, options.into.read_text()))
    except (OSError, ValidationError, ValueError) as error:
        print(f"gpu_tables: {error}", file=sys.stderr)
        return 2
    return 0


def insert_reports(reports: Sequence[GpuReport], document: str) -> str:
    """Return a document with each backend's reports between its marks.

    Raises:
        ValueError: a mark is missing; see `replace_between`.
    """
    for marks, backend_reports in (
        (CUDA, [report for report in reports if report.tensorrt is None]),
        (TENSORRT, [report for report in reports if report.tensorrt is not None]),
    ):
        if backend_reports:
            document = replace_between(markdown(backend_reports), document, marks)
    return document


def replace_between(text: str, document: str, marks: Marks = CUDA) -> str:
    """Return a document whose text between the marks is replaced by `text`.

    Raises:
        ValueError: the document does not contain both marks in this order.
    """
    before, begin, rest = document.partition(marks.begin)
    _, end, after = rest.partition(marks.end)
    if not begin or not end:
        raise ValueError(f"the document must contain {marks.begin!r}, then {marks.end!r}")
    return f"{before}{marks.begin}\n\n{text}\n\n{marks.end}{after}"


def markdown(reports: Sequence[GpuReport]) -> str:
    """Return a chapter for each report."""
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
    paragraphs = [f"### {report.source}, {report.precision}", about, _speeds(report)]
    if report.memory:
        paragraphs.append(_memory(report))
    if report.tensorrt is not None:
        paragraphs.append(_engines(report.tensorrt))
    paragraphs.append("\n".join(_goals(report)))
    if not report.complete:
        paragraphs.append("The measurement was interrupted.")
    if report.lost:
        paragraphs.append("\n".join(f"- Not measured: {reason}" for reason in report.lost))
    return paragraphs


def _speeds(report: GpuReport) -> str:
    ways = list(dict.fromkeys(run.way for run in report.torch))
    others = {} if report.tensorrt is None else report.tensorrt.comparisons()
    columns = [
        *("batch", "level", "FLOPs left", "images/s", "speedup", "efficiency"),
        *("images/s from host", "efficiency", "p50 ms"),
        *(f"PyTorch {way}" for way in ways),
        *(["against the better"] if ways else []),
        *(column for name in others for column in (name, "against it")),
    ]
    by_row = {(run.way, run.level, run.batch): run for run in report.torch}
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
        for results in others.values():
            cells += _other_cells(ratio_for(results, row.level, row.batch))
        lines.append(_line(cells))
    return "\n".join(lines)


def _torch(run: TorchSpeed | None) -> str:
    if run is None:
        return ""
    # Say when a CUDA graph did not help.
    return f"{run.images_per_second:.0f}{'' if run.graph else ' (no graph)'}"


def _other_cells(other: RelativeSpeed | None) -> tuple[str, str]:
    return ("", "") if other is None else (f"{other.images_per_second:.0f}", f"{other.ratio:.2f} x")


def _engines(tensorrt: TensorRt) -> str:
    columns = ("engines", "files", "MB", "loaded MB")
    rows = [(name, *engine_set.cells) for name, engine_set in tensorrt.sets.items()]
    return "\n".join(map(_line, [columns, ["---"] * len(columns), *rows]))


def _memory(report: GpuReport) -> str:
    columns = ("batch", "level", "peak MB", "beyond loading MB", "of unreduced")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in report.memory:
        ratio = "" if row.working_ratio is None else f"{row.working_ratio:.2f}"
        cells = (str(row.batch), row.level, f"{row.peak_mb:.0f}", f"{row.working_mb:.0f}", ratio)
        lines.append(_line(cells))
    return "\n".join(lines)


def _goals(report: GpuReport) -> list[str]:
    """Return a line per goal: reached, or the levels that missed it."""
    reduced = [row for row in report.rows if row.flops_ratio < 1]
    goals = []
    if reduced:
        missed = [_row_name(row) for row in reduced if row.device.efficiency < EFFICIENCY]
        least = min(row.device.efficiency for row in reduced)
        goals.append(f"- Efficiency of {EFFICIENCY:g}: {_goal_result(missed, f'{least:.3f}')}")
    ratios = [
        (row, best)
        for row in report.rows
        if (best := report.best(row.level, row.batch)) is not None
    ]
    if ratios:
        missed = [_row_name(row) for row, best in ratios if best.ratio < RATIO]
        worst = min(best.ratio for _, best in ratios)
        goals.append(
            f"- {RATIO:g} times the better PyTorch: {_goal_result(missed, f'{worst:.2f}')}"
        )
    single_image_rows = {row.level: row for row in report.rows if row.batch == 1}
    unreduced = next((row for row in single_image_rows.values() if row.flops_ratio == 1), None)
    if unreduced is not None and len(single_image_rows) > 1:
        slower = [
            f"{row.level} ({row.p50_ms:.2f} ms, unreduced {unreduced.p50_ms:.2f})"
            for row in single_image_rows.values()
            if row.p50_ms > unreduced.p50_ms
        ]
        result = f"not at {', '.join(slower)}" if slower else "reached at every level"
        goals.append(f"- One image takes no longer reduced than unreduced: {result}.")
    return goals


def _row_name(row: GpuRow) -> str:
    return f"{row.level} of batch {row.batch}"


def _goal_result(missed: Sequence[str], least: str) -> str:
    if not missed:
        return f"reached everywhere; least {least}."
    return f"not at {', '.join(missed)}; least {least}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
