"""What the bench found on a GPU: for machines as JSON, for people as tables."""

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
"""What runs the same plans beside: another bundle, ONNX Runtime where TensorRT is measured, or
engines of one plan each."""


class Speed(BaseModel):
    """How fast a level is at one batch size.

    Attributes:
        speedup: against the unreduced plan at the same batch, with the rounds' quartiles.
        efficiency: speedup over what the FLOPs alone promise, `speedup * flops_ratio`.
    """

    images_per_second: float
    speedup: float
    low: float
    high: float
    efficiency: float


class GpuRow(BaseModel):
    """A level's figures at one batch size.

    Attributes:
        flops_ratio: FLOPs left, of the unreduced network's.
        resident: images that are on the GPU already, runs one after the other; None of networks
            with texts.
        served: images from host memory, by two callers, as in the service.
        p50_ms, p99_ms: time of one run from host memory to logits there, nothing else running.
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
        """What other ways to run on the same GPU are compared with."""
        return self.served if self.resident is None else self.resident


class TorchSpeed(BaseModel):
    """PyTorch on the same GPU, images on it already, in the bundle's precision.

    Attributes:
        graph: whether a CUDA graph was faster than running it directly.
        ratio: the bundle's speed over this; `low` and `high` are the rounds' quartiles.
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
    """What a process that runs one level takes of the GPU's memory, MB of 10^6 bytes.

    Attributes:
        peak_mb: all of it: CUDA itself, weights, activations.
        working_mb: what came on top of what was taken right after loading.
        working_ratio: that, against the unreduced plan's; None where that is nothing.
    """

    level: str
    batch: int
    peak_mb: float
    working_mb: float
    working_ratio: float | None = None


class GpuMachine(BaseModel):
    """On what it was measured, and when.

    Attributes:
        gpu: its name. `driver`: its version. `cuda`: the newest that the driver knows.
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
    """All that was measured, or what of it is there so far.

    Attributes:
        against: another bundle, at those plans that it can run; `other` is its folder.
        tensorrt: what ran, where that was not ONNX Runtime.
        lost: what could not be measured, and why.
        complete: whether nothing is to come.
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
        """All of it."""
        return self.model_dump_json(indent=2, exclude_none=True)

    def best(self, level: str, batch: int) -> TorchSpeed | None:
        """The fastest way of PyTorch."""
        own = [one for one in self.torch if (one.level, one.batch) == (level, batch)]
        return max(own, key=lambda one: one.images_per_second, default=None)

    def beside(self, who: ContenderName) -> dict[int, list[RelativeSpeed]]:
        """Where figures of what ran beside are kept, by batch."""
        if who == "other":
            return self.against
        assert self.tensorrt is not None
        return self.tensorrt.cuda if who == "cuda" else self.tensorrt.static

    def tables(self) -> Group:
        """The same to look at."""
        machine = self.machine
        software = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        batches = dict.fromkeys(row.batch for row in self.rows)
        found: list[RenderableType] = [self.speed_table(batch) for batch in batches]
        if self.memory:
            found.append(_memory_table(self.memory))
        if self.tensorrt is not None:
            found += [self.tensorrt.table(), self.tensorrt.text()]
        found += [
            Text(f"Compared with {self.other}, batch {batch}: {_quotients(compared)}")
            for batch, compared in self.against.items()
        ]
        found.append(
            Text(
                f"{machine.gpu}, driver {machine.driver}, CUDA {machine.cuda}; "
                f"{machine.processor}; {software}; "
                f"medians of {self.rounds} rounds of {self.seconds:g} s; {machine.date}"
            )
        )
        found += [Text(f"not measured: {one}") for one in self.lost]
        return Group(*found)

    def speed_table(self, batch: int) -> Table:
        """Every level at one batch size."""
        ways = dict.fromkeys(one.way for one in self.torch if one.batch == batch)
        others = {} if self.tensorrt is None else self.tensorrt.beside()
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
                one.way: one
                for one in self.torch
                if (one.level, one.batch) == (row.level, row.batch)
            }
            best = self.best(row.level, row.batch)
            table.add_row(
                row.level,
                f"{row.flops_ratio:.3f}",
                *_cells(row.resident),
                f"{row.served.images_per_second:.0f}",
                f"{row.served.efficiency:.3f}",
                f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}",
                *(f"{torch[way].images_per_second:.0f}" if way in torch else "" for way in ways),
                *(("" if best is None else f"{best.ratio:.2f}",) if ways else ()),
                *(
                    cell
                    for rows in others.values()
                    for cell in _beside(ratio_for(rows, row.level, row.batch))
                ),
            )
        return table


def speeds(targets: Mapping[str, PlanTarget], found: Mapping[str, Measurement]) -> dict[str, Speed]:
    """Every level's; the first target is the unreduced one."""
    unreduced = found[next(iter(targets))]
    made = {}
    for level, target in targets.items():
        ratio = found[level].ratio_to(unreduced)
        made[level] = Speed(
            images_per_second=found[level].images_per_second,
            speedup=ratio.median,
            low=ratio.low,
            high=ratio.high,
            efficiency=ratio.median * target.flops_ratio,
        )
    return made


def _cells(speed: Speed | None) -> tuple[str, str, str]:
    if speed is None:
        return "", "", ""
    return f"{speed.images_per_second:.0f}", f"{speed.speedup:.2f}", f"{speed.efficiency:.3f}"


def _beside(found: RelativeSpeed | None) -> tuple[str, str]:
    return ("", "") if found is None else (f"{found.images_per_second:.0f}", f"{found.ratio:.2f}")


def _quotients(compared: Iterable[RelativeSpeed]) -> str:
    return ", ".join(f"{one.level} {one.ratio:.3f} x" for one in compared)


def _memory_table(memory: Sequence[DeviceMemory]) -> Table:
    table = empty_table("Memory of the GPU", ("batch", "peak MB", "beyond loading MB", "ratio"))
    for one in memory:
        ratio = "" if one.working_ratio is None else f"{one.working_ratio:.2f}"
        table.add_row(
            one.level, str(one.batch), f"{one.peak_mb:.0f}", f"{one.working_mb:.0f}", ratio
        )
    return table
