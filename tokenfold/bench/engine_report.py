"""Report sections on TensorRT: its engines, their memory, and the runs compared with them."""

from __future__ import annotations

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from tokenfold.bench.report import RelativeSpeed, empty_table

SHOWN_DIGITS = 12
"""Leading digits of a fingerprint in tables, as in the file names of engines."""


class EngineFile(BaseModel):
    """A measured engine.

    Attributes:
        graph: graph of the bundle that the engine was built from.
        level: level whose plan the engine was built for; None for all plans.
        bytes: size of the engine file.
    """

    graph: str
    precision: str
    level: str | None = None
    bytes: int


class EngineSet(BaseModel):
    """Engines that together run all levels, loaded in one process; MB are 10^6 bytes.

    Attributes:
        mb: size of the files.
        loaded_mb: GPU memory with the engines loaded, including their working memory and CUDA
            itself; None if not measured.
    """

    count: int
    mb: float
    loaded_mb: float | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        """Cells of a table row: count, MB, loaded MB."""
        loaded = "" if self.loaded_mb is None else f"{self.loaded_mb:.0f}"
        return str(self.count), f"{self.mb:.1f}", loaded


class TensorRt(BaseModel):
    """TensorRT's engines, compared with other ways to run the same plans in the same rounds.

    Attributes:
        version: such as "tensorrt 11.4.0.106".
        gpu: GPU that the engines were built for.
        plugins: fingerprint of the plugin library.
        engines: engines for all plans, and with --static-levels also those for a single plan.
        cuda: ONNX Runtime on the same GPU, by batch size.
        static: engines for a single plan, by batch size.
        one: the set of engines for all plans.
        each: the set with one engine per level.
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
        """The measured sets of engines, by display name."""
        engine_sets = {"for all plans": self.one, "one for each level": self.each}
        return {
            name: engine_set for name, engine_set in engine_sets.items() if engine_set is not None
        }

    @property
    def about(self) -> str:
        """One line that describes the engines."""
        precisions = "/".join(dict.fromkeys(engine.precision for engine in self.engines))
        plugins = "no plugins" if self.plugins is None else f"plugins {self.plugins[:SHOWN_DIGITS]}"
        return f"Engines of {self.version} in {precisions} for {self.gpu}, {plugins}"

    def comparisons(self) -> dict[str, dict[int, list[RelativeSpeed]]]:
        """Return the results of the compared runs, by display name."""
        results = {"ONNX Runtime": self.cuda, "engine of one plan": self.static}
        return {name: rows for name, rows in results.items() if rows}

    def table(self) -> Table:
        """Return a table of the engine sets."""
        table = empty_table("Engines", ("files", "MB", "loaded MB"), first="engines")
        for name, engine_set in self.sets.items():
            table.add_row(name, *engine_set.cells)
        return table

    def text(self) -> Text:
        """Return `about`, followed by a line for every engine file."""
        lines = [self.about]
        for engine in self.engines:
            plans = "all plans" if engine.level is None else engine.level
            lines.append(
                f"  {engine.graph}, {engine.precision}, {plans}: {engine.bytes / 1e6:.1f} MB"
            )
        return Text("\n".join(lines))


def engine_set(files: list[EngineFile]) -> EngineSet:
    """Summarise engines that are loaded in one process."""
    return EngineSet(count=len(files), mb=sum(engine.bytes for engine in files) / 1e6)


def ratio_for(rows: dict[int, list[RelativeSpeed]], level: str, batch: int) -> RelativeSpeed | None:
    """Return the result at a level and batch size, or None if it was not measured."""
    return next((row for row in rows.get(batch, []) if row.level == level), None)
