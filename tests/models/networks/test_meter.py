"""METER: parity of the towers with `transformers`, both forms, plans, and padding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.checkpoints.test_meter import loaded, official
from tests.models.published_meter import PublishedMeter
from tests.tiny import drawn, pair_checkpoint
from tokenfold.bundle.manifest import AnyWorkload
from tokenfold.bundle.meter_workload import even_widths
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.bundle.workload import PlanError, Shape
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe, RecipeError
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.checkpoints.meter_names import FIRST_POSITION
from tokenfold.models.networks.meter import Meter, MeterConfig, merging_tower
from tokenfold.models.networks.operators import EAGER
from tokenfold.models.networks.pair import HeadConfig, PairReduction, images
from tokenfold.models.networks.vilt import Vilt, ViltConfig
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe

TINY = MeterConfig(
    form="sequential",
    protect_class=True,
    image_size=(32, 40),
    patch_size=8,
    dim=24,
    heads_per_layer=3,
    mlp_dim=40,
    depth=3,
    vision_depth=2,
    text_depth=2,
    vocabulary=30,
    most_text=12,
    modalities=3,
    layers=(0, 2),
    heads={
        "vqa": HeadConfig(classes=7, hidden=32),
        "reason": HeadConfig(classes=2, hidden=16),
        "match": HeadConfig(classes=1),
    },
)
FORMS = ("parallel", "sequential")
PLANS = {
    "none": (0, 0, 0, 0, 0, 0, 0, 0, 0),
    "both": (4, 5, 2, 0, 0, 0, 2, 1, 1),
    "pruning": (7, 0, 0, 0, 0, 0, 3, 0, 0),
    "merging": (0, 6, 0, 0, 0, 0, 0, 4, 0),
    "text": (0, 0, 3, 0, 0, 0, 0, 0, 2),
    "too much": (99, 99, 99, 0, 0, 0, 99, 99, 99),
    "two left": (19, 9, 7, 0, 0, 0, 0, 9, 9),
}


def tiny(**changes: Any) -> Meter:
    return drawn(Meter(MeterConfig.model_validate({**TINY.model_dump(), **changes})), 1)


def reduction_of(plan: tuple[int, ...]) -> PairReduction:
    """Return the reduction of a plan, whose matchers skip the layers without counts."""
    layers = [plan[start : start + 3] for start in range(0, len(plan), 3)]
    return PairReduction(
        [count for counts in layers if any(counts) for count in counts],
        [PuMer() if any(counts) else None for counts in layers],
    )


def photos(batch: int, side: tuple[int, int] = (32, 40)) -> Tensor:
    return torch.randn(batch, 3, *side, generator=torch.Generator().manual_seed(6))


def texts(batch: int, max_tokens: int = 9) -> tuple[Tensor, Tensor]:
    """Return padded ids of texts of several lengths, and their sizes."""
    ids = torch.randint(4, 30, (batch, max_tokens), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([max_tokens - 2 * (row % 3) for row in range(batch)])
    size = (torch.arange(max_tokens) < lengths[:, None]).float()
    return torch.where(size > 0, ids, 1), size


@torch.no_grad()
def test_the_image_tower_matches_transformers(tmp_path: Path) -> None:
    reference = PublishedMeter()
    model, _ = loaded(official(tmp_path, reference.official()))
    for side in (32, 48):
        image = photos(2, (side, side))
        actual = model.embed_image(model.patch_embed(image), (side // 8, side // 8))
        torch.testing.assert_close(actual, reference.image_tokens(image), atol=1e-4, rtol=0)
        assert actual.std(0).mean() > 0.1


@torch.no_grad()
def test_the_text_tower_matches_transformers(tmp_path: Path) -> None:
    reference = PublishedMeter()
    model, _ = loaded(official(tmp_path, reference.official()))
    ids, size = texts(4)
    actual, expected = model.text(ids, size, EAGER), reference.text_tokens(ids)
    torch.testing.assert_close(actual[size > 0], expected[size > 0], atol=1e-4, rtol=0)
    assert expected[size > 0].std(0).mean() > 0.1
    assert FIRST_POSITION == 2


@pytest.mark.parametrize("task", TINY.heads)
@torch.no_grad()
def test_each_head_answers(task: PairTask) -> None:
    model = tiny()
    ids, size = texts(2)
    image = photos(4).unflatten(0, (2, 2)) if images(task) == 2 else photos(2)
    logits = model(image, ids, size, task=task)
    assert logits.shape == (2, TINY.heads[task].classes)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@torch.no_grad()
def test_the_two_forms_differ_in_the_text_that_the_image_attends_to() -> None:
    ids, size = texts(3)
    answers = [tiny(form=form)(photos(3), ids, size, task="vqa") for form in FORMS]
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    # In a network with one pair of layers, only the image's half of the pooled output differs.
    text_halves, image_halves = [], []
    for form in FORMS:
        model = tiny(form=form, depth=1, layers=(0,))
        image = model.embed_image(model.patch_embed(photos(3)), TINY.grid)
        text_half, image_half = model.fuse(image, ids, size).pooled.chunk(2, dim=-1)
        text_halves.append(text_half)
        image_halves.append(image_half)
    torch.testing.assert_close(text_halves[0], text_halves[1])
    assert (image_halves[0] - image_halves[1]).abs().max() > 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_a_plan_leaves_as_many_tokens_as_the_workload_predicts(plan: str, form: str) -> None:
    model = tiny(form=form)
    ids, size = texts(2, 9)
    size = torch.ones_like(size)
    image = model.embed_image(model.patch_embed(photos(2)), TINY.grid)
    fused = model.fuse(image, ids, size, reduction=reduction_of(PLANS[plan]))
    text, patches = model.config.workload("pumer", text=9).streams(PLANS[plan])[-1]
    assert fused.text.shape == (2, 9)
    assert fused.image.shape == (2, 21)
    for row in range(2):
        assert set(fused.text[row].tolist()) == set(range(text))
        assert set(fused.image[row].tolist()) - {-1} == set(range(patches))
    assert (fused.text[:, 0] == 0).all()
    # The class token, which is pooled, stays first.
    assert (fused.image[:, 0] == 0).all()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_an_empty_plan_changes_nothing(form: str) -> None:
    model = tiny(form=form)
    ids, size = texts(2)
    nothing = PairReduction([0] * 6, [PuMer(), None, PuMer()])
    plain = model(photos(2), ids, size, task="vqa")
    torch.testing.assert_close(model(photos(2), ids, size, task="vqa", reduction=nothing), plain)


@torch.no_grad()
def test_the_class_token_may_be_dropped_if_unprotected() -> None:
    model = tiny(protect_class=False)
    ids, size = texts(3)
    image = model.embed_image(model.patch_embed(photos(3)), TINY.grid)
    fused = model.fuse(image, ids, size, reduction=reduction_of(PLANS["pruning"]))
    assert (fused.image[:, 0] != 0).any()


@given(
    st.sampled_from(FORMS),
    st.booleans(),
    st.lists(st.integers(0, 6), min_size=6, max_size=6),
    st.integers(0, 5),
)
@settings(max_examples=40)
@torch.no_grad()
def test_results_do_not_depend_on_the_batch(
    form: str, weighted: bool, counts: list[int], padding: int
) -> None:
    model = tiny(form=form)
    ids, size = texts(3, 7)
    image = model.embed_image(model.patch_embed(photos(3)), TINY.grid)
    reduction = PairReduction(counts, [PuMer(), None, PuMer()], weighted)
    wide = torch.nn.functional.pad(ids, (0, padding), value=1)
    wide_size = torch.nn.functional.pad(size, (0, padding))
    together = model.fuse(image, wide, wide_size, reduction=reduction)
    for row in range(3):
        length = int(size[row].sum())
        alone = model.fuse(image[row : row + 1], ids[row : row + 1, :length], reduction=reduction)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=2e-5, rtol=0)
        assert torch.equal(together.image[row], alone.image[0])
        assert torch.equal(together.text[row, :length], alone.text[0])


@torch.no_grad()
def test_image_padding_changes_nothing() -> None:
    model = tiny()
    ids, size = texts(2)
    image = model.embed_image(model.patch_embed(photos(2)), TINY.grid)
    reduction = reduction_of(PLANS["both"])
    padded = torch.nn.functional.pad(image, (0, 0, 0, 4), value=3.0)
    present = torch.ones(2, padded.shape[1])
    present[:, -4:] = 0
    unpadded = model.fuse(image, ids, size, reduction=reduction)
    fused = model.fuse(padded, ids, size, image_size=present, reduction=reduction)
    torch.testing.assert_close(fused.pooled, unpadded.pooled, atol=2e-5, rtol=0)
    assert torch.equal(fused.image[:, : image.shape[1]], unpadded.image)


@torch.no_grad()
def test_reason_takes_two_passes() -> None:
    model = tiny()
    ids, size = texts(2)
    pair = photos(4).unflatten(0, (2, 2))
    reduction = reduction_of(PLANS["both"])
    pooled = []
    for index in range(2):
        image = model.embed_image(model.patch_embed(pair[:, index]), TINY.grid)
        second = torch.tensor([index])  # a tensor, as in a graph
        fused = model.fuse(image, ids, size, second=second, reduction=reduction)
        pooled.append(fused.pooled)
    logits = model.heads.logits(torch.cat(pooled, dim=-1), "reason")
    torch.testing.assert_close(model(pair, ids, size, task="reason", reduction=reduction), logits)
    flipped = model(pair.flip(1), ids, size, task="reason", reduction=reduction)
    assert (flipped - logits).abs().max() > 1e-3


@torch.no_grad()
def test_tome_reduces_the_image_tower() -> None:
    model = tiny(vision_merged=3)
    tokens = model.embed_image(model.patch_embed(photos(2)), TINY.grid)
    assert tokens.shape == (2, 15, 24)
    assert model.config.workload("pumer").image == 15
    ids, size = texts(2)
    logits = model(photos(2), ids, size, task="vqa", reduction=reduction_of(PLANS["both"]))
    assert (logits - tiny()(photos(2), ids, size, task="vqa")).abs().max() > 1e-3
    strongest = tiny(vision_merged=99)
    assert strongest.config.workload("none").image == even_widths(21, 99, 2)[-1] == 6
    assert strongest.embed_image(strongest.patch_embed(photos(1)), TINY.grid).shape[1] == 6
    plain = tiny()
    merging = merging_tower(plain, 3)
    assert torch.equal(merging.embed_image(merging.patch_embed(photos(2)), TINY.grid), tokens)
    assert plain.config.vision_merged == 0
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        merging_tower(plain, -1)


def test_export_writes_a_verified_bundle(tmp_path: Path) -> None:
    small = {"depth": 2, "layers": (0, 1), "text_depth": 1}  # tracing takes most of the time
    model = tiny(image_size=(32, 32), **small)
    words = ("is", "it", "an", "ant", "or", "a", "bee", "what", "two")
    checkpoint = PairCheckpoint(
        model,
        Preprocess(size=(32, 32)),
        {"vqa": tuple("abcdefg"), "reason": ("false", "true"), "match": ()},
        word_level(words, model.config.most_text),
        weighted=True,
    )
    recipe = Recipe(name="meter", tower=2, levels={"exact": 0.0, "fast": 0.1})
    bundle = export_bundle(checkpoint, "tiny", tmp_path / "meter", recipe)
    manifest = bundle.manifest
    assert manifest.workload == merging_tower(model, 2).config.workload("pumer")
    assert manifest.workload.kind == "meter"
    assert manifest.levels["fast"].tokens_out < manifest.levels["exact"].tokens_out
    # The export verifies the graphs against the network at both levels.
    assert max(manifest.deviation.values()) < 1e-3


def test_only_meter_merges_in_an_image_tower(tmp_path: Path) -> None:
    recipe = Recipe(name="vilt", tower=2)
    with pytest.raises(RecipeError, match="only METER has an image tower"):
        export_bundle(pair_checkpoint(), "t", tmp_path / "vilt", recipe)


def counted_flops(model: Meter | Vilt, text: int, plan: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of a question, by torch's counter of operations."""
    image = torch.zeros(1, 3, *model.config.image_size)
    ids = torch.zeros(1, text, dtype=torch.int64)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(image, ids, task="vqa", reduction=reduction_of(plan))
    total = counter.get_total_flops()
    assert total % 2 == 0
    return int(total) // 2


@pytest.mark.parametrize("vision_merged", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("plan", PLANS)
def test_flops_match_the_counter_of_torch(plan: str, form: str, vision_merged: int) -> None:
    heads = {"vqa": TINY.heads["vqa"]}
    model = tiny(form=form, vision_merged=vision_merged, heads=heads)
    for text in (1, 2, 8):
        workload = model.config.workload("pumer", text=text)
        assert workload.flops(PLANS[plan]) == counted_flops(model, text, PLANS[plan])


@pytest.mark.parametrize("plan", PLANS)
def test_flops_of_vilt_match_the_counter_of_torch(plan: str) -> None:
    config = ViltConfig(
        image_size=(32, 40),
        patch_size=8,
        dim=24,
        depth=3,
        heads_per_layer=3,
        mlp_dim=40,
        vocabulary=30,
        most_text=12,
        layers=(0, 2),
        heads={"vqa": HeadConfig(classes=7, hidden=32)},
    )
    model = Vilt(config)
    workload = config.workload("pumer", text=8)
    assert workload.flops(PLANS[plan]) == counted_flops(model, 8, PLANS[plan])
    joint = config.workload("tome", text=8)
    merged = (3, 0, 2)
    matchers = [ToMe() if r else None for r in merged]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(
            torch.zeros(1, 3, 32, 40),
            torch.zeros(1, 8, dtype=torch.int64),
            task="vqa",
            reduction=PairReduction([r for r in merged if r], matchers),
        )
    assert joint.flops(merged) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("rates", "image"),
    [((0.2, 0.2, 0.2), [577, 347, 209, 125, 75]), ((0.3, 0.5, 0.2), [577, 203, 72, 26, 10])],
)
def test_the_published_counts(rates: tuple[float, float, float], image: list[int]) -> None:
    heads: dict[PairTask, HeadConfig] = {"vqa": TINY.heads["vqa"]}
    config = MeterConfig(form="sequential", protect_class=False, heads=heads)
    workload = config.workload("pumer", text=32, rates=rates)
    streams = workload.streams(workload.plan_at(rates))
    assert [patches for _, patches in streams] == [*image, image[-1], image[-1]]
    assert [text for text, _ in streams] == [32, 26, 21, 17, 14, 14, 14]


@pytest.mark.parametrize("shape", ["constant", "increasing", "decreasing"])
def test_higher_reductions_remove_more(shape: Shape) -> None:
    workload = TINY.workload("pumer")
    ratios = [flops_ratio(workload, plan_for(workload, r / 20, shape)) for r in range(21)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == 1
    assert ratios[-1] < 0.9
    nothing = TINY.workload("none")
    assert plan_for(nothing, 0.7, shape) == nothing.unreduced


def test_text_length_does_not_change_the_network() -> None:
    workload = TINY.workload("pumer")
    other = workload.sized(text=5, image=31)
    assert (other.text, other.image, other.vision_widths) == (5, 31, (31, 31, 31))
    assert other.flops(other.unreduced) > workload.sized(text=5).flops(other.unreduced)
    reduced = MeterConfig.model_validate({**TINY.model_dump(), "vision_merged": 2}).workload("none")
    assert reduced.sized(text=3).text == 3
    for length, message in ((0, "has 0 tokens"), (TINY.most_text + 1, f"at most {TINY.most_text}")):
        with pytest.raises(PlanError, match=message):
            workload.sized(text=length)
    with pytest.raises(PlanError, match="the image has 0 tokens"):
        workload.sized(image=0)
    with pytest.raises(PlanError, match="the number of image tokens is fixed"):
        reduced.sized(image=31)


def test_a_workload_survives_a_manifest() -> None:
    adapter: TypeAdapter[AnyWorkload] = TypeAdapter(AnyWorkload)
    workload = TINY.workload("pumer")
    assert adapter.validate_json(adapter.dump_json(workload)) == workload


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValidationError, match="form"):
        MeterConfig.model_validate({"protect_class": True, "heads": TINY.heads})
    with pytest.raises(ValidationError, match="separate streams"):
        TINY.workload("tome")
    model = tiny()
    ids, size = texts(1)
    image = model.embed_image(model.patch_embed(photos(1)), TINY.grid)
    with pytest.raises(TypeError, match=r"only PuMer reduces .*, not ToMe"):
        model.fuse(image, ids, size, reduction=PairReduction([1], [ToMe(), None, None]))
    with pytest.raises(ValueError, match="the plan has 5 counts; the matchers need 3"):
        model.fuse(image, ids, size, reduction=PairReduction([0] * 5, [PuMer(), None, None]))
    for changes, message in (
        ({"image_size": (30, 40)}, "do not tile"),
        ({"heads_per_layer": 5}, "does not divide"),
        ({"layers": (3,)}, "reducing layers are 0 to 2"),
        ({"modalities": 2}, "needs 3 modality embeddings"),
    ):
        with pytest.raises(ValidationError, match=message):
            MeterConfig.model_validate({**TINY.model_dump(), **changes})
    assert all(a >= b for a, b in pairwise(even_widths(9, 2, 4)))
