"""Matchers of a network's layers."""

from __future__ import annotations

import numpy as np

from tests import tiny
from tokenfold.export.matchers import matcher_counts, matchers, pair_matchers
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe


def test_matchers_follow_the_network() -> None:
    distilled = tiny.checkpoint(distill_token=True).model.config
    assert matchers("none", distilled) is None
    assert matchers("tome", distilled) == [ToMe(True, True)] * 3
    layers = matchers("pitome", distilled) or []
    margins = [matcher.margin for matcher in layers if isinstance(matcher, PiToMe)]
    np.testing.assert_allclose(margins, [0.9, 0.6, 0.3])


def test_pairs_have_matchers_and_counts_in_the_layers_that_reduce() -> None:
    config = tiny.vilt().config
    assert pair_matchers(config.workload("none")) is None
    assert pair_matchers(config.workload("pumer")) == [None, PuMer(), PuMer(), None]
    assert matcher_counts(config.workload("pumer"), tuple(range(12))) == (3, 4, 5, 6, 7, 8)
    assert matcher_counts(config.workload("tome"), (1, 2, 3, 4)) == (1, 2, 3, 4)
    assert matcher_counts(config.workload("none"), (0, 0, 0, 0)) is None
