"""Choice of the plans that the bench measures, alone and in comparison with another bundle."""

from __future__ import annotations

import pytest

from tests.bench.trivial import Make, level
from tokenfold.bench.targets import TargetError, choose, runs_on
from tokenfold.bundle.bundle import Bundle


def test_the_unreduced_plan_is_always_measured_first(make: Make) -> None:
    reduced = {"half": level("tome", (1, 1), 0.3), "most": level("tome", (2, 1), 0.5)}
    manifest = Bundle.open(make(levels=reduced)).manifest
    assert list(choose(manifest)) == ["r=0", "half", "most"]
    assert list(choose(manifest, [1, 0])) == ["r=0", "half", "most", "r=1"]

    three_levels = Bundle.open(make()).manifest
    assert list(choose(three_levels, [1], levels=["most"])) == ["exact", "most", "r=1"]
    assert list(choose(three_levels, [1], levels=[])) == ["exact", "r=1"]
    assert choose(three_levels, [2])["r=2"].plan == (2, 2)
    assert choose(three_levels)["exact"] == ((0, 0), 0.0, 1.0)


def test_unknown_plans_are_refused(make: Make) -> None:
    manifest = Bundle.open(make()).manifest
    with pytest.raises(TargetError, match="no level 'none'; known: exact, half, most"):
        choose(manifest, levels=["none"])
    plain = Bundle.open(make("plain", method="none")).manifest
    with pytest.raises(TargetError, match="method none"):
        choose(plain, [8])
    assert runs_on(manifest, plain, (0, 0))
    assert not runs_on(manifest, plain, (1, 1))
    assert runs_on(plain, manifest, (0, 0))
    with pytest.raises(TargetError, match="differ"):
        runs_on(manifest, Bundle.open(make("large", size=(16, 16))).manifest, (0, 0))
