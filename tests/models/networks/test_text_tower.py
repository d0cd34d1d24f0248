"""The text tower: lengths, padding and causal attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import drawn
from tokenfold.models.networks.text_tower import TextConfig, TextTower

FIELDS: dict[str, Any] = {
    "vocabulary": 30,
    "most_text": 12,
    "dim": 24,
    "depth": 3,
    "heads": 3,
    "mlp_dim": 40,
    "classes": 10,
}


def tower(**changes: Any) -> TextTower:
    return drawn(TextTower(TextConfig.model_validate(FIELDS | changes)), 0)


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 30, (batch, length), generator=generator)


@pytest.mark.parametrize("causal", [False, True])
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 99))
def test_padding_at_the_end_changes_nothing(causal: bool, lengths: list[int], seed: int) -> None:
    model, longest = tower(causal=causal), max(lengths)
    texts = ids(len(lengths), longest, seed)
    size = (torch.arange(longest) < torch.tensor(lengths)[:, None]).float()
    with torch.no_grad():
        together = model(texts, size)
        for row, length in enumerate(lengths):
            alone = model(texts[row : row + 1, :length])
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_causal_tokens_ignore_later_tokens() -> None:
    model = tower(causal=True)
    outputs: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, out: outputs.append(out.x))
    texts = ids(1, 9)
    other = texts.clone()
    other[0, 5:] = (other[0, 5:] + 7) % 30
    model(texts)
    model(other)
    torch.testing.assert_close(outputs[0][:, :5], outputs[1][:, :5])
    assert (outputs[0][:, 5:] - outputs[1][:, 5:]).abs().max() > 0.01
    open_model = tower()
    assert (open_model(texts) - open_model(other)).abs().max() > 1e-4


@torch.no_grad()
def test_the_last_token_is_pooled() -> None:
    model = tower(projection_bias=True)
    assert model.head.bias is not None
    texts = ids(2, 6)
    tokens: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, out: tokens.append(out.x))
    output = model(texts)
    torch.testing.assert_close(output, model.head(model.norm(tokens[0][:, -1])))


@pytest.mark.parametrize("length", [1, 7, 12])
def test_flops_match_the_counter_of_torch(length: int) -> None:
    model = tower()
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(ids(1, length))
    assert counter.get_total_flops() == 2 * model.config.workload.flops(length)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 24 does not divide into 5 heads"),
        ({"vocabulary": 0}, "greater than or equal to 1"),
        ({"activation": "sin"}, "Input should be"),
        ({"layers": 3}, "Extra inputs"),
    ],
)
def test_invalid_configurations_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextConfig.model_validate(FIELDS | changes)
