"""Properties that only the name of a timm architecture determines: heads, activation, epsilon."""

from __future__ import annotations

import re
from typing import NamedTuple

from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.networks.blocks import Activation

# Width, depth, heads.
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

# ViT-H, g and G have 16 wider heads; all other published networks have heads of width 64.
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
    """A ViT of timm; width, depth and patch size are None if the name does not determine them."""

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
    """Parse the name of an architecture, such as `vit_base_patch16_224`, with or without a tag.

    Raises:
        CheckpointError: the architecture is not supported; the message lists those that are.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"the architecture is {name!r}; supported are {SUPPORTED}")
    return _architecture(match)


def guess(file_name: str) -> Architecture | None:
    """Return the architecture that a file name starts with, as official DeiT files do."""
    match = NAME.match(file_name)
    if match is None or file_name[match.end() : match.end() + 1].isalnum():
        return None
    return _architecture(match)


def heads_of(dim: int, hint: str = "") -> int:
    """Return the number of heads of published networks of this width; weights do not show it.

    Args:
        hint: end of the message.

    Raises:
        CheckpointError: no published network has this width.
    """
    if dim in WIDE_HEADS:
        return WIDE_HEADS[dim]
    if dim % HEAD_WIDTH:
        raise CheckpointError(f"the number of heads of a network of width {dim} is unknown{hint}")
    return dim // HEAD_WIDTH


def _architecture(match: re.Match[str]) -> Architecture:
    size, variant = match["size"], match["variant"] or ""
    dim, depth, heads = SIZES[size]
    if match["plus"]:
        dim, depth, heads = PLUS
    if match["tail"] == "dinov2" and size == "giant":
        dim, depth, heads = DINOV2_GIANT
    if variant == "gap_" and size == "base":
        heads = GAP_BASE_HEADS
    return Architecture(
        name=match[0],
        dim=dim,
        depth=depth,
        heads=heads,
        patch_size=int(match["patch"]),
        activation="quick_gelu" if variant == "clip_quickgelu_" else "gelu",
        eps=1e-5 if variant.startswith("clip_") else 1e-6,
    )
