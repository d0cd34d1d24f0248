"""What the bench tells of TensorRT: its engines, what they take, and what ran beside them."""

from __future__ import annotations

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from tokenfold.bench.report import RelativeSpeed, empty_table

SHOWN = 12
"""Digits of a fingerprint that people are shown, as in the names of engines."""


class EngineFile(BaseModel):
    """An engine that was measured.

    Attributes:
        graph: of the bundle, that it was built from.
        level: whose plan alone it was built for; None for all plans.
        bytes: of the engine.
    """

    graph: str
    precision: str
    level: str | None = None
    bytes: int


class EngineSet(BaseModel):
    """Engines that can run all levels, loaded in one process; MB of 10^6 bytes.

    Attributes:
        mb: of their files.
        loaded_mb: of the GPU's memory, once they are loaded, with what they work in and CUDA
            itself; None where it was not asked for.
    """

    count: int
    mb: float
    loaded_mb: float | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        """Of a table's row."""
        loaded = "" if self.loaded_mb is None else f"{self.loaded_mb:.0f}"
        return str(self.count), f"{self.mb:.1f}", loaded


class TensorRt(BaseModel):
    """What ran, and how it did against the same plans run otherwise, in the same rounds.

    Attributes:
        version: such as "tensorrt 11.4.0.106".
        gpu: what the engines were built for.
        plugins: fingerprint of their library.
        engines: of all plans; with --static-levels also those of one.
        cuda: ONNX Runtime on the same GPU, by batch.
        static: engines of one plan each, by batch.
        one: the engines of all plans. `each`: one for each level in their place.
    """

    version: str
    gpu: str
    plugins: str | None = None
    engines: list[EngineFile]
    cuda: dict[int, list[RelativeSpeed]] = {}
    static: dict[int, list[RelativeSpeed]] = {}
    one: EngineSet
    each: EngineSet | None = None

    @property
    def sets(self) -> dict[str, EngineSet]:
        """Both ways to have engines, as far as they were measured, by what they are called."""
        found = {"for all plans": self.one, "one for each level": self.each}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def about(self) -> str:
        """A line on what the engines are."""
        precisions = "/".join(dict.fromkeys(one.precision for one in self.engines))
        plugins = "no plugins" if self.plugins is None else f"plugins {self.plugins[:SHOWN]}"
        return f"Engines of {self.version} in {precisions} for {self.gpu}, {plugins}"

    def beside(self) -> dict[str, dict[int, list[RelativeSpeed]]]:
        """What ran beside the engines, by what it is called."""
        found = {"ONNX Runtime": self.cuda, "engine of one plan": self.static}
        return {name: rows for name, rows in found.items() if rows}

    def table(self) -> Table:
        """The engines to look at."""
        table = empty_table("Engines", ("files", "MB", "loaded MB"), first="engines")
        for name, one in self.sets.items():
            table.add_row(name, *one.cells)
        return table

    def text(self) -> Text:
        """`about`, and every file."""
        lines = [self.about]
        for one in self.engines:
            plans = "all plans" if one.level is None else one.level
            lines.append(f"  {one.graph}, {one.precision}, {plans}: {one.bytes / 1e6:.1f} MB")
        return Text("\n".join(lines))


def engine_set(found: list[EngineFile]) -> EngineSet:
    """Engines that are together in a process."""
    return EngineSet(count=len(found), mb=sum(one.bytes for one in found) / 1e6)


def ratio_for(rows: dict[int, list[RelativeSpeed]], level: str, batch: int) -> RelativeSpeed | None:
    """What was measured there, if anything."""
    return next((one for one in rows.get(batch, []) if one.level == level), None)
