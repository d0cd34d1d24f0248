"""`tokenfold bench`: measure the speed and memory of each level of a bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from tokenfold.bench import on_cpu
from tokenfold.bench.gpu_report import GpuReport
from tokenfold.bench.memory import MemoryProbeError
from tokenfold.bench.options import Options, parse
from tokenfold.bench.report import Report
from tokenfold.bench.stages import BenchError, Stage, progress
from tokenfold.bench.targets import TargetError
from tokenfold.bundle.bundle import BundleError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

FILE_COLUMNS = 160
"""Width of a table that is written to a file or pipe."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 2 when the bundle cannot be measured."""
    options = parse(argv)
    report: Report | GpuReport
    try:
        with progress() as stage:
            bench = on_cpu.bench if options.backend == "cpu" else _on_gpu
            report = bench(options, stage)
    except (BenchError, BundleError, TargetError, MemoryProbeError, OSError) as error:
        # Print one line, although a schema error spans several.
        print(f"tokenfold bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.json:
        print(report.json_text())
    else:
        _print(report)
    return 0


def _on_gpu(options: Options, stage: Stage) -> GpuReport:
    # Imported here only: these packages are optional and slow to load.
    from tokenfold.bench.on_gpu import bench

    try:
        return bench(options, stage)
    except RuntimeError as error:
        # Raised by CUDA, or by ONNX Runtime or TensorRT on top of it.
        raise BenchError(str(error)) from error


def _print(report: Report | GpuReport) -> None:
    console = Console()
    if not console.is_terminal:
        # Writing to a file or pipe, rich would fold the table to 80 columns.
        console = Console(width=FILE_COLUMNS)
    console.print(report.tables())


if __name__ == "__main__":
    sys.exit(main())
