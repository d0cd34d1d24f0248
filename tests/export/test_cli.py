"""The command `tokenfold export`: its report, and its errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.export.cli import main
from tokenfold.models.checkpoints import native

Sources = dict[str, Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Save a checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    native.save(folder / "classifier", tiny.checkpoint())
    native.save(folder / "pair", tiny.pair_checkpoint())
    native.save(folder / "dual", tiny.dual_checkpoint())
    return {kind: folder / kind for kind in ("classifier", "pair", "dual")}


def error_of(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command with wrong arguments and return its error, one line."""
    assert main([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tokenfold export: ")
    assert not out.exists()
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-thing"], "no such file or folder"),
        (["random:vit-xxl99"], "vit-xxl99"),
        (["{source}", "--name", "Bad Name"], "name"),
        (["{source}", "--default-level", "best"], "best"),
    ],
)
def test_errors_are_one_line(
    sources: Sources,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    formatted = [argument.format(source=sources["classifier"]) for argument in arguments]
    assert message in error_of([*formatted, "--levels", "exact=0"], tmp_path / "b", capsys)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("classifier", ["--plain"], "image-text networks"),
        ("classifier", ["--method", "pumer"], "takes images without texts"),
        ("classifier", ["--rates", "0.1/0.1/0.1"], "image-text networks"),
        ("dual", ["--method", "pumer"], "takes images without texts"),
        ("dual", ["--plain"], "image-text networks"),
        ("dual", ["--levels", "a=0.1/0.3/0.2"], "need the method pumer"),
        ("dual", ["--images", "{empty}"], "holds no images"),
        ("pair", ["--method", "pitome"], "none, tome and pumer, not pitome"),
        ("pair", ["--no-proportional"], "--plain"),
        ("pair", ["--layers", "9"], "reducing layers are 0 to 3"),
        ("pair", ["--rates", "0/0/0"], "a rate above 0"),
        ("pair", ["--method", "tome", "--layers", "1"], "PuMer's"),
        ("pair", ["--method", "tome", "--levels", "a=0.1/0.3/0.2"], "need the method pumer"),
        ("pair", ["--levels", "a=r8"], "r8 is an amount of ToMe"),
        ("pair", ["--levels", "a=1+2"], "12 counts"),
        ("pair", ["--levels", "a=1+0+0+0+0+0+0+0+0+0+0+0"], "layer 0 does not reduce"),
        ("pair", ["--levels", "a=0", "--default-level", "pumer"], "is not among a"),
        ("pair", ["--images", "{empty}"], "holds no images"),
    ],
)
def test_recipes_that_do_not_fit_the_network_are_refused(
    sources: Sources,
    tmp_path: Path,
    kind: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    formatted = [argument.format(empty=tmp_path / "empty") for argument in arguments]
    assert message in error_of([str(sources[kind]), *formatted], tmp_path / "b", capsys)


def test_the_report_mentions_reductions_out_of_reach(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(sources["classifier"]), "--out", str(tmp_path / "b")]
    assert main([*arguments, "--levels", "exact=0,most=0.9"]) == 0
    exact, largest = capsys.readouterr().out.splitlines()[1:]
    assert "requested" not in exact
    assert "(90.0 % requested)" in largest
    assert main(arguments) == 0
    report = capsys.readouterr().out
    assert "levels are smaller than usual" in report
    assert "at most 46.2 % of its FLOPs" in report


def test_levels_may_be_plans(sources: Sources, tmp_path: Path) -> None:
    source, out = str(sources["classifier"]), tmp_path / "b"
    levels = "exact=0,r2=r2,falling=r2/-1,own=3+0+99"
    assert main([source, "--out", str(out), "--levels", levels]) == 0
    by_name = Bundle.open(out).manifest.levels
    plans = {name: level.plan for name, level in by_name.items()}
    assert plans == {"exact": (0, 0, 0), "r2": (2, 2, 2), "falling": (4, 2, 0), "own": (3, 0, 6)}
    ratios = [level.flops_ratio for level in by_name.values()]
    assert ratios == sorted(ratios, reverse=True)
    assert by_name["r2"].reduction == pytest.approx(1 - by_name["r2"].flops_ratio)
    assert main([source, "--out", str(tmp_path / "c"), "--levels", "own=3+0"]) == 2
