"""PuMer's slots: the published counts, kept tokens, and padding."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.models.published_pumer import PUBLISHED
from tokenfold.bundle.pair_workload import Rates, ViltWorkload, pumer_widths
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.bundle.workload import clamp
from tokenfold.models.networks.blocks import Block
from tokenfold.models.networks.operators import EAGER, Operators, Tokens
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.pumer import PuMer, prune
from tokenfold.models.reduction.tome import ToMe

DIM, HEADS = 16, 2


def network(text: int, image: int, depth: int, layers: tuple[int, ...]) -> ViltWorkload:
    return ViltWorkload(
        method="pumer",
        text=text,
        most_text=text,
        image=image,
        layers=layers,
        depth=depth,
        dim=768,
        mlp_dim=3072,
        metric_dim=64,
        stem=0,
        head=0,
    )


class Published(NamedTuple):
    """A configuration of the paper, and the number of tokens that it leaves."""

    rates: Rates
    text: list[int]
    image: list[int]


# Image tokens before the first reducing layer, after its pruning, after its merging, and so on.
CONFIGURATIONS = {
    "vilt": Published((0.1, 0.3, 0.2), [40, 32, 26, 21], [145, 131, 87, 78, 52, 47, 31]),
    "meter vqa": Published(
        (0.2, 0.2, 0.2),
        [32, 26, 21, 17, 14],
        [577, 462, 347, 278, 209, 167, 125, 100, 75],
    ),
    "meter ve": Published((0.3, 0.5, 0.2), [], [577, 404, 203, 142, 72, 50, 26, 18, 10]),
    "meter nlvr2": Published((0.3, 0.5, 0.2), [], [325, 227, 114, 80, 41, 29, 15]),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_counts_of_the_published_configurations(name: str) -> None:
    rates, words, patches = CONFIGURATIONS[name]
    reducing = len(patches) // 2
    workload = network(words[0] if words else 40, patches[0], reducing, tuple(range(reducing)))
    plan = workload.plan_at(rates)
    text, image = [workload.text], [workload.image]
    for layer in range(reducing):
        counts = plan[3 * layer : 3 * layer + 3]
        image.append(image[-1] - counts[0])
        after = pumer_widths(text[-1], image[-2], counts)
        text.append(after[0])
        image.append(after[1])
    assert image == patches
    assert not words or text == words


@pytest.mark.parametrize("smallest", [0.0, 1e-6, 0.001, 0.01, 0.1])
def test_a_small_rate_does_not_make_steps_coarse(smallest: float) -> None:
    usual = network(40, 145, 12, (2, 5, 8))
    workload = usual.model_copy(update={"rates": (smallest, 0.3, 0.2)})
    removed = [1 - flops_ratio(workload, plan) for plan in workload.ladder("constant")]
    assert max(after - before for before, after in pairwise(removed)) < 0.03


def test_layers_that_do_not_reduce_have_no_counts() -> None:
    workload = network(40, 145, 12, (2, 5, 8))
    plan = workload.plan_at((0.1, 0.3, 0.2))
    counts = [plan[3 * layer : 3 * layer + 3] for layer in range(12)]
    assert [layer for layer in range(12) if any(counts[layer])] == [2, 5, 8]
    assert [image for _, image in workload.streams(plan)][::3] == [145, 87, 52, 31, 31]


class Case(NamedTuple):
    """Tokens of a layer: metric (1, N, C), importance (1, N), numbers of tokens, and counts."""

    metric: Tensor
    importance: Tensor
    text: int
    image: int
    counts: tuple[int, int, int]


@st.composite
def layers(draw: st.DrawFn, min_text: int = 0) -> Case:
    text = draw(st.integers(min_text, 9))
    image = draw(st.integers(0 if text else 1, 14))
    counts = tuple(draw(st.integers(0, top)) for top in (image + 2, image + 2, text + 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    metric = torch.randn(1, text + image, 5, generator=generator)
    importance = torch.rand(1, text + image, generator=generator)
    return Case(metric, importance, text, image, (counts[0], counts[1], counts[2]))


@given(layers())
def test_slots_are_pruning_then_merging_of_each_modality(case: Case) -> None:
    metric, importance, text, image, counts = case
    size = torch.ones_like(importance)
    slots = PuMer()(metric, size, importance, text, counts)[0]
    words, patches = pumer_widths(text, image, counts)
    assert slots[:text].tolist() == ToMe()(metric[:, :text], size[:, :text], counts[2])[0].tolist()
    assert set(slots.tolist()) - {slotting.DROPPED} == set(range(words + patches))
    if not image:
        return
    keep = max(image - counts[0], 1)
    order = importance[0, text:].argsort(descending=True)
    dropped = (slots[text:] == slotting.DROPPED).nonzero().flatten()
    assert set(dropped.tolist()) == set(order[keep:].tolist())
    merged = clamp(counts[1], keep, 1)
    if keep == image and not merged:
        assert slots[text:].tolist() == list(range(words, words + image))
        return
    kept = metric[:, text:][:, order[:keep]]
    merged_slots = ToMe()(kept, torch.ones(1, keep), merged)[0]
    assert slots[text:][order[:keep]].tolist() == (merged_slots + words).tolist()


def test_equally_important_tokens_are_pruned_from_the_end() -> None:
    importance = torch.tensor([[0.5, 0.1, 0.5, 0.1]])
    assert prune(importance, torch.ones(1, 4), 2).tolist() == [[0, -1, 1, -1]]
    assert prune(importance, torch.ones(1, 4), 3).tolist() == [[0, -1, -1, -1]]
    assert prune(importance, torch.ones(1, 4), 9).tolist() == [[0, -1, -1, -1]]


def test_absent_tokens_do_not_count_as_pruned() -> None:
    importance = torch.tensor([[0.3, 0.9, 0.2, 0.9]])
    size = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert prune(importance, size, 1).tolist() == [[1, 0, -1, -1]]


@given(layers(), st.integers(0, 5), st.integers(0, 5))
def test_padding_of_either_modality_changes_nothing(case: Case, short: int, small: int) -> None:
    metric, importance, text, image, counts = case
    if not text:
        short = 0
    if image < 3:
        # One or two tokens cannot merge and keep their order; with padding, some could merge.
        small = 0
    alone = PuMer()(metric, torch.ones_like(importance), importance, text, counts)[0]

    def padded(tokens: Tensor, filling: float) -> Tensor:
        words, patches = tokens.split([text, image], dim=1)
        wide = [1, short, *tokens.shape[2:]], [1, small, *tokens.shape[2:]]
        first, second = (torch.full(shape, filling) for shape in wide)
        return torch.cat([words, first, patches, second], dim=1)

    size = padded(torch.ones_like(importance), 0.0)
    slots = PuMer()(padded(metric, 3.0), size, padded(importance, 7.0), text + short, counts)
    longer, _ = pumer_widths(text + short, image + small, counts)
    words, patches = pumer_widths(text, image, counts)
    image_slots = slots[0, text + short : text + short + image]
    assert slots[0, :text].tolist() == alone[:text].tolist()
    shifted = torch.where(image_slots < 0, image_slots, image_slots - longer + words)
    assert shifted.tolist() == alone[text:].tolist()
    # The output has the same tokens, followed by absent ones.
    width = sum(pumer_widths(text + short, image + small, counts))
    _, sizes = slotting.reduce(padded(metric, 3.0), size, slots, width)
    present = torch.cat([sizes[0, :words], sizes[0, longer : longer + patches]])
    assert (present > 0).all()
    assert float(sizes.sum()) == float(present.sum())


def block() -> Block:
    torch.manual_seed(3)
    layer = Block(DIM, HEADS, 24)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer.eval()


def run_layers(tokens: Tokens, counts: tuple[int, int, int], ops: Operators, layers: int) -> Tokens:
    """Run tokens through several layers that merge by plain mean."""
    with torch.no_grad():
        for _ in range(layers):
            if not isinstance(ops, type(PUBLISHED)):
                tokens = tokens.unweighted()
            tokens = block()(tokens, ops, PuMer(), counts, size=tokens.size)
    return tokens


@given(layers(min_text=1), st.integers(1, 3))
def test_without_padding_the_results_match_the_published_mode(case: Case, depth: int) -> None:
    tokens = case.text + case.image
    x = torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(tokens))
    start = Tokens.start(x, text=case.text)
    ours = run_layers(start, case.counts, EAGER, depth)
    published = run_layers(start, case.counts, PUBLISHED, depth)
    torch.testing.assert_close(ours.x, published.x, rtol=0, atol=2e-4)
    assert torch.equal(ours.trace, published.trace)
    assert ours.text == published.text
    assert torch.equal(published.size, torch.ones_like(published.size))


@given(layers(min_text=1), st.integers(1, 6), st.booleans())
def test_a_layer_does_not_depend_on_padding(case: Case, short: int, weighted: bool) -> None:
    x = torch.randn(1, case.text + case.image, DIM, generator=torch.Generator().manual_seed(1))
    words, patches = x.split([case.text, case.image], dim=1)
    longer = torch.cat([words, torch.full((1, short, DIM), 5.0), patches], dim=1)
    size = torch.ones(1, longer.shape[1])
    size[:, case.text : case.text + short] = 0
    unpadded, padded = (
        Tokens.start(x, text=case.text),
        Tokens.start(longer, size, text=case.text + short),
    )
    with torch.no_grad():
        for _ in range(2):
            if not weighted:
                unpadded, padded = unpadded.unweighted(), padded.unweighted()
            unpadded = block()(unpadded, EAGER, PuMer(), case.counts, size=unpadded.size)
            padded = block()(padded, EAGER, PuMer(), case.counts, size=padded.size)
    present = padded.size[0] > 0
    torch.testing.assert_close(padded.x[:, present], unpadded.x, rtol=0, atol=1e-4)
    assert torch.equal(padded.size[:, present], unpadded.size)


def test_the_published_mode_merges_padding_like_text() -> None:
    x = torch.randn(1, 12, DIM, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 12)
    mask[:, 4:8] = 0
    tokens = Tokens.start(x, mask, text=8)
    out = run_layers(tokens, (0, 0, 3), PUBLISHED, 1)
    assert out.text == 5
    assert float(out.size[:, :5].sum()) < 5
    assert ((out.size > 0) & (out.size < 1)).any()
