"""What a timm architecture's name says that its weights do not: heads, activation, norms' eps."""

from __future__ import annotations

import re
from typing import NamedTuple

from tokenfold.models.blocks import Activation
from tokenfold.models.checkpoints.checkpoint import CheckpointError

# Width, layers, heads.
SIZES = {
    "tiny": (192, 12, 3),
    "xsmall": (256, 10, 4),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
    "gigantic": (1664, 48, 16),
}
PLUS = (896, 12, 14)
DINOV2_GIANT = (1536, 40, 24)
GAP_BASE_HEADS = 16

# ViT-H, g and G have 16 wider heads; everything else that is published has heads of 64.
WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16}
HEAD_WIDTH = 64

NAME = re.compile(
    rf"(?P<family>vit|deit3?)_(?P<size>{'|'.join(SIZES)})_(?P<distilled>distilled_)?"
    r"patch(?P<patch>\d+)_(?P<plus>plus_)?(?P<variant>clip_quickgelu_|clip_|gap_)?"
    r"(?P<tail>\d+|dinov2)(?:_in21k|_miil)?(?:\.\w+)?"
)
SUPPORTED = (
    "vit_SIZE_patchN_N, vit_..._clip_N, vit_..._clip_quickgelu_N, vit_..._gap_N, vit_..._dinov2, "
    f"deit_SIZE_[distilled_]patchN_N and deit3_SIZE_patchN_N, SIZE being {', '.join(SIZES)}"
)


class Architecture(NamedTuple):
    """One of timm's ViTs; width, depth and patch size are None where the name does not decide."""

    name: str
    dim: int | None
    depth: int | None
    heads: int
    patch_size: int | None
    activation: Activation = "gelu"
    eps: float = 1e-6

    @property
    def clip(self) -> bool:
        return "_clip_" in self.name

    @property
    def deit(self) -> bool:
        return self.name.startswith("deit")


def parse(name: str) -> Architecture:
    """The architecture of a name such as `vit_base_patch16_224`, with or without a tag.

    Raises:
        CheckpointError: it is not one of those supported, which the message lists.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"the architecture is {name!r}; supported are {SUPPORTED}")
    return _architecture(found)


def guess(file_name: str) -> Architecture | None:
    """The architecture that a file's name starts with, as those of the official DeiT files do."""
    found = NAME.match(file_name)
    if found is None or file_name[found.end() : found.end() + 1].isalnum():
        return None
    return _architecture(found)


def heads_of(dim: int) -> int | None:
    """Heads of a published network of this width, None if there is none; shapes do not say it."""
    if dim in WIDE_HEADS:
        return WIDE_HEADS[dim]
    return None if dim % HEAD_WIDTH else dim // HEAD_WIDTH


def _architecture(found: re.Match[str]) -> Architecture:
    size, variant = found["size"], found["variant"] or ""
    dim, depth, heads = SIZES[size]
    if found["plus"]:
        dim, depth, heads = PLUS
    if found["tail"] == "dinov2" and size == "giant":
        dim, depth, heads = DINOV2_GIANT
    if variant == "gap_" and size == "base":
        heads = GAP_BASE_HEADS
    return Architecture(
        name=found[0],
        dim=dim,
        depth=depth,
        heads=heads,
        patch_size=int(found["patch"]),
        activation="quick_gelu" if variant == "clip_quickgelu_" else "gelu",
        eps=1e-5 if variant.startswith("clip_") else 1e-6,
    )
