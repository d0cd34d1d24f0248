"""Fixtures for the tests of the bench."""

from __future__ import annotations

from pathlib import Path

import onnx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.bench.trivial import CONFIG, LABELS, Make, graph, level
from tokenfold.bench import on_cpu
from tokenfold.bench.memory import Peak
from tokenfold.bundle.manifest import MODEL, Level, Manifest
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.workload import Method
from tokenfold.bundle.writing import stored_files, write_manifest, writing


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a bundle, by default with three levels."""

    def write(
        name: str = "tiny",
        *,
        method: Method = "tome",
        levels: dict[str, Level] | None = None,
        source: str = "nowhere",
        size: tuple[int, int] = (8, 8),
    ) -> Path:
        if levels is None:
            levels = {"exact": level(method, (0, 0), 0.0)}
            if method != "none":
                levels["half"] = level(method, (1, 1), 0.3)
                levels["most"] = level(method, (2, 1), 0.5)
        with writing(tmp_path / name) as folder:
            onnx.save(graph(), folder / MODEL)
            manifest = Manifest(
                name=name,
                source=source,
                precision="fp32",
                workload=CONFIG.workload(method),
                preprocess=Preprocess(size=size),
                tasks={"classify": LABELS},
                levels=levels,
                default_level=next(iter(levels)),
                versions={},
                files=stored_files(folder),
            )
            write_manifest(folder, manifest)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def idle_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report an idle processor, so that no notice about other work appears."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: 0.0)


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the memory probe, which starts processes, by a constant."""
    monkeypatch.setattr(on_cpu, "measure_peak", lambda *_args, **_options: Peak(100.0, 40.0))
