"""Which matchers a network that reduces images alone is exported with."""

from __future__ import annotations

from tokenfold.bundle.workload import Method
from tokenfold.models.networks.vit import VisionConfig
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe, margin
from tokenfold.models.reduction.tome import ToMe


def matchers(method: Method, config: VisionConfig) -> list[Matcher] | None:
    """One matcher per layer; None where nothing is reduced."""
    if method == "none":
        return None
    if method == "tome":
        return [ToMe(config.class_token, config.distill_token)] * config.depth
    return [PiToMe(margin(layer, config.depth), config.protected) for layer in range(config.depth)]
