"""Markdown tables of the bench's GPU figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenfold.bench import gpu_tables
from tokenfold.bench.engine_report import EngineFile, EngineSet, TensorRt
from tokenfold.bench.gpu_report import (
    DeviceMemory,
    GpuMachine,
    GpuReport,
    GpuRow,
    Speed,
    TorchSpeed,
)
from tokenfold.bench.options import TorchWay
from tokenfold.bench.report import RelativeSpeed
from tokenfold.bench.torch_eager import ROOT

MARKS = (gpu_tables.CUDA, gpu_tables.TENSORRT)


def rectangular(text: str) -> bool:
    """Whether every row of each table has as many cells as its header."""
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return all(len({line.count("|") for line in lines}) == 1 for lines in tables)


def speed(images: float, speedup: float, flops: float) -> Speed:
    return Speed(
        images_per_second=images,
        speedup=speedup,
        low=speedup,
        high=speedup,
        efficiency=speedup * flops,
    )


def row(level: str, flops: float, images: float, speedup: float, p50: float) -> GpuRow:
    resident = speed(images, speedup, flops)
    return GpuRow(
        level=level,
        batch=1,
        flops_ratio=flops,
        resident=resident,
        served=speed(images / 2, speedup, flops),
        p50_ms=p50,
        p99_ms=p50,
    )


def torch_speed(way: TorchWay, level: str, images: float, ratio: float) -> TorchSpeed:
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
def report() -> GpuReport:
    machine = GpuMachine(
        gpu="NVIDIA Test",
        driver="580",
        cuda="13.0",
        processor="a processor",
        versions={"onnxruntime": "1.31", "torch": "2.11"},
        date="2026-01-02",
    )
    return GpuReport(
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
            torch_speed("eager", "r=0", 500, 2.0),
            torch_speed("blocks", "r=0", 800, 1.25),
            torch_speed("eager", "r=16", 900, 2.1),
        ],
        memory=[
            DeviceMemory(level="r=0", batch=1, peak_mb=900.4, working_mb=100, working_ratio=1.0)
        ],
        complete=True,
    )


def test_a_chapter_has_text_tables_and_goals(report: GpuReport) -> None:
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
    assert rectangular(text)


def test_missed_goals_are_listed(report: GpuReport) -> None:
    report.rows[1] = row("r=16", 0.5, 1500, 1.5, 1.1)
    report.complete = False
    report.lost = ["PyTorch compiled, r=0, batch 1: not ready within 9 s"]
    text = gpu_tables.markdown([report])
    assert "Efficiency of 0.9: not at r=16 of batch 1; least 0.750." in text
    assert "not at r=16 (1.10 ms, unreduced 1.00)" in text
    assert "was interrupted" in text
    assert "- Not measured: PyTorch compiled" in text


def test_new_tables_replace_older_ones(
    report: GpuReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_file, into = tmp_path / "report.json", tmp_path / "gpu.md"
    report_file.write_text(report.json_text())
    marked = f"# Head\n\n{gpu_tables.CUDA.begin}\nstale\n{gpu_tables.CUDA.end}\n\nTail\n"
    into.write_text(marked)
    for _ in range(2):
        assert gpu_tables.main([str(report_file), "--into", str(into)]) == 0
        assert "stale" not in into.read_text()
        assert into.read_text().startswith("# Head\n")
        assert into.read_text().endswith(f"{gpu_tables.CUDA.end}\n\nTail\n")
    assert into.read_text().count("###") == 1
    assert gpu_tables.main([str(report_file)]) == 0
    assert capsys.readouterr().out.startswith("### random:vit-b16")
    into.write_text("no marks")
    assert gpu_tables.main([str(report_file), "--into", str(into)]) == 2
    assert into.read_text() == "no marks"
    assert gpu_tables.main([str(tmp_path / "absent.json")]) == 2


def tensorrt_of(report: GpuReport) -> GpuReport:
    """Return the report of the same plans on TensorRT, with all comparisons."""

    def relative(level: str, images: float, ratio: float) -> RelativeSpeed:
        return RelativeSpeed(
            level=level, images_per_second=images, ratio=ratio, low=ratio, high=ratio
        )

    engines = [
        EngineFile(graph="model.onnx", precision="fp16", level=level, bytes=size)
        for level, size in ((None, 180_000_000), ("r=16", 170_000_000))
    ]
    tensorrt = TensorRt(
        version="tensorrt 11.4.0",
        gpu="NVIDIA Test sm_90",
        plugins="0123456789abcdef",
        engines=engines,
        cuda={1: [relative("r=0", 800, 1.25), relative("r=16", 1000, 1.9)]},
        static={1: [relative("r=16", 2000, 0.95)]},
        one=EngineSet(count=1, mb=180, loaded_mb=812.4),
        each=EngineSet(count=1, mb=170),
    )
    return report.model_copy(update={"tensorrt": tensorrt, "bundle": "b16-tensorrt"})


def test_a_chapter_on_tensorrt(report: GpuReport) -> None:
    text = gpu_tables.markdown([tensorrt_of(report)])
    about = "Engines of tensorrt 11.4.0 in fp16 for NVIDIA Test sm_90, plugins 0123456789ab"
    assert f" {about}.\n" in text
    columns = ("against the better", "ONNX Runtime", "against it", "engine of one plan")
    assert f"| {' | '.join(columns)} | against it |\n" in text
    assert "| 1.25 x | 800 | 1.25 x |  |  |\n" in text
    assert "| 2.10 x | 1000 | 1.90 x | 2000 | 0.95 x |\n" in text
    assert "| engines | files | MB | loaded MB |" in text
    assert "| for all plans | 1 | 180.0 | 812 |" in text
    assert "| one for each level | 1 | 170.0 |  |" in text
    assert rectangular(text)


def test_each_backend_has_its_own_marks(report: GpuReport) -> None:
    both = "".join(f"{marks.begin}\nstale\n{marks.end}\n" for marks in MARKS)
    cuda = gpu_tables.insert_reports([report], both)
    assert cuda.index("random:vit-b16") < cuda.index(gpu_tables.CUDA.end) < cuda.index("stale")
    tensorrt = gpu_tables.insert_reports([tensorrt_of(report)], both)
    assert tensorrt.index("stale") < tensorrt.index(gpu_tables.TENSORRT.begin)
    assert tensorrt.index("random:vit-b16") < tensorrt.index(gpu_tables.TENSORRT.end)
    assert "stale" not in gpu_tables.insert_reports([report, tensorrt_of(report)], both)
    with pytest.raises(ValueError, match="bench of TensorRT"):
        gpu_tables.insert_reports(
            [tensorrt_of(report)], cuda.partition(gpu_tables.TENSORRT.begin)[0]
        )


def test_a_report_on_a_network_with_texts_round_trips(report: GpuReport) -> None:
    report.rows = [row.model_copy(update={"resident": None}) for row in report.rows]
    report.memory[0].working_ratio = None
    for row in (report, tensorrt_of(report)):
        assert GpuReport.model_validate_json(row.json_text()) == row
        assert "| 1 | r=16 | 0.500 | 950 | 1.90 | 0.950 | 950 |" in gpu_tables.markdown([row])


def test_the_document_has_the_marks() -> None:
    text = (ROOT / "docs/gpu.md").read_text()
    for marks in MARKS:
        assert "in their place" in gpu_tables.replace_between("in their place", text, marks)
