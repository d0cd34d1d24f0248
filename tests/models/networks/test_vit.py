"""Vision transformers: configurations, prefix tokens, pooling, and the effect of reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokenfold.models.networks.blocks import Attention
from tokenfold.models.networks.operators import EAGER, Tokens
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe

SMALL: dict[str, Any] = {
    "image_size": (24, 32),
    "patch_size": 8,
    "dim": 24,
    "depth": 3,
    "heads": 3,
    "mlp_dim": 40,
    "classes": 5,
}
DISTILLED = {"distill_token": True, "pool": "class+distill"}
MAE = {"pool": "mean", "final_norm": "after"}
CLIP = {"pre_norm": True, "final_norm": "after", "patch_bias": False, "head_bias": False}
SIGLIP = {"pool": "attention", "class_token": False, "classes": 0}


def network(**changes: Any) -> VisionTransformer:
    """Return a small network with random weights."""
    torch.manual_seed(0)
    model = VisionTransformer(VisionConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 0.5 if parameter.ndim == 1 else 0.0
            parameter.copy_(0.2 * torch.randn_like(parameter) + offset)
    return model


def images(model: VisionTransformer, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *model.config.image_size)


def tome(model: VisionTransformer) -> Sequence[Matcher]:
    config = model.config
    return [ToMe(config.class_token, config.distill_token)] * config.depth


def pitome(model: VisionTransformer) -> Sequence[Matcher]:
    return [PiToMe(0.5, model.config.protected)] * model.config.depth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (24, 30)}, "patches of 8 do not tile"),
        ({"image_size": (24, 0)}, "patches of 8 do not tile"),
        ({"heads": 5}, "width 24 does not divide into 5 heads"),
        ({"class_token": False, "pool": "mean", "distill_token": True}, "class token before it"),
        ({"pool": "class+distill"}, "needs a distillation token"),
        ({"class_token": False}, "pool class needs a class token"),
        ({"class_token": False, "pool": "class+mean"}, r"pool class\+mean needs a class token"),
        ({"pool": "class+mean", "final_norm": "after"}, "norm after pooling"),
        ({**DISTILLED, "final_norm": "after"}, "norm after pooling"),
        ({"stem": ((8, 2), (8, 2))}, "strides of the stem multiply to 4, not to the patch size 8"),
        ({"classes": -1}, "greater than or equal to 0"),
        ({**DISTILLED, "classes": 0}, "needs classes"),
        ({"image_size": (24, 7), "cut_edges": True}, "patches of 8 do not tile"),
        (
            {"image_size": (24, 30), "cut_edges": True, "stem": ((6, 2), (8, 2), (10, 2))},
            "patches of 8 do not tile",
        ),
        ({"pool": "attention", "final_norm": "after"}, "norm after pooling"),
        ({"activation": "sin"}, "Input should be"),
        ({"layers": 3}, "Extra inputs"),
    ],
)
def test_invalid_configurations_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VisionConfig(**{**SMALL, **changes})


def test_numbers_of_tokens() -> None:
    plain = VisionConfig(**SMALL)
    assert (plain.grid, plain.patches, plain.protected) == ((3, 4), 12, 1)
    distilled = VisionConfig(**{**SMALL, **DISTILLED})
    assert distilled.protected == 2
    assert distilled.workload("tome").tokens == 14
    bare = VisionConfig(**{**SMALL, "class_token": False, "pool": "mean"})
    assert bare.protected == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        DISTILLED,
        MAE,
        {"class_token": False, "pool": "mean"},
        {"pool": "class+mean", "layer_scale": True, "gated_mlp": True},
        {"pre_norm": True, "final_norm": "none", "qk_norm": True, "position_prefix": False},
        {"stem": ((6, 2), (8, 2), (10, 2))},
        CLIP,
        SIGLIP,
        {**SIGLIP, "classes": 7},
    ],
)
def test_no_plan_equals_a_plan_of_zeros(changes: dict[str, Any]) -> None:
    model = network(**changes)
    x = images(model)
    with torch.no_grad():
        plain = model(x)
        for matchers in (tome(model), pitome(model)):
            nothing = model(x, [0, 0, 0], matchers)
            torch.testing.assert_close(nothing.logits, plain.logits, rtol=0, atol=1e-6)
            assert torch.equal(nothing.slots, plain.slots)
    assert torch.equal(plain.size, torch.ones_like(plain.size))
    assert torch.equal(plain.slots[0], torch.arange(plain.slots.shape[1]))


@pytest.mark.parametrize("matchers", [tome, pitome])
def test_tokens_in_and_out(matchers: Any) -> None:
    model = network(**DISTILLED)
    with torch.no_grad():
        output = model(images(model), [2, 0, 3], matchers(model))
    assert output.size.shape == (2, 14 - 5)
    assert torch.equal(output.size.sum(1), torch.full((2,), 14.0))
    assert output.slots.shape == (2, 14)
    source = slotting.source(output.slots, 9)
    assert torch.equal(source.sum(2).float(), output.size)
    # The class token and the distillation token keep their positions and sizes.
    assert torch.equal(output.slots[:, :2], torch.tensor([[0, 1], [0, 1]]))
    assert torch.equal(output.size[:, :2], torch.ones(2, 2))


@pytest.mark.parametrize("matchers", [tome, pitome])
@pytest.mark.parametrize(
    "changes",
    [{}, DISTILLED, MAE, {"pool": "class+mean"}, CLIP, {**SIGLIP, "class_token": True}],
)
def test_merging_equal_tokens_changes_nothing(changes: dict[str, Any], matchers: Any) -> None:
    # Without positions, all patches of a grey image are equal, so a token of size s equals s tokens
    # of size 1 if sizes are counted everywhere. The class token differs, so the weight of the
    # patches matters.
    model = network(**changes)
    with torch.no_grad():
        model.pos_embed.zero_()
        grey = torch.full((1, 3, *model.config.image_size), 0.3)
        plain = model(grey).logits
        merged = model(grey, [5, 2, 1], matchers(model))
        torch.testing.assert_close(merged.logits, plain, rtol=0, atol=1e-5)
        unweighted = model(grey, [5, 2, 1], matchers(model), proportional=False)
        assert (unweighted.logits - plain).abs().max() > 1e-4


def test_mean_pooling_weighs_by_size() -> None:
    model = network(**MAE)
    x = images(model)
    with torch.no_grad():
        tokens = model.embed(model.patch_embed(x))
        size = torch.ones(2, 13)
        blocks: list[Any] = list(model.blocks)
        for block, r in zip(blocks, [4, 1, 2], strict=True):
            bias = size.log()[:, None, None, :]
            normed = block.norm1(tokens)
            q, k, v = block.attn.qkv(normed).reshape(2, -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(2, 3) / 8**0.5 + bias).softmax(-1)
            tokens = tokens + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
            slots = ToMe()(k.mean(1), size, r)
            tokens, size = slotting.reduce(tokens, size, slots, tokens.shape[1] - r)
            tokens = tokens + block.mlp(block.norm2(tokens))
        mean = (tokens * size.unsqueeze(-1))[:, 1:].sum(1) / 12
        expected = model.head(model.fc_norm(mean))
        output = model(x, [4, 1, 2], tome(model))
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)


def test_a_distilled_network_averages_its_heads() -> None:
    model = network(**DISTILLED)
    x = images(model)
    with torch.no_grad():
        both = model(x).logits
        alone = network(distill_token=True)
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head_dist")}
        alone.load_state_dict(weights)
        by_class = alone(x).logits
        model.head.load_state_dict(model.head_dist.state_dict())
        # The class token now has the head of the distillation token.
        assert not torch.allclose(model(x).logits, both)
        model.head.load_state_dict(alone.head.state_dict())
        for parameter in model.head_dist.parameters():
            parameter.zero_()
        torch.testing.assert_close(model(x).logits, by_class / 2)


def test_qk_norm_norms_queries_and_keys_of_each_head() -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3, qkv_bias=True, qk_norm=True, eps=1e-6)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 7, 12)
    with torch.no_grad():
        out, queries, keys = attention(x, None, EAGER)
        q, k, v = attention.qkv(x).reshape(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        expected = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v
        expected = attention.proj(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(queries.reshape(2, 7, 3, 4).transpose(1, 2), q)
    torch.testing.assert_close(keys.reshape(2, 7, 3, 4).transpose(1, 2), k)


def test_attention_ignores_absent_tokens() -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3, qkv_bias=True, qk_norm=False, eps=1e-6)
    x = torch.randn(1, 7, 12)
    size = torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0, 0.0, 0.0]])
    with torch.no_grad():
        padded, _, _ = attention(x, size, EAGER)
        alone, _, _ = attention(x[:, :5], size[:, :5], EAGER)
    torch.testing.assert_close(padded[:, :5], alone)
    assert padded.isfinite().all()


def test_a_plan_needs_all_layers_and_matchers() -> None:
    model = network()
    x = images(model)
    for plan, matchers in (([1, 1], tome(model)), ([1, 1, 1], None), ([1, 1, 1], tome(model)[:2])):
        with pytest.raises(
            ValueError, match="the plan and the matchers need an entry for each of 3 layers"
        ):
            model(x, plan, matchers)


def test_flops_of_the_convolutional_stem() -> None:
    config = VisionConfig(**{**SMALL, "stem": ((6, 2), (8, 1), (10, 4))})
    full, half, quarter = 24 * 32, 12 * 16, 3 * 4
    expected = half * 9 * 3 * 6 + half * 9 * 6 * 8 + quarter * 9 * 8 * 10 + quarter * 10 * 24
    assert config.workload("tome").stem == expected
    assert VisionConfig(**SMALL).workload("tome").stem == full * 3 * 24


def test_edges_that_patches_do_not_tile_are_cut() -> None:
    whole, cut = network(), network(image_size=(31, 37), cut_edges=True)
    assert cut.config.patches == whole.config.patches == 12
    x = images(cut)
    with torch.no_grad():
        torch.testing.assert_close(cut(x).logits, whole(x[..., :24, :32]).logits)
    assert cut.config.workload("tome") == whole.config.workload("tome")


@pytest.mark.parametrize("changes", [CLIP, SIGLIP, {**SIGLIP, "class_token": True, "classes": 4}])
def test_vectors_have_their_width(changes: dict[str, Any]) -> None:
    model = network(**changes)
    with torch.no_grad():
        logits = model(images(model)).logits
    assert logits.shape == (2, changes.get("classes", 5) or 24)


@pytest.mark.parametrize("method", ["none", "tome", "pitome"])
@pytest.mark.parametrize("changes", [CLIP, SIGLIP, {**SIGLIP, "classes": 7}])
def test_flops_of_pooling_match_the_counter_of_torch(changes: Any, method: Any) -> None:
    model = network(**changes)
    config = model.config
    plan = [0, 0, 0] if method == "none" else [3, 0, 2]
    matchers = pitome(model) if method == "pitome" else tome(model)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(images(model, 1), plan, matchers)
    assert 2 * config.workload(method).flops(plan) == counter.get_total_flops()


def spread(sizes: list[int]) -> Tensor:
    """Return the index of each token as often as its size: (M,)."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@pytest.mark.parametrize("changes", [{}, MAE, {"pool": "class+mean"}, CLIP, SIGLIP])
@given(st.lists(st.integers(1, 5), min_size=2, max_size=7), st.integers(0, 9))
def test_pooling_weighs_merged_tokens_by_size(
    changes: dict[str, Any], sizes: list[int], seed: int
) -> None:
    model = network(**changes)
    generator = torch.Generator().manual_seed(seed)
    if model.config.class_token:
        sizes = [1, *sizes]
    x = torch.randn(1, len(sizes), 24, generator=generator)
    merged = Tokens.start(x, torch.tensor([sizes], dtype=torch.float32))
    single = Tokens.start(x[:, spread(sizes)])
    with torch.no_grad():
        pooled = model.logits(merged, merged.size, EAGER)
        expected = model.logits(single, None, EAGER)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
