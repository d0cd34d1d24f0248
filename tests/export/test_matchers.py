"""Which matcher each layer is exported with."""

from __future__ import annotations

import numpy as np

from tests import tiny
from tokenfold.export.matchers import matchers
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe


def test_matchers_follow_the_network() -> None:
    distilled = tiny.checkpoint(distill_token=True).model.config
    assert matchers("none", distilled) is None
    assert matchers("tome", distilled) == [ToMe(True, True)] * 3
    margins = [own.margin for own in matchers("pitome", distilled) or [] if isinstance(own, PiToMe)]
    np.testing.assert_allclose(margins, [0.9, 0.6, 0.3])
