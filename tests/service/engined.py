"""A backend whose engines are built first, by a real process, which builds nothing."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.runtime.tensorrt import standin_builder as builder
from tests.runtime.tensorrt.standin_builder import alive, command
from tests.service.second import Second, Seconds
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt import process
from tokenfold.runtime.tensorrt.process import ProgressCallback
from tokenfold.service.scheduling.backends.kinds import BackendKind


class Engined(Seconds):
    """A kind of such backends, and how they are built.

    Attributes:
        folder: of the engines.
        mode: what the builder does, by model: `well`, `fails`, `aborts`, `hangs`, `floods`.
        prepared: models whose builder was started, in order.
    """

    engines = ("image", "text")

    def __init__(self, folder: Path, *, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.folder = folder
        self.mode: dict[str, str] = {}
        self.prepared: list[str] = []
        folder.mkdir(exist_ok=True)
        self.kind = BackendKind(
            name,
            "cuda",
            self._load_built,
            unprepared=self.unprepared,
            prepare=self._prepare,
        )

    @property
    def gate(self) -> Path:
        """Holds builders up as long as it is there."""
        return self.folder / builder.GATE

    def unprepared(self, bundle: Bundle) -> list[str]:
        """The engines that are not there."""
        return [name for name in self.engines if not self._file(bundle, name).exists()]

    def build(self, bundle: Bundle) -> None:
        """Have all of them, as if they had been built before."""
        for name in self.engines:
            self._file(bundle, name).touch()

    def processes(self) -> list[int]:
        """The last builder, and what it has started, as far as they are alive."""
        found = []
        for name in (builder.PID, builder.CHILD):
            path = self.folder / name
            if path.exists() and alive(int(path.read_text())):
                found.append(int(path.read_text()))
        return found

    def _file(self, bundle: Bundle, name: str) -> Path:
        return self.folder / f"{bundle.manifest.name}-{name}.engine"

    def _load_built(self, bundle: Bundle) -> Second:
        assert not self.unprepared(bundle)
        return self._load(bundle)

    def _prepare(self, bundle: Bundle, told: ProgressCallback, stopping: threading.Event) -> None:
        name = bundle.manifest.name
        self.prepared.append(name)
        files = [self._file(bundle, engine).name for engine in self.unprepared(bundle)]
        process.build(
            command(self.folder, *files, mode=self.mode.get(name, "well")), told, stopping
        )
