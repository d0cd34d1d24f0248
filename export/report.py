"""What the bench found: for machines as JSON, for people as tables."""

from __future__ import annotations

from pydantic import BaseModel
from rich.console import Group
from rich.table import Table


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
    """The same of eager PyTorch; `mode` says how it ran, the faster of the ways tried."""

    mode: str


class Against(BaseModel):
    """A quotient of images per second: the median round's, and the quartiles of the rounds."""

    level: str
    images_per_second: float
    ratio: float
    low: float
    high: float


class Comparison(BaseModel):
    """Another bundle under the same plans; `ratio` is this bundle's speed over the other's."""

    bundle: str
    levels: list[Against]


class Report(BaseModel):
    """All that was measured.

    Attributes:
        speedup_quartiles: of the rounds, by level: how noisy the machine was.
        threads: that ran at once. `batch`: images of one run.
        rounds: slices of each level. `seconds`: of one slice.
        against_torch: this bundle's speed over eager PyTorch's at the same plan, by level.
    """

    levels: list[Row]
    speedup_quartiles: dict[str, tuple[float, float]]
    bundle: str
    precision: str
    machine: str
    runtime: str
    threads: int
    batch: int
    rounds: int
    seconds: float
    torch: list[TorchRow] | None = None
    against_torch: dict[str, float] | None = None
    compare: Comparison | None = None

    def json_text(self) -> str:
        """`{"levels": [...], ...}`."""
        return self.model_dump_json(indent=2, exclude_none=True)

    def tables(self) -> Group:
        """The same to look at."""
        where = f"{self.machine}; {self.runtime}; {_runs(self.threads, self.batch)}"
        found = [_table(f"{self.bundle}, {self.precision}", self.levels, self._columns())]
        found[0].caption = f"{where}; medians of {self.rounds} rounds"
        if self.torch is not None:
            ways = {row.level: row.mode for row in self.torch}
            found.append(_table("PyTorch eager, fp32", self.torch, {"Mode": ways}))
        return Group(*found)

    def _columns(self) -> dict[str, dict[str, str]]:
        columns = {
            "Quartiles": {
                level: f"{low:.2f} to {high:.2f}"
                for level, (low, high) in self.speedup_quartiles.items()
            }
        }
        if self.against_torch is not None:
            columns["x PyTorch"] = {k: f"{v:.2f}" for k, v in self.against_torch.items()}
        if self.compare is not None:
            columns[f"x {self.compare.bundle}"] = {
                one.level: f"{one.ratio:.3f} ({one.low:.3f} to {one.high:.3f})"
                for one in self.compare.levels
            }
        return columns


def _runs(threads: int, batch: int) -> str:
    images = "one image" if batch == 1 else f"{batch} images"
    return f"{threads} threads, {images} a run"


def _table(title: str, rows: list[Row] | list[TorchRow], extra: dict[str, dict[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("Level")
    own = ("FLOPs", "images/s", "Speedup", "Efficiency", "p50 ms", "p99 ms", "Peak MB")
    for name in (*own, *extra):
        table.add_column(name, justify="right")
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
