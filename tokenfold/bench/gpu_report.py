"""The bench's report on a GPU, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenfold.bench.engine_report import TensorRt, ratio_for
from tokenfold.bench.measure import Measurement
from tokenfold.bench.options import TorchWay
from tokenfold.bench.report import RelativeSpeed, empty_table
from tokenfold.bench.targets import PlanTarget

ContenderName = Literal["other", "cuda", "static"]
"""Contenders that run the same plans: another bundle, ONNX Runtime on the same GPU when TensorRT is
measured, or engines for a single plan."""


class Speed(BaseModel):
    """Speed of a level at one batch size.

    Attributes:
        speedup: speed relative to the unreduced plan at the same batch size; `low` and `high` are
            the quartiles of the rounds.
        efficiency: speedup divided by the speedup that FLOPs promise, `speedup * flops_ratio`.
    """

    images_per_second: float
    speedup: float
    low: float
    high: float
    efficiency: float


class GpuRow(BaseModel):
    """Measurements of a level at one batch size.

    Attributes:
        flops_ratio: FLOPs relative to the unreduced network's.
        resident: sequential runs on images that are already on the GPU; None for networks with
            texts.
        served: runs on images in host memory by two callers, as in the service.
        p50_ms, p99_ms: time of one run, from images to logits in host memory, on an otherwise
            idle GPU.
    """

    level: str
    batch: int
    flops_ratio: float
    resident: Speed | None = None
    served: Speed
    p50_ms: float
    p99_ms: float

    @property
    def device(self) -> Speed:
        """Speed that is compared with other ways to run on the same GPU."""
        return self.served if self.resident is None else self.resident


class TorchSpeed(BaseModel):
    """Speed of PyTorch on the same GPU, with images already there, in the bundle's precision.

    Attributes:
        graph: whether running as a CUDA graph was faster than running directly.
        ratio: the bundle's speed relative to PyTorch's; `low` and `high` are the quartiles of the
            rounds.
    """

    way: TorchWay
    level: str
    batch: int
    images_per_second: float
    graph: bool
    ratio: float
    low: float
    high: float


class DeviceMemory(BaseModel):
    """GPU memory of a process that runs one level; MB are 10^6 bytes.

    Attributes:
        peak_mb: all memory: CUDA itself, weights, activations.
        working_mb: increase over the memory in use right after loading.
        working_ratio: `working_mb` relative to the unreduced plan's; None if the latter is 0.
    """

    level: str
    batch: int
    peak_mb: float
    working_mb: float
    working_ratio: float | None = None


class GpuMachine(BaseModel):
    """Machine and software of the measurement, and its date.

    Attributes:
        gpu: name of the GPU.
        driver: version of the driver.
        cuda: newest CUDA version that the driver supports.
        versions: package -> version.
        date: ISO 8601.
    """

    gpu: str
    driver: str
    cuda: str
    processor: str
    versions: dict[str, str]
    date: str


class GpuReport(BaseModel):
    """Measurements on a GPU; partial until `complete` is true.

    Attributes:
        against: results of another bundle, by batch size, at the plans that it can run.
        other: folder of that bundle.
        tensorrt: TensorRT's section; None when ONNX Runtime ran.
        lost: runs that could not be measured, each with the reason.
        complete: whether the measurement has ended.
    """

    bundle: str
    source: str
    method: str
    precision: str
    tokens: int
    native: bool
    machine: GpuMachine
    rounds: int
    seconds: float
    rows: list[GpuRow] = []
    torch: list[TorchSpeed] = []
    memory: list[DeviceMemory] = []
    other: str | None = None
    against: dict[int, list[RelativeSpeed]] = {}
    tensorrt: TensorRt | None = None
    lost: list[str] = []
    complete: bool = False

    def json_text(self) -> str:
        """Return the report as indented JSON."""
        return self.model_dump_json(indent=2, exclude_none=True)

    def best(self, level: str, batch: int) -> TorchSpeed | None:
        """Return the fastest way to run PyTorch at a level and batch size."""
        runs = [run for run in self.torch if (run.level, run.batch) == (level, batch)]
        return max(runs, key=lambda run: run.images_per_second, default=None)

    def results_of(self, name: ContenderName) -> dict[int, list[RelativeSpeed]]:
        """Return the results of a contender by batch size; the caller may add to them."""
        if name == "other":
            return self.against
        assert self.tensorrt is not None
        return self.tensorrt.cuda if name == "cuda" else self.tensorrt.static

    def tables(self) -> Group:
        """Return the report as tables."""
        machine = self.machine
        software = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        batches = dict.fromkeys(row.batch for row in self.rows)
        renderables: list[RenderableType] = [self.speed_table(batch) for batch in batches]
        if self.memory:
            renderables.append(_memory_table(self.memory))
        if self.tensorrt is not None:
            renderables += [self.tensorrt.table(), self.tensorrt.text()]
        renderables += [
            Text(f"Compared with {self.other}, batch {batch}: {_quotients(compared)}")
            for batch, compared in self.against.items()
        ]
        renderables.append(
            Text(
                f"{machine.gpu}, driver {machine.driver}, CUDA {machine.cuda}; "
                f"{machine.processor}; {software}; "
                f"medians of {self.rounds} rounds of {self.seconds:g} s; {machine.date}"
            )
        )
        renderables += [Text(f"not measured: {reason}") for reason in self.lost]
        return Group(*renderables)

    def speed_table(self, batch: int) -> Table:
        """Return a table of every level at one batch size."""
        ways = dict.fromkeys(run.way for run in self.torch if run.batch == batch)
        others = {} if self.tensorrt is None else self.tensorrt.comparisons()
        table = empty_table(
            f"{self.bundle}, {self.precision}, batch {batch}",
            (
                *("FLOPs", "images/s", "speedup", "efficiency"),
                *("from host", "efficiency", "p50 ms", "p99 ms"),
                *(f"torch {way}" for way in ways),
                *(("best torch x",) if ways else ()),
                *(column for name in others for column in (name, "x")),
            ),
        )
        for row in self.rows:
            if row.batch != batch:
                continue
            torch = {
                run.way: run
                for run in self.torch
                if (run.level, run.batch) == (row.level, row.batch)
            }
            best = self.best(row.level, row.batch)
            table.add_row(
                row.level,
                f"{row.flops_ratio:.3f}",
                *_speed_cells(row.resident),
                f"{row.served.images_per_second:.0f}",
                f"{row.served.efficiency:.3f}",
                f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}",
                *(f"{torch[way].images_per_second:.0f}" if way in torch else "" for way in ways),
                *(("" if best is None else f"{best.ratio:.2f}",) if ways else ()),
                *(
                    cell
                    for rows in others.values()
                    for cell in _other_cells(ratio_for(rows, row.level, row.batch))
                ),
            )
        return table


def speeds(
    targets: Mapping[str, PlanTarget], measurements: Mapping[str, Measurement]
) -> dict[str, Speed]:
    """Return the speed of every level; the first target is the unreduced one."""
    unreduced = measurements[next(iter(targets))]
    speeds_by_level = {}
    for level, target in targets.items():
        ratio = measurements[level].ratio_to(unreduced)
        speeds_by_level[level] = Speed(
            images_per_second=measurements[level].images_per_second,
            speedup=ratio.median,
            low=ratio.low,
            high=ratio.high,
            efficiency=ratio.median * target.flops_ratio,
        )
    return speeds_by_level


def _speed_cells(speed: Speed | None) -> tuple[str, str, str]:
    if speed is None:
        return "", "", ""
    return f"{speed.images_per_second:.0f}", f"{speed.speedup:.2f}", f"{speed.efficiency:.3f}"


def _other_cells(other: RelativeSpeed | None) -> tuple[str, str]:
    return ("", "") if other is None else (f"{other.images_per_second:.0f}", f"{other.ratio:.2f}")


def _quotients(compared: Iterable[RelativeSpeed]) -> str:
    return ", ".join(f"{row.level} {row.ratio:.3f} x" for row in compared)


def _memory_table(memory: Sequence[DeviceMemory]) -> Table:
    table = empty_table("Memory of the GPU", ("batch", "peak MB", "beyond loading MB", "ratio"))
    for row in memory:
        ratio = "" if row.working_ratio is None else f"{row.working_ratio:.2f}"
        table.add_row(
            row.level, str(row.batch), f"{row.peak_mb:.0f}", f"{row.working_mb:.0f}", ratio
        )
    return table
