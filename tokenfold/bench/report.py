"""What the bench found: for machines as JSON, for people as tables."""

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
    """A level's figures.

    Attributes:
        reduction: fraction of FLOPs that was asked to be removed.
        flops_ratio: FLOPs left, of the unreduced network's.
        speedup: against the unreduced plan, in images per second.
        efficiency: speedup over what the FLOPs alone promise, `speedup * flops_ratio`.
        p50_ms, p99_ms: time of one run, beside the runs of the other threads.
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
    """The same of eager PyTorch; `mode` is the fastest way: runs at once x threads in each."""

    mode: str


class RelativeSpeed(BaseModel):
    """Another bundle under the same plan.

    Attributes:
        images_per_second: the other's.
        ratio: this bundle's speed over the other's; `low` and `high` are the rounds' quartiles.
    """

    level: str
    images_per_second: float
    ratio: float
    low: float
    high: float


class Comparison(BaseModel):
    """Another bundle under those plans that it can run."""

    bundle: str
    levels: list[RelativeSpeed]


class LevelMemory(BaseModel):
    """What running a level takes, against the unreduced network.

    Attributes:
        working_memory_mb: beside what is loaded, 10^6 bytes: mostly activations.
        peak_ratio: of the whole peak.
        working_ratio: of that beside what is loaded; None where the unreduced network needs
            nothing that could be seen.
    """

    level: str
    working_memory_mb: float
    peak_ratio: float
    working_ratio: float | None


class TextSpeed(BaseModel):
    """How fast a dual encoder embeds texts.

    Attributes:
        tokens: of each, the most that the network takes.
        p50_ms, p99_ms: time of one run, beside the runs of the other threads.
    """

    tokens: int
    texts_per_second: float
    p50_ms: float
    p99_ms: float


class Report(BaseModel):
    """All that was measured.

    Attributes:
        memory: by level; apart from the rows, whose fields others rely on.
        speedup_quartiles: of the rounds, by level: how noisy the machine was.
        threads: that ran at once. `batch`: images of one run.
        rounds: slices of each level. `seconds`: of one slice.
        texts: of a dual encoder; at no level, for nothing reduces them.
        against_torch: this bundle's speed over eager PyTorch's at the same plan, by level.
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
        """`{"levels": [...], ...}`."""
        return self.model_dump_json(indent=2, exclude_none=True)

    def tables(self) -> Group:
        """The same to look at, in 80 columns."""
        images = "one image" if self.batch == 1 else f"{self.batch} images"
        spread = {
            level: f"{low:.2f}-{high:.2f}" for level, (low, high) in self.speedup_quartiles.items()
        }
        more = {"quartiles": spread}
        found: list[RenderableType] = [
            _table(f"{self.bundle}, {self.precision}", self.levels, more),
            Text(
                f"{self.machine}; {self.runtime}; {self.threads} threads, {images} a run; "
                f"medians of {self.rounds} rounds of {self.seconds:g} s\n"
            ),
            _memory_table(self.levels, self.memory),
            Text("work: of the peak, what is beyond the loaded bundle; ratios against the first\n"),
        ]
        if self.texts is not None:
            one = self.texts
            found.append(
                Text(
                    f"texts of {one.tokens} tokens: {one.texts_per_second:.1f} texts/s, "
                    f"p50 {one.p50_ms:.1f} ms, p99 {one.p99_ms:.1f} ms\n"
                )
            )
        if self.compare is not None:
            found += [_comparison_table(self.compare), Text()]
        if self.torch is not None:
            more = {
                "way": {row.level: row.mode for row in self.torch},
                "bundle is": {name: f"{x:.2f} x" for name, x in (self.against_torch or {}).items()},
            }
            found += [
                _table("PyTorch eager, fp32", self.torch, more),
                Text("way: runs at once x threads in each, the faster of those tried\n"),
            ]
        return Group(*found)


def rows(
    targets: Mapping[str, PlanTarget], found: Mapping[str, Measurement], peaks: Mapping[str, Peak]
) -> list[Row]:
    """Every level's figures; the first target is the unreduced one."""
    unreduced = found[next(iter(targets))]
    made = []
    for level, target in targets.items():
        own = found[level]
        speedup = own.ratio_to(unreduced).median
        made.append(
            Row(
                level=level,
                reduction=target.reduction,
                flops_ratio=target.flops_ratio,
                images_per_second=own.images_per_second,
                speedup=speedup,
                efficiency=speedup * target.flops_ratio,
                p50_ms=own.percentile_ms(50),
                p99_ms=own.percentile_ms(99),
                peak_memory_mb=peaks[level].total,
            )
        )
    return made


def memory(peaks: Mapping[str, Peak]) -> list[LevelMemory]:
    """Every level's memory; the first one is the unreduced network's."""
    unreduced = next(iter(peaks.values()))
    return [
        LevelMemory(
            level=level,
            working_memory_mb=own.working,
            peak_ratio=own.total / unreduced.total,
            working_ratio=own.working / unreduced.working if unreduced.working else None,
        )
        for level, own in peaks.items()
    ]


def relative_speed(level: str, own: Measurement, other: Measurement) -> RelativeSpeed:
    """Two measurements of the same rounds as a quotient."""
    ratio, low, high = own.ratio_to(other)
    speed = other.images_per_second
    return RelativeSpeed(level=level, images_per_second=speed, ratio=ratio, low=low, high=high)


def empty_table(title: str, columns: Iterable[str], first: str = "level") -> Table:
    """Its columns: the level, or what is `first`, then those named, of numbers."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _table(title: str, rows: Sequence[Row], extra: Mapping[str, Mapping[str, str]]) -> Table:
    """Every row's figures, and further columns: header -> level -> text."""
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


def _memory_table(rows: Sequence[Row], memory: Sequence[LevelMemory]) -> Table:
    table = empty_table("Memory", ("peak MB", "ratio", "work MB", "ratio"))
    for row, one in zip(rows, memory, strict=True):
        ratio = "" if one.working_ratio is None else f"{one.working_ratio:.2f}"
        table.add_row(
            row.level,
            f"{row.peak_memory_mb:.0f}",
            f"{one.peak_ratio:.2f}",
            f"{one.working_memory_mb:.0f}",
            ratio,
        )
    return table


def _comparison_table(compare: Comparison) -> Table:
    title = f"Compared with {compare.bundle}"
    table = empty_table(title, ("its images/s", "bundle is", "quartiles"))
    for one in compare.levels:
        quartiles = f"{one.low:.3f}-{one.high:.3f}"
        table.add_row(one.level, f"{one.images_per_second:.1f}", f"{one.ratio:.3f} x", quartiles)
    return table
