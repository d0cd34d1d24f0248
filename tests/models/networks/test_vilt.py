"""ViLT: parity with `transformers`, and results that do not depend on padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import vilt
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.networks.pair import HeadConfig, PairReduction, images
from tokenfold.models.networks.vilt import Vilt, ViltConfig
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe

PATCH = 8
SETTINGS: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 12,
    "image_size": 32,
    "patch_size": PATCH,
}
TINY = ViltConfig(
    image_size=(32, 32),
    patch_size=PATCH,
    dim=32,
    depth=4,
    heads_per_layer=4,
    mlp_dim=48,
    vocabulary=30,
    most_text=12,
    modalities=3,
    layers=(1, 2),
    heads={
        "vqa": HeadConfig(classes=7, hidden=64),
        "entail": HeadConfig(classes=3, hidden=64),
        "reason": HeadConfig(classes=2, hidden=64),
        "match": HeadConfig(classes=2),
    },
)

# Rows and columns of patches: those of the position embedding, others, and a strip.
GRIDS = ((4, 4), (3, 6), (5, 2), (1, 4))


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    """Draw weights far from zero, so that every part of the network affects the logits."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        centre = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
        parameter.copy_(centre + 0.2 * noise)


def tiny() -> Vilt:
    model = Vilt(TINY)
    shake(model)
    return model.eval()


def texts(batch: int, max_tokens: int = 9) -> tuple[Tensor, Tensor]:
    """Return padded ids of texts of several lengths, and their sizes."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 30, (batch, max_tokens), generator=generator)
    lengths = torch.tensor([max_tokens - 2 * (index % 3) for index in range(batch)])
    size = (torch.arange(max_tokens) < lengths[:, None]).float()
    return ids * size.long(), size


def photos(grids: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Return images with these grids in the corners of a canvas, and the grids as a tensor."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = (max(grid[side] for grid in grids) for side in (0, 1))
    canvas = torch.zeros(len(grids), 3, rows * PATCH, columns * PATCH)
    for index, (height, width) in enumerate(grids):
        canvas[index, :, : height * PATCH, : width * PATCH] = torch.randn(
            3, height * PATCH, width * PATCH, generator=generator
        )
    return canvas, torch.tensor(grids)


def pixel_mask(canvas: Tensor, grids: Tensor) -> Tensor:
    mask = torch.zeros(len(canvas), *canvas.shape[-2:], dtype=torch.long)
    for index, (rows, columns) in enumerate(grids.tolist()):
        mask[index, : rows * PATCH, : columns * PATCH] = 1
    return mask


def answer_padded(
    model: Vilt,
    image: Tensor,
    ids: Tensor,
    size: Tensor,
    task: PairTask,
    grids: Tensor,
    reduction: PairReduction | None = None,
) -> Tensor:
    """Return the logits (B, classes) for images of several sizes, padded to a common size.

    Args:
        image: (B, 3, H, W), each image in the upper left corner; (B, 2, 3, H, W) for `reason`.
        grids: (B, 2), or (B, 2, 2) for `reason`: rows and columns of patches of each image.
    """
    pooled = []
    pairs = images(task) == 2
    for index in range(images(task)):
        pixels, sides = (image[:, index], grids[:, index]) if pairs else (image, grids)
        grid = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
        tokens = []
        patches = model.patch_embed(pixels).unflatten(1, grid)
        for item, (rows, columns) in zip(patches, sides.tolist(), strict=True):
            unpadded = item[:rows, :columns].flatten(0, 1)[None]
            tokens.append(model.embed_image(unpadded, (rows, columns))[0])
        sizes = [item.new_ones(len(item)) for item in tokens]
        fused = model.fuse(
            pad_sequence(tokens, batch_first=True),
            ids,
            size,
            image_size=pad_sequence(sizes, batch_first=True),
            second=index == 1,
            reduction=reduction,
        )
        pooled.append(fused.pooled)
    return model.heads.logits(torch.cat(pooled, dim=-1), task)


CLASSES: dict[PairTask, tuple[str, dict[str, Any]]] = {
    "vqa": ("ViltForQuestionAnswering", {"num_labels": 7}),
    "match": ("ViltForImageAndTextRetrieval", {}),
    "reason": (
        "ViltForImagesAndTextClassification",
        {"num_labels": 2, "num_images": 2, "modality_type_vocab_size": 3},
    ),
    "entail": (
        "ViltForImagesAndTextClassification",
        {
            "num_images": 1,
            "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
            "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
        },
    ),
}


def saved(task: PairTask, folder: Path) -> tuple[Any, PairCheckpoint]:
    """Return a random network of `transformers`, and the checkpoint loaded from its folder."""
    name, changes = CLASSES[task]
    reference: Any = getattr(transformers, name)(transformers.ViltConfig(**{**SETTINGS, **changes}))
    shake(reference)
    reference.eval().save_pretrained(folder)
    word_level([f"w{index}" for index in range(26)], 12).save(folder / "tokenizer.json")
    return reference, vilt.load(folder, folder.name)


@pytest.mark.parametrize("task", CLASSES)
@torch.no_grad()
def test_logits_match_transformers(task: PairTask, tmp_path: Path) -> None:
    reference, checkpoint = saved(task, tmp_path)
    assert list(checkpoint.model.config.heads) == [task]
    ids, size = texts(len(GRIDS))
    canvas, grids = photos(GRIDS)
    mask = pixel_mask(canvas, grids)
    if images(task) == 2:
        # In reverse order, so that the two images of a pair differ in shape.
        canvas, mask, grids = (torch.stack([x, x.flip(0)], dim=1) for x in (canvas, mask, grids))
    # `transformers` expects a list of images here, even for a single image.
    masks = mask[:, None] if task == "entail" else mask
    expected = reference(
        input_ids=ids, attention_mask=size.long(), pixel_values=canvas, pixel_mask=masks
    ).logits
    assert isinstance(checkpoint.model, Vilt)
    logits = answer_padded(checkpoint.model, canvas, ids, size, task, grids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected.std(0).min() > 0.05  # the inputs affect the logits


@pytest.mark.parametrize("task", TINY.heads)
@torch.no_grad()
def test_results_do_not_depend_on_the_batch(task: PairTask) -> None:
    model = tiny()
    ids, size = texts(len(GRIDS))
    canvas, grids = photos(GRIDS)
    together = torch.stack([canvas, canvas], 1) if images(task) == 2 else canvas
    ragged = torch.stack([grids, grids], 1) if images(task) == 2 else grids
    logits = answer_padded(model, together, ids, size, task, ragged)
    for index, (rows, columns) in enumerate(GRIDS):
        count = int(size[index].sum())
        unpadded = together[index : index + 1, ..., : rows * PATCH, : columns * PATCH]
        alone = model(unpadded, ids[index : index + 1, :count], task=task)
        torch.testing.assert_close(logits[index], alone[0], atol=1e-5, rtol=1e-5)


TOME = PairReduction([2, 0, 3, 1], [ToMe(class_token=True)] * 4)
PUMER = PairReduction([2, 3, 1, 1, 2, 2], [None, PuMer(), PuMer(), None])
REDUCTIONS = (
    None,
    *(
        reduction._replace(weighted=weighted)
        for reduction in (TOME, PUMER)
        for weighted in (True, False)
    ),
)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@torch.no_grad()
def test_text_padding_changes_nothing(reduction: PairReduction | None) -> None:
    model = tiny()
    canvas, _ = photos(((4, 4), (4, 4)))
    ids, _ = texts(2, max_tokens=7)
    ids = ids.clone()
    ids[:, 1:] = torch.randint(4, 30, (2, 6), generator=torch.Generator().manual_seed(4))
    unpadded = model(canvas, ids, task="vqa", reduction=reduction)
    for padding_id in (0, 29):
        padded = torch.cat([ids, torch.full((2, 3), padding_id)], dim=1)
        size = (torch.arange(10) < 7).float().expand(2, -1)
        logits = model(canvas, padded, size, task="vqa", reduction=reduction)
        torch.testing.assert_close(logits, unpadded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@torch.no_grad()
def test_image_padding_changes_nothing(reduction: PairReduction | None) -> None:
    model = tiny()
    # With an odd number of padding tokens between them, other tokens would become sources.
    ragged = ((4, 4), (3, 3), (5, 3), (3, 4))
    canvas, grids = photos(ragged)
    ids, size = texts(len(ragged))
    together = answer_padded(model, canvas, ids, size, "vqa", grids, reduction)
    for index, (rows, columns) in enumerate(ragged):
        unpadded = canvas[index : index + 1, :, : rows * PATCH, : columns * PATCH]
        text = ids[index : index + 1, : int(size[index].sum())]
        alone = model(unpadded, text, task="vqa", reduction=reduction)
        torch.testing.assert_close(together[index], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_image_embedding_serves_many_texts() -> None:
    model = tiny()
    canvas, _ = photos(((3, 5),))
    ids, size = texts(3)
    tokens = model.embed_image(model.patch_embed(canvas), (3, 5))
    fused = model.fuse(tokens.expand(3, -1, -1), ids, size)
    together = model.heads.logits(fused.pooled, "match")
    alone = model(canvas.expand(3, -1, -1, -1), ids, size, task="match")
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_fused_gives_the_position_of_each_token() -> None:
    model = tiny()
    canvas, _ = photos(((4, 4),))
    ids, _ = texts(1)
    tokens = model.embed_image(model.patch_embed(canvas), (4, 4))
    for reduction in (TOME, PUMER):
        fused = model.fuse(tokens, ids, reduction=reduction)
        assert fused.text.shape == ids.shape
        assert fused.image.shape == (1, 17)
        assert fused.text[0, 0] == 0
        positions = torch.cat([fused.text, fused.image], 1)
        kept = positions[positions >= 0]
        assert kept.max() < 26 - 6 + 1
        assert len(kept.unique()) == kept.max() + 1  # no position is empty
    with pytest.raises(ValueError, match="the plan has 5 counts; the matchers need 4"):
        model.fuse(tokens, ids, reduction=TOME._replace(plan=[1] * 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (30, 32)}, "do not tile"),
        ({"heads_per_layer": 5}, "does not divide into 5 heads"),
        ({"layers": (4,)}, "reducing layers are 0 to 3"),
        ({"modalities": 2}, "needs 3 modality embeddings"),
        ({"stem": ((8, 2), (16, 2))}, "multiply to 4"),
    ],
)
def test_invalid_configurations_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViltConfig.model_validate({**TINY.model_dump(), **changes})
