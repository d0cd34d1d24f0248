"""FLOPs against torch's counter, plans against the papers' numbers, and plans for a reduction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tokenfold.bundle.schedule import DEFAULT_LEVELS, flops_ratio, linear, plan_for
from tokenfold.bundle.workload import Method, PlanError, Shape, Workload, clamp
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe, margin
from tokenfold.models.reduction.tome import ToMe

SMALL = VisionConfig(
    image_size=(24, 32), patch_size=8, dim=24, depth=3, heads=3, mlp_dim=40, classes=5
)
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"heads": 1},
    "distilled": {"distill_token": True, "pool": "class+distill"},
    "distilled, class head only": {"distill_token": True},
    "mae": {"pool": "mean", "final_norm": "after"},
    "no class token": {"class_token": False, "pool": "mean"},
    "clip": {"pre_norm": True, "final_norm": "none", "pool": "mean", "patch_bias": False},
    "dinov2": {"layer_scale": True, "pool": "class+mean"},
    "gated": {"gated_mlp": True},
    "qk-norm": {"qk_norm": True, "qkv_bias": False},
    "conv stem": {"stem": ((6, 2), (8, 1), (10, 2), (12, 2))},
    "odd conv stem": {"stem": ((6, 2), (8, 4)), "image_size": (40, 24)},
}
PLANS = ((0, 0, 0), (1, 1, 1), (3, 0, 2), (0, 5, 0), (0, 0, 1), (99, 99, 99))
SHAPES: tuple[Shape, ...] = ("constant", "increasing", "decreasing")

DEIT_S = VisionConfig(dim=384, depth=12, heads=6, mlp_dim=1536, classes=1000).workload("tome")
WORKLOADS: dict[str, Workload] = {
    "deit-s": DEIT_S,
    "deit-s, pitome": DEIT_S.model_copy(update={"method": "pitome"}),
    "small": SMALL.workload("tome"),
    "two layers": SMALL.model_copy(update={"depth": 2}).workload("tome"),
    "one layer": SMALL.model_copy(update={"depth": 1}).workload("tome"),
}


def matchers_for(method: Method, config: VisionConfig) -> Sequence[Matcher]:
    depth, protected = config.depth, config.protected
    if method == "pitome":
        return [PiToMe(margin(layer, depth), protected) for layer in range(depth)]
    return [ToMe(config.class_token, config.distill_token)] * depth


def counted(config: VisionConfig, method: Method, plan: Sequence[int]) -> int:
    """Return the multiply-accumulates that torch counts; it counts each as two operations."""
    model = VisionTransformer(config).eval()
    image = torch.zeros(1, 3, *config.image_size)
    # torch's counter sees the matrix products of plain attention only.
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(image, plan, matchers_for(method, config))
    total = counter.get_total_flops()
    assert total % 2 == 0
    return int(total) // 2


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("network", NETWORKS)
def test_flops_equal_those_of_the_torch_counter(network: str, plan: tuple[int, ...]) -> None:
    config = VisionConfig(**{**SMALL.model_dump(), **NETWORKS[network]})
    assert config.workload("tome").flops(plan) == counted(config, "tome", plan)


@pytest.mark.parametrize("plan", PLANS[1:])
@pytest.mark.parametrize("network", ["plain", "distilled"])
def test_flops_of_pitome_with_protected_tokens(network: str, plan: tuple[int, ...]) -> None:
    config = VisionConfig(**{**SMALL.model_dump(), **NETWORKS[network]})
    assert config.workload("pitome").flops(plan) == counted(config, "pitome", plan)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("network", ["no class token"])
def test_flops_of_pitome_equal_those_of_the_torch_counter(
    network: str, plan: tuple[int, ...]
) -> None:
    config = VisionConfig(**{**SMALL.model_dump(), **NETWORKS[network]})
    assert config.workload("pitome").flops(plan) == counted(config, "pitome", plan)


def test_flops_follow_the_convention_of_the_papers() -> None:
    assert DEIT_S.flops([0] * 12) / 1e9 == pytest.approx(4.6, abs=0.05)


def test_a_layer_that_merges_nothing_does_not_match() -> None:
    nothing = DEIT_S.flops([0] * 12)
    last = [0] * 11 + [1]
    saved = 2 * 384 * 1536  # one token less in the last MLP
    assert DEIT_S.flops(last) == nothing - saved + 99 * 98 * 64


@pytest.mark.parametrize(
    ("r", "expected"),
    [
        (8, 197 - 8 * 12),
        (13, 41),
        (16, [181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11]),
    ],
)
def test_the_papers_trajectories(r: int, expected: int | list[int]) -> None:
    counts = DEIT_S.widths([r] * 12)
    assert counts[0] == 197
    assert (counts[1:] if isinstance(expected, list) else counts[-1]) == expected


def test_the_papers_falling_schedules() -> None:
    assert linear(16, -1, 12) == (32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0)
    falling = (16, 15, 14, 13, 13, 12, 11, 11, 10, 9, 9, 8, 7, 6, 6, 5, 4, 4, 3, 2, 2, 1, 0, 0)
    assert linear(8, -1, 24) == falling


@pytest.mark.parametrize("r", [0, 1, 7, 16])
@pytest.mark.parametrize("depth", [1, 2, 12, 24])
def test_the_papers_schedules_are_lines(r: int, depth: int) -> None:
    assert linear(r, 0, depth) == (r,) * depth
    rising, falling = linear(r, 1, depth), linear(r, -1, depth)
    assert list(rising) == sorted(rising)
    assert list(falling) == sorted(falling, reverse=True)
    assert rising[0] == 0
    assert falling[0] == 2 * r


@given(st.integers(-5, 60), st.integers(1, 50), st.integers(0, 2))
def test_at_most_half_of_the_unprotected_merge(r: int, tokens: int, protected: int) -> None:
    merged = clamp(r, tokens, protected)
    assert 0 <= merged <= max(r, 0)
    assert 2 * merged <= max(tokens - protected, 0)
    if 0 <= 2 * r <= tokens - protected:
        assert merged == r


def test_reductions_are_close_to_the_request() -> None:
    for shape in SHAPES:
        for reduction in DEFAULT_LEVELS.values():
            plan = plan_for(DEIT_S, reduction, shape)
            assert 1 - flops_ratio(DEIT_S, plan) == pytest.approx(reduction, abs=0.005)


def test_shapes_rise_fall_or_stay_constant() -> None:
    constant, rising, falling = (plan_for(DEIT_S, 0.25, shape) for shape in SHAPES)
    assert max(constant) - min(constant) <= 1
    assert list(rising) == sorted(rising)
    assert list(falling) == sorted(falling, reverse=True)
    assert rising[0] == 0 < rising[-1]
    assert falling[-1] == 0 < falling[0]


def test_a_reduction_of_0_removes_nothing() -> None:
    for workload in WORKLOADS.values():
        assert plan_for(workload, 0.0) == (0,) * workload.depth
    none = DEIT_S.model_copy(update={"method": "none"})
    assert plan_for(none, 0.7) == (0,) * 12


def test_a_reduction_out_of_reach_gives_the_most_reduced_plan() -> None:
    plan = plan_for(DEIT_S, 1.0)
    assert (
        DEIT_S.widths(plan)[-1] == 2
    )  # the class token, and one other token, which has no partner
    assert plan == plan_for(DEIT_S, 0.99)


@given(
    workload=st.sampled_from(list(WORKLOADS.values())),
    shape=st.sampled_from(SHAPES),
    reduction=st.floats(0, 1),
    other_reduction=st.floats(0, 1),
)
def test_plans_are_monotone_closest_and_attainable(
    workload: Workload, shape: Shape, reduction: float, other_reduction: float
) -> None:
    plan, other_plan = (
        plan_for(workload, reduction, shape),
        plan_for(workload, other_reduction, shape),
    )
    removed = 1 - flops_ratio(workload, plan)
    other_removed = 1 - flops_ratio(workload, other_plan)
    assert (removed - other_removed) * (reduction - other_reduction) >= 0
    assert abs(removed - reduction) <= abs(other_removed - reduction) + 1e-12
    # No count of a plan is larger than the number of tokens that its layer can merge.
    counts = workload.widths(plan)
    assert [before - after for before, after in pairwise(counts)] == list(plan)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WORKLOADS)
def test_no_other_request_gets_a_closer_plan(name: str, shape: Shape) -> None:
    workload = WORKLOADS[name]
    reductions = [step / 200 for step in range(201)]
    removed = [
        1 - flops_ratio(workload, plan_for(workload, reduction, shape)) for reduction in reductions
    ]
    for reduction, achieved in zip(reductions, removed, strict=True):
        assert abs(achieved - reduction) <= min(abs(other - reduction) for other in removed) + 1e-12


@given(
    tokens=st.integers(1, 40),
    depth=st.integers(1, 6),
    protected=st.integers(0, 2),
    shape=st.sampled_from(SHAPES),
    reductions=st.lists(st.floats(0, 1), min_size=2, max_size=8),
)
def test_any_network_gets_monotone_plans(
    tokens: int, depth: int, protected: int, shape: Shape, reductions: list[float]
) -> None:
    workload = Workload(
        method="tome",
        tokens=tokens + protected,
        protected=protected,
        depth=depth,
        dim=8,
        mlp_dim=16,
        metric_dim=8,
        stem=100,
        head=10,
    )
    ratios = [
        flops_ratio(workload, plan_for(workload, reduction, shape))
        for reduction in sorted(reductions)
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert all(0 < ratio <= 1 for ratio in ratios)


@pytest.mark.parametrize("reduction", [-0.1, 1.01, float("nan"), float("inf")])
def test_reductions_outside_0_to_1_are_refused(reduction: float) -> None:
    with pytest.raises(PlanError, match="between 0 and 1, not"):
        plan_for(DEIT_S, reduction)


def test_plans_of_a_wrong_length_or_sign_are_refused() -> None:
    with pytest.raises(PlanError, match="a plan of this network has 12 counts, not 3"):
        DEIT_S.flops([1, 2, 3])
    with pytest.raises(PlanError, match="0 or more, not -2"):
        DEIT_S.widths([0] * 11 + [-2])


@pytest.mark.parametrize("siglip", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 7, 12])
def test_flops_of_texts_equal_those_of_the_torch_counter(siglip: bool, tokens: int) -> None:
    model = tiny.dual(siglip=siglip)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model.embed_texts(torch.zeros(1, tokens, dtype=torch.int64))
    workload = model.config.workload("tome")
    assert 2 * workload.text_flops(tokens) == counter.get_total_flops()


def test_a_dual_encoder_has_the_plans_of_its_image_tower() -> None:
    for siglip in (False, True):
        config = tiny.dual(siglip=siglip).config
        dual, image = config.workload("pitome"), config.image.workload("pitome")
        for reduction in (0.0, 0.2, 0.4, 1.0):
            plan = plan_for(dual, reduction)
            assert plan == plan_for(image, reduction)
            assert dual.flops(plan) == image.flops(plan)
            assert dual.widths(plan) == image.widths(plan)
    with pytest.raises(PlanError, match="the text has 0 tokens"):
        dual.text_flops(0)
    assert type(dual).model_validate_json(dual.model_dump_json()) == dual
