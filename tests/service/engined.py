"""A backend that needs engines, which a real but trivial builder process writes."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.runtime.tensorrt import standin_builder as builder
from tests.runtime.tensorrt.standin_builder import alive, command
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.second import Second, Seconds
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt import process
from tokenfold.runtime.tensorrt.process import ProgressCallback


class Engined(Seconds):
    """Backend kind whose engines must be built first.

    Attributes:
        folder: folder of the engines.
        mode: behaviour of the builder, by model: `well`, `fails`, `aborts`, `hangs`, `floods`.
        prepared: models whose builder was started, in order.
    """

    engines = ("image", "text")

    def __init__(self, folder: Path, *, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.folder = folder
        self.mode: dict[str, str] = {}
        self.prepared: list[str] = []
        folder.mkdir(exist_ok=True)
        self.kind = StubKind(
            name,
            "cuda",
            self._load_built,
            unprepared=self.unprepared,
            prepare=self._prepare,
        )

    @property
    def gate(self) -> Path:
        """Path of a file that blocks builders while it exists."""
        return self.folder / builder.GATE

    def unprepared(self, bundle: Bundle) -> list[str]:
        """Return the names of missing engines."""
        return [name for name in self.engines if not self._file(bundle, name).exists()]

    def build(self, bundle: Bundle) -> None:
        """Create all engines, as if they had been built before."""
        for name in self.engines:
            self._file(bundle, name).touch()

    def processes(self) -> list[int]:
        """Return the process ids of the last builder and its child that are still alive."""
        process_ids = []
        for name in (builder.PID, builder.CHILD):
            path = self.folder / name
            if path.exists() and alive(int(path.read_text())):
                process_ids.append(int(path.read_text()))
        return process_ids

    def _file(self, bundle: Bundle, name: str) -> Path:
        return self.folder / f"{bundle.manifest.name}-{name}.engine"

    def _load_built(self, bundle: Bundle) -> Second:
        assert not self.unprepared(bundle)
        return self._load(bundle)

    def _prepare(
        self, bundle: Bundle, report_progress: ProgressCallback, stopping: threading.Event
    ) -> None:
        name = bundle.manifest.name
        self.prepared.append(name)
        files = [self._file(bundle, engine).name for engine in self.unprepared(bundle)]
        process.build(
            command(self.folder, *files, mode=self.mode.get(name, "well")),
            report_progress,
            stopping,
        )
