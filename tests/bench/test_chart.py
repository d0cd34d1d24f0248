"""The chart of quality over speed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tokenfold.bench import chart
from tokenfold.service.settings import DEMO

TOP = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def test_a_bundle_is_a_line_with_a_point_per_level(tmp_path: Path) -> None:
    out = tmp_path / "chart.svg"
    assert chart.main([f"{DEMO / 'cifar10'}", f"{DEMO / 'scenes'}:vqa", "--out", str(out)]) == 0
    drawing = ElementTree.parse(out).getroot()
    names = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"cifar10", "top1", "scenes", "accuracy"} <= set(names)
    titles = [title.text or "" for title in drawing.iter(f"{SVG}title")]
    assert len(titles) == 10
    assert titles[0].startswith("exact: 1.00")


def test_speed_is_relative_to_the_unreduced_network() -> None:
    line = chart.read(str(DEMO / "cifar10"))
    speedups = [point.speedup for point in line.points]
    assert speedups[0] == 1
    assert speedups == sorted(speedups)
    assert all(point.low <= point.quality <= point.high for point in line.points)


def test_the_chart_of_the_documentation_is_up_to_date(tmp_path: Path) -> None:
    out = tmp_path / "levels.svg"
    bundles = [DEMO / "cifar10-int8", f"{DEMO / 'scenes-int8'}:vqa", DEMO / "scenes-retrieval"]
    assert chart.main([*map(str, bundles), "--out", str(out)]) == 0
    assert out.read_text() == (TOP / "docs/images/levels.svg").read_text(), "run: make screenshots"


@pytest.mark.parametrize(
    ("bundle", "message"),
    [(f"{DEMO / 'cifar10'}:vqa", "the quality of 'vqa' was not measured"), ("missing", "missing")],
)
def test_bundles_without_measurements_are_reported(
    bundle: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chart.main([bundle, "--out", str(tmp_path / "chart.svg")]) == 2
    assert message in capsys.readouterr().err


def test_labels_are_moved_apart() -> None:
    assert chart._spread([10.0, 0.0, 100.0], 20.0) == [20.0, 0.0, 100.0]
