"""Dual encoders: vectors, logits, and the effect of reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests import tiny
from tokenfold.bundle import schedule
from tokenfold.models.networks.dual import DualConfig, DualEncoder
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe

MEAN: dict[str, Any] = {"pool": "mean", "class_token": False}
WITH_CLASS: dict[str, Any] = {"class_token": True}


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, *tiny.SIZE, generator=torch.Generator().manual_seed(0))


def matchers(model: DualEncoder, method: str) -> Sequence[Matcher]:
    config = model.config.image
    matcher = ToMe(config.class_token) if method == "tome" else PiToMe(0.5, config.protected)
    return [matcher] * config.depth


def networks() -> list[DualEncoder]:
    """Return networks with each kind of pooling: class token, attention, mean."""
    return [tiny.dual(), tiny.dual(siglip=True), tiny.dual(image=MEAN)]


@torch.no_grad()
def test_vectors_have_length_one_and_logits_follow_from_the_cosine() -> None:
    for model in networks():
        vectors = model.embed_images(images())
        texts = model.embed_texts(torch.tensor([[2, 4, 5, 3], [2, 9, 8, 3]]))
        width = model.config.width
        assert (vectors.shape, texts.shape) == ((3, width), (2, width))
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
        cosine = torch.nn.functional.cosine_similarity(vectors[:, None], texts[None], dim=-1)
        expected = model.logit_scale.exp() * cosine + model.logit_bias
        torch.testing.assert_close(model.logits(vectors, texts), expected)


@pytest.mark.parametrize("method", ["tome", "pitome"])
@torch.no_grad()
def test_reduction_changes_vectors_little(method: str) -> None:
    for model in networks():
        x, layer_matchers = images(), matchers(model, method)
        plain = model.embed_images(x)
        torch.testing.assert_close(model.embed_images(x, [0, 0, 0], layer_matchers), plain)
        reduced = model.embed_images(x, [3, 2, 1], layer_matchers)
        torch.testing.assert_close(reduced.norm(dim=1), torch.ones(3))
        near = reduced @ plain.T
        assert near.diagonal().min() > 0.9
        assert near.argmax(1).tolist() == [0, 1, 2]
        assert (reduced - plain).abs().max() > 1e-6


@pytest.mark.parametrize("method", ["tome", "pitome"])
@torch.no_grad()
def test_merging_equal_tokens_does_not_change_vectors(method: str) -> None:
    # Without positions, all patches of a grey image are equal, so a token of size s equals s tokens
    # of size 1. The class token differs, so the weight of the patches matters.
    attention, mean = tiny.dual(siglip=True, image=WITH_CLASS), tiny.dual(image={"pool": "mean"})
    for model in (tiny.dual(), attention, mean):
        model.image.pos_embed.zero_()
        grey, layer_matchers = torch.full((1, 3, *tiny.SIZE), 0.3), matchers(model, method)
        plain = model.embed_images(grey)
        merged = model.embed_images(grey, [6, 3, 2], layer_matchers)
        torch.testing.assert_close(merged, plain, rtol=0, atol=1e-5)


def test_reduction_applies_to_the_image_tower() -> None:
    config = tiny.dual(siglip=True).config
    workload = config.workload("tome")
    assert workload.flops([0, 0, 0]) == config.image.workload("tome").flops([0, 0, 0])
    plan = schedule.plan_for(workload, 0.4)
    assert len(plan) == 3
    assert 1 - schedule.flops_ratio(workload, plan) == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"classes": 39}}, "image vectors have 40 numbers, text vectors 39"),
        (
            {"image": {"pool": "class+distill", "distill_token": True, "final_norm": "before"}},
            "class token, mean or attention",
        ),
        ({"scores": "tanh"}, "Input should be"),
    ],
)
def test_invalid_configurations_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny.dual(**changes)


def test_without_a_head_the_vector_is_the_pooled_output() -> None:
    assert tiny.dual(siglip=True).config.width == 48
    assert DualConfig.model_validate(tiny.dual().config.model_dump()).width == 40
