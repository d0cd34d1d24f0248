"""`random:NAME`: an architecture with seeded random weights, for benches and tests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from tokenfold.models.checkpoints import processors
from tokenfold.models.checkpoints.checkpoint import Checkpoint, CheckpointError, vision_config
from tokenfold.models.vit import VisionTransformer

PREFIX = "random:"
SEED = 0
CLASSES = 1000
DEFAULT_SIZE = 224
LARGEST_SIZE = 2048

# Width, layers, heads, hidden width of the MLP.
SIZES = {
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "g": (1536, 40, 24, 4096),
}
NAME = re.compile(r"(?P<network>[a-z0-9]+-(?P<size>ti|s|b|l|h|g)\d+d?)(?:-(?P<image>\d+))?")


class Family(NamedTuple):
    """Networks that differ in size only.

    Attributes:
        kind: which usual pre-processing it has, see `processors`.
        fields: of VisionConfig, where they differ from a plain ViT.
        members: size and patch size.
    """

    kind: str
    fields: dict[str, Any]
    members: tuple[str, ...]


FAMILIES = {
    "vit": Family("vit", {}, ("ti16", "s16", "s32", "b16", "b32", "l16", "l32", "h14")),
    "deit": Family("deit", {}, ("ti16", "s16", "b16")),
    "deit-d": Family(
        "deit", {"distill_token": True, "pool": "class+distill"}, ("ti16d", "s16d", "b16d")
    ),
    "deit3": Family(
        "deit",
        {"layer_scale": True, "position_prefix": False},
        ("s16", "b16", "l16", "h14"),
    ),
    "mae": Family("deit", {"pool": "mean", "final_norm": "after"}, ("b16", "l16", "h14")),
    "clip": Family(
        "clip",
        {
            "activation": "quick_gelu",
            "pre_norm": True,
            "patch_bias": False,
            "final_norm": "none",
            "pool": "mean",
            "eps": 1e-5,
        },
        ("b32", "b16", "l14"),
    ),
    "dinov2": Family(
        "dinov2", {"layer_scale": True, "pool": "class+mean"}, ("s14", "b14", "l14", "g14")
    ),
}
NETWORKS = {
    f"{family.removesuffix('-d')}-{member}": family
    for family, facts in FAMILIES.items()
    for member in facts.members
}


def load(name: str, others: Sequence[str] = ()) -> Checkpoint:
    """The network of a name such as `vit-b16` or `vit-b16-384`, the same at every call.

    Weights are drawn so that activations keep their scale from layer to layer, attention is not
    uniform, and different images get different logits.

    Args:
        others: networks that are not for images alone, for the message.

    Raises:
        CheckpointError: no such network, or an image size that its patches do not tile.
    """
    found = NAME.fullmatch(name)
    if found is None or found["network"] not in NETWORKS:
        raise CheckpointError(
            f"{PREFIX}{name}: no such network; there are {', '.join((*NETWORKS, *others))}, each "
            "also with an image size, as in vit-b16-384"
        )
    family = FAMILIES[NETWORKS[found["network"]]]
    dim, depth, heads, mlp_dim = SIZES[found["size"]]
    side = int(found["image"] or DEFAULT_SIZE)
    if side > LARGEST_SIZE:
        raise CheckpointError(f"{PREFIX}{name}: images are at most {LARGEST_SIZE} pixels wide")
    patch = found["network"].split("-")[1].removeprefix(found["size"]).removesuffix("d")
    network = vision_config(
        f"{PREFIX}{name}",
        image_size=(side, side),
        patch_size=int(patch),
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim,
        classes=CLASSES,
        gated_mlp=found["size"] == "g",
        **family.fields,
    )
    # On no device first: drawing the weights of a large network twice takes seconds.
    with torch.device("meta"):
        model = VisionTransformer(network)
    model.to_empty(device="cpu")
    draw(model, SEED)
    labels = tuple(f"LABEL_{index}" for index in range(CLASSES))
    return Checkpoint(model.eval(), processors.usual(family.kind, (side, side)), labels)


@torch.no_grad()
def draw(model: nn.Module, seed: int) -> None:
    """Fill every parameter from a seed; linear layers keep the variance of their input."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith(".gamma") or (parameter.ndim == 1 and name.endswith(".weight")):
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.normal_(0.0, 0.02, generator=generator)
        elif parameter.ndim == 3:  # class token, distillation token, positions
            parameter.normal_(0.0, 0.5, generator=generator)
        else:
            parameter.normal_(0.0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
