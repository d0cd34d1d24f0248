"""Matchers of a network's layers, shared by its graph and its PyTorch reference."""

from __future__ import annotations

from collections.abc import Sequence

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.workload import Method, Plan
from tokenfold.models.networks.vit import VisionConfig
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe, margin
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe

PairMatchers = Sequence[Matcher | PuMer | None]


def matchers(method: Method, config: VisionConfig) -> list[Matcher] | None:
    """Return one matcher per layer of an image network; None for the method `none`."""
    if method == "none":
        return None
    if method == "tome":
        return [ToMe(config.class_token, config.distill_token)] * config.depth
    return [PiToMe(margin(layer, config.depth), config.protected) for layer in range(config.depth)]


def pair_matchers(workload: PairWorkload) -> PairMatchers | None:
    """Return one matcher per layer of an image-text network; None for the method `none`.

    The list holds None for layers that never reduce.
    """
    if workload.method == "none":
        return None
    if workload.method == "tome":
        return [ToMe(class_token=True)] * workload.depth
    return [PuMer() if layer in workload.layers else None for layer in range(workload.depth)]


def matcher_counts(workload: PairWorkload, plan: Plan) -> Plan | None:
    """Return the counts of a plan that belong to layers with a matcher, as PyTorch takes them."""
    if workload.method == "none":
        return None
    if workload.method == "tome":
        return plan
    return tuple(count for layer in workload.layers for count in plan[3 * layer : 3 * layer + 3])
