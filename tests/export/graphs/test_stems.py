"""Stems of graphs equal the network's patch embedding of normalised pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from tokenfold.export.graphs.stems import NormalisedStem, PatchProduct, stem
from tokenfold.export.reference import normalised
from tokenfold.export.verification.inputs import random_images

CONVOLUTIONS = {"stem": ((8, 2), (16, 2), (16, 2))}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, PatchProduct),
        ({"patch_bias": False}, PatchProduct),
        (CONVOLUTIONS, NormalisedStem),
    ],
)
def test_raw_pixels_give_the_patches_of_normalised_pixels(
    changes: dict[str, Any], kind: type[nn.Module]
) -> None:
    embed = tiny.checkpoint(**changes).model.patch_embed
    module = stem(embed, tiny.PREPROCESS, torch.float32).eval()
    assert isinstance(module, kind)
    images = random_images(tiny.SIZE, 3)
    with torch.inference_mode():
        patches = module(torch.from_numpy(images))
        expected = embed(normalised(images, tiny.PREPROCESS))
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_weights_are_not_subnormal() -> None:
    embed = tiny.checkpoint().model.patch_embed
    module = stem(embed, tiny.PREPROCESS, torch.float16)
    assert isinstance(module, PatchProduct)
    assert module.scale == 1 / 255
    assert module.linear.weight.dtype == torch.float16
    images = random_images(tiny.SIZE, 2)
    with torch.inference_mode():
        patches = module(torch.from_numpy(images)).float()
        expected = embed(normalised(images, tiny.PREPROCESS))
    torch.testing.assert_close(patches, expected, atol=2e-2, rtol=2e-2)
    dtypes = {weight.dtype for weight in embed.parameters()}
    assert dtypes == {torch.float32}, "the network itself is not converted"
