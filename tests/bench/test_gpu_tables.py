"""Markdown of what was measured on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.bench import gpu_tables
from export.bench.cuda_report import (
    CudaReport,
    CudaRow,
    DeviceMemory,
    GpuMachine,
    Speed,
    TorchSpeed,
)
from export.bench.options import TorchWay
from export.bench.torch_eager import ROOT


def speed(images: float, speedup: float, flops: float) -> Speed:
    return Speed(
        images_per_second=images,
        speedup=speedup,
        low=speedup,
        high=speedup,
        efficiency=speedup * flops,
    )


def row(level: str, flops: float, images: float, speedup: float, p50: float) -> CudaRow:
    own = speed(images, speedup, flops)
    return CudaRow(
        level=level,
        batch=1,
        flops_ratio=flops,
        resident=own,
        served=speed(images / 2, speedup, flops),
        p50_ms=p50,
        p99_ms=p50,
    )


def of_torch(way: TorchWay, level: str, images: float, ratio: float) -> TorchSpeed:
    return TorchSpeed(
        way=way,
        level=level,
        batch=1,
        images_per_second=images,
        graph=way != "eager",
        ratio=ratio,
        low=ratio,
        high=ratio,
    )


@pytest.fixture
def report() -> CudaReport:
    machine = GpuMachine(
        gpu="NVIDIA Test",
        driver="580",
        cuda="13.0",
        processor="a processor",
        versions={"onnxruntime": "1.31", "torch": "2.11"},
        date="2026-01-02",
    )
    return CudaReport(
        bundle="b16",
        source="random:vit-b16",
        method="tome",
        precision="fp16",
        tokens=197,
        native=True,
        machine=machine,
        rounds=5,
        seconds=0.1,
        rows=[row("r=0", 1.0, 1000, 1.0, 1.0), row("r=16", 0.5, 1900, 1.9, 0.6)],
        torch=[
            of_torch("eager", "r=0", 500, 2.0),
            of_torch("blocks", "r=0", 800, 1.25),
            of_torch("eager", "r=16", 900, 2.1),
        ],
        memory=[
            DeviceMemory(level="r=0", batch=1, peak_mb=900.4, working_mb=100, working_ratio=1.0)
        ],
        complete=True,
    )


def test_a_chapter(report: CudaReport) -> None:
    text = gpu_tables.markdown([report])
    assert text.startswith("### random:vit-b16, fp16\n\n2026-01-02, NVIDIA Test, driver 580")
    assert (
        "| 1 | r=16 | 0.500 | 1900 | 1.90 | 0.950 | 950 | 0.950 | 0.60 "
        "| 900 (no graph) |  | 2.10 x |"
    ) in text
    assert "| 1 | r=0 | 900 | 100 | 1.00 |" in text
    assert "Efficiency of 0.9: reached everywhere; least 0.950." in text
    assert "1.5 times the better PyTorch: not at r=0 of batch 1; least 1.25." in text
    assert "no longer reduced than unreduced: reached at every level." in text
    assert "interrupted" not in text
    # Every row of a table has as many cells as its head.
    for table in text.split("\n\n"):
        lines = table.splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1


def test_what_falls_short_is_told(report: CudaReport) -> None:
    report.rows[1] = row("r=16", 0.5, 1500, 1.5, 1.1)
    report.complete = False
    report.lost = ["PyTorch compiled, r=0, batch 1: not ready within 9 s"]
    text = gpu_tables.markdown([report])
    assert "Efficiency of 0.9: not at r=16 of batch 1; least 0.750." in text
    assert "not at r=16 (1.10 ms, unreduced 1.00)" in text
    assert "was interrupted" in text
    assert "- Not measured: PyTorch compiled" in text


def test_tables_take_the_place_of_older_ones(
    report: CudaReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, into = tmp_path / "found.json", tmp_path / "gpu.md"
    found.write_text(report.json_text())
    marked = f"# Head\n\n{gpu_tables.BEGIN}\nold\n{gpu_tables.END}\n\nTail\n"
    into.write_text(marked)
    for _ in range(2):
        assert gpu_tables.main([str(found), "--into", str(into)]) == 0
        assert "old" not in into.read_text()
        assert into.read_text().startswith("# Head\n")
        assert into.read_text().endswith(f"{gpu_tables.END}\n\nTail\n")
    assert into.read_text().count("###") == 1
    assert gpu_tables.main([str(found)]) == 0
    assert capsys.readouterr().out.startswith("### random:vit-b16")
    into.write_text("no marks")
    assert gpu_tables.main([str(found), "--into", str(into)]) == 2
    assert into.read_text() == "no marks"
    assert gpu_tables.main([str(tmp_path / "absent.json")]) == 2


def test_the_document_has_the_marks() -> None:
    assert "in their place" in gpu_tables.put("in their place", (ROOT / "docs/gpu.md").read_text())
