"""The bench's report on the CPU, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenfold.bench.measure import Measurement
from tokenfold.bench.memory import Peak
from tokenfold.bench.targets import PlanTarget

COLUMNS = ("FLOPs", "images/s", "speedup", "efficiency", "p50 ms", "p99 ms", "peak MB")


class Row(BaseModel):
    """Measurements of a level.

    Attributes:
        reduction: requested fraction of FLOPs to remove.
        flops_ratio: FLOPs relative to the unreduced network's.
        speedup: images per second, relative to the unreduced plan.
        efficiency: speedup divided by the speedup that FLOPs promise, `speedup * flops_ratio`.
        p50_ms, p99_ms: duration of one run, while the other threads run too.
        peak_memory_mb: largest resident set of a process that runs this level only, 10^6 bytes.
    """

    level: str
    reduction: float
    flops_ratio: float
    images_per_second: float
    speedup: float
    efficiency: float
    p50_ms: float
    p99_ms: float
    peak_memory_mb: float


class TorchRow(Row):
    """Measurements of eager PyTorch; `mode` is its layout, concurrent runs x threads in each."""

    mode: str


class RelativeSpeed(BaseModel):
    """This bundle's speed relative to another runner of the same plan.

    Attributes:
        images_per_second: speed of the other runner.
        ratio: this bundle's speed divided by the other's; `low` and `high` are the quartiles of
            the rounds.
    """

    level: str
    images_per_second: float
    ratio: float
    low: float
    high: float


class Comparison(BaseModel):
    """Results of another bundle, at the plans that it can run."""

    bundle: str
    levels: list[RelativeSpeed]


class LevelMemory(BaseModel):
    """Memory of a level, relative to the unreduced network's.

    Attributes:
        working_memory_mb: memory beyond the loaded bundle, 10^6 bytes: mostly activations.
        peak_ratio: peak relative to the unreduced network's.
        working_ratio: working memory relative to the unreduced network's; None if the latter is 0.
    """

    level: str
    working_memory_mb: float
    peak_ratio: float
    working_ratio: float | None


class TextSpeed(BaseModel):
    """Speed at which a dual encoder embeds texts.

    Attributes:
        tokens: length of each text, the maximum that the network accepts.
        p50_ms, p99_ms: duration of one run, while the other threads run too.
    """

    tokens: int
    texts_per_second: float
    p50_ms: float
    p99_ms: float


class Report(BaseModel):
    """Measurements on the CPU.

    Attributes:
        memory: memory by level; separate from the rows, whose fields other tools read.
        speedup_quartiles: quartiles over the rounds, by level; they show the machine's noise.
        threads: concurrent runs.
        batch: images per run.
        rounds: slices per level.
        seconds: duration of a slice.
        texts: text speed of a dual encoder; it is the same at every level.
        against_torch: this bundle's speed relative to eager PyTorch's at the same plan, by level.
    """

    levels: list[Row]
    memory: list[LevelMemory]
    speedup_quartiles: dict[str, tuple[float, float]]
    bundle: str
    precision: str
    machine: str
    runtime: str
    threads: int
    batch: int
    rounds: int
    seconds: float
    texts: TextSpeed | None = None
    torch: list[TorchRow] | None = None
    against_torch: dict[str, float] | None = None
    compare: Comparison | None = None

    def json_text(self) -> str:
        """Return the report as indented JSON."""
        return self.model_dump_json(indent=2, exclude_none=True)

    def tables(self) -> Group:
        """Return the report as tables of at most 80 columns."""
        images = "one image" if self.batch == 1 else f"{self.batch} images"
        spread = {
            level: f"{low:.2f}-{high:.2f}" for level, (low, high) in self.speedup_quartiles.items()
        }
        extra = {"quartiles": spread}
        renderables: list[RenderableType] = [
            _table(f"{self.bundle}, {self.precision}", self.levels, extra),
            Text(
                f"{self.machine}; {self.runtime}; {self.threads} threads, {images} a run; "
                f"medians of {self.rounds} rounds of {self.seconds:g} s\n"
            ),
            _memory_table(self.levels, self.memory),
            Text("work: increase over the loaded bundle; ratios are relative to the first level\n"),
        ]
        if self.texts is not None:
            texts = self.texts
            renderables.append(
                Text(
                    f"texts of {texts.tokens} tokens: {texts.texts_per_second:.1f} texts/s, "
                    f"p50 {texts.p50_ms:.1f} ms, p99 {texts.p99_ms:.1f} ms\n"
                )
            )
        if self.compare is not None:
            renderables += [_comparison_table(self.compare), Text()]
        if self.torch is not None:
            extra = {
                "way": {row.level: row.mode for row in self.torch},
                "ratio": {name: f"{x:.2f} x" for name, x in (self.against_torch or {}).items()},
            }
            renderables += [
                _table("PyTorch eager, fp32", self.torch, extra),
                Text(
                    "way: concurrent runs x threads in each, the faster layout; "
                    "ratio: speed of the bundle / PyTorch\n"
                ),
            ]
        return Group(*renderables)


def rows(
    targets: Mapping[str, PlanTarget],
    measurements: Mapping[str, Measurement],
    peaks: Mapping[str, Peak],
) -> list[Row]:
    """Return a row for every level; the first target is the unreduced one."""
    unreduced = measurements[next(iter(targets))]
    level_rows = []
    for level, target in targets.items():
        measurement = measurements[level]
        speedup = measurement.ratio_to(unreduced).median
        level_rows.append(
            Row(
                level=level,
                reduction=target.reduction,
                flops_ratio=target.flops_ratio,
                images_per_second=measurement.images_per_second,
                speedup=speedup,
                efficiency=speedup * target.flops_ratio,
                p50_ms=measurement.percentile_ms(50),
                p99_ms=measurement.percentile_ms(99),
                peak_memory_mb=peaks[level].total,
            )
        )
    return level_rows


def level_memory(peaks: Mapping[str, Peak]) -> list[LevelMemory]:
    """Return the memory of every level; the first one is the unreduced network's."""
    unreduced = next(iter(peaks.values()))
    return [
        LevelMemory(
            level=level,
            working_memory_mb=peak.working,
            peak_ratio=peak.total / unreduced.total,
            working_ratio=peak.working / unreduced.working if unreduced.working else None,
        )
        for level, peak in peaks.items()
    ]


def relative_speed(level: str, measurement: Measurement, other: Measurement) -> RelativeSpeed:
    """Compare two measurements of the same rounds."""
    ratio, low, high = measurement.ratio_to(other)
    speed = other.images_per_second
    return RelativeSpeed(level=level, images_per_second=speed, ratio=ratio, low=low, high=high)


def empty_table(title: str, columns: Iterable[str], first: str = "level") -> Table:
    """Return a table without rows: a first column of names, then right-aligned number columns."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _table(title: str, rows: Sequence[Row], extra: Mapping[str, Mapping[str, str]]) -> Table:
    """Return a table of all rows, with additional columns given as header -> level -> text."""
    table = empty_table(title, (*COLUMNS, *extra))
    for row in rows:
        table.add_row(
            row.level,
            f"{row.flops_ratio:.3f}",
            f"{row.images_per_second:.1f}",
            f"{row.speedup:.2f}",
            f"{row.efficiency:.3f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.peak_memory_mb:.0f}",
            *(column.get(row.level, "") for column in extra.values()),
        )
    return table


def _memory_table(rows: Sequence[Row], memory_rows: Sequence[LevelMemory]) -> Table:
    table = empty_table("Memory", ("peak MB", "ratio", "work MB", "ratio"))
    for row, memory_row in zip(rows, memory_rows, strict=True):
        ratio = "" if memory_row.working_ratio is None else f"{memory_row.working_ratio:.2f}"
        table.add_row(
            row.level,
            f"{row.peak_memory_mb:.0f}",
            f"{memory_row.peak_ratio:.2f}",
            f"{memory_row.working_memory_mb:.0f}",
            ratio,
        )
    return table


def _comparison_table(compare: Comparison) -> Table:
    title = f"Compared with {compare.bundle}"
    table = empty_table(title, ("other images/s", "ratio", "quartiles"))
    for result in compare.levels:
        quartiles = f"{result.low:.3f}-{result.high:.3f}"
        table.add_row(
            result.level, f"{result.images_per_second:.1f}", f"{result.ratio:.3f} x", quartiles
        )
    return table
