"""Command-line arguments of `tokenfold export`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenfold.bundle.schedule import Ramp
from tokenfold.export.arguments import parser
from tokenfold.export.recipe import Shares


def test_levels_take_every_kind_of_amount() -> None:
    levels = "a=0.55,b=r8,c=r16/-1,d=0.1/0.3/0.2,e=8+8+4+0"
    options = parser().parse_args(["source", "--out", "~/b", "--levels", levels])
    assert options.levels == {
        "a": 0.55,
        "b": Ramp(8),
        "c": Ramp(16, -1),
        "d": Shares(0.1, 0.3, 0.2),
        "e": (8, 8, 4, 0),
    }
    assert options.out == Path.home() / "b"
    assert options.weighted is None


@pytest.mark.parametrize(
    "levels", ["fast", "fast=2", "fast=x", "fast=-0.1", "a=0,a=0.1", "a=r", "a=r8/2", "a=4+"]
)
def test_wrong_levels_are_explained(levels: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["random:vit-ti16", "--out", "b", "--levels", levels])
    assert caught.value.code == 2
    assert "--levels" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--rates", "0.1/0.3"], ["--layers", "a"]])
def test_wrong_options_are_explained(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["nowhere", "--out", "b", *options])
    assert options[0] in capsys.readouterr().err
