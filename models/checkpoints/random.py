"""`random:NAME`: image classifiers with seeded random weights, for benchmarks and tests."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from tokenfold.models.checkpoints import processors
from tokenfold.models.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    numbered_labels,
    vision_config,
)
from tokenfold.models.networks.vit import VisionTransformer

PREFIX = "random:"
SEED = 0
CLASSES = 1000
DEFAULT_SIZE = 224
MAX_SIZE = 2048

# Width, depth, heads, hidden width of the MLP.
SIZES = {
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "g": (1536, 40, 24, 4096),
}
NAME = re.compile(r"(?P<network>[a-z0-9]+-(?P<size>ti|s|b|l|h|g)\d+d?)(?:-(?P<image>\d+))?")


M = TypeVar("M", bound=nn.Module)


class NetworkSeries(NamedTuple):
    """Networks that differ only in size.

    Attributes:
        processor: key of the default pre-processing, see `processors.default`.
        fields: fields of VisionConfig that differ from a plain ViT.
        members: size and patch size of each network.
    """

    processor: str
    fields: dict[str, Any]
    members: tuple[str, ...]


SERIES = {
    "vit": NetworkSeries("vit", {}, ("ti16", "s16", "s32", "b16", "b32", "l16", "l32", "h14")),
    "deit": NetworkSeries("deit", {}, ("ti16", "s16", "b16")),
    "deit-d": NetworkSeries(
        "deit", {"distill_token": True, "pool": "class+distill"}, ("ti16d", "s16d", "b16d")
    ),
    "deit3": NetworkSeries(
        "deit",
        {"layer_scale": True, "position_prefix": False},
        ("s16", "b16", "l16", "h14"),
    ),
    "mae": NetworkSeries("deit", {"pool": "mean", "final_norm": "after"}, ("b16", "l16", "h14")),
    "clip": NetworkSeries(
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
    "dinov2": NetworkSeries(
        "dinov2", {"layer_scale": True, "pool": "class+mean"}, ("s14", "b14", "l14", "g14")
    ),
}
NETWORKS = {
    f"{name.removesuffix('-d')}-{member}": name
    for name, series in SERIES.items()
    for member in series.members
}


def load(name: str, others: Sequence[str] = ()) -> Checkpoint:
    """Return the network of a name such as `vit-b16` or `vit-b16-384`, the same at every call.

    Weights are drawn so that activations keep their scale from layer to layer, attention is not
    uniform, and different images get different logits.

    Args:
        others: names of the networks that take texts too, for the message.

    Raises:
        CheckpointError: there is no such network, or its patches do not tile the image size.
    """
    match, side = parse_name(NAME, name, (*NETWORKS, *others), DEFAULT_SIZE)
    series = SERIES[NETWORKS[match["network"]]]
    dim, depth, heads, mlp_dim = SIZES[match["size"]]
    patch = match["network"].split("-")[1].removeprefix(match["size"]).removesuffix("d")
    network = vision_config(
        f"{PREFIX}{name}",
        image_size=(side, side),
        patch_size=int(patch),
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim,
        classes=CLASSES,
        gated_mlp=match["size"] == "g",
        **series.fields,
    )
    model = uninitialised(lambda: VisionTransformer(network))
    draw(model, SEED)
    preprocess = processors.default(series.processor, (side, side))
    return Checkpoint(model.eval(), preprocess, numbered_labels(CLASSES))


def parse_name(
    pattern: re.Pattern[str], name: str, allowed: Sequence[str], default_size: int
) -> tuple[re.Match[str], int]:
    """Parse the name of a network, without `random:`.

    Args:
        pattern: pattern with the groups `network` and `image`, an image size that may be absent.
        allowed: names of all networks, without image sizes.
        default_size: image size of a name without one, pixels.

    Returns:
        The match, and the side of the images in pixels.

    Raises:
        CheckpointError: there is no such network, or the images are too large.
    """
    match = pattern.fullmatch(name)
    if match is None or match["network"] not in allowed:
        raise CheckpointError(
            f"{PREFIX}{name}: no such network; allowed are {', '.join(allowed)}, each also with an "
            "image size, as in vit-b16-384"
        )
    side = int(match["image"] or default_size)
    if side > MAX_SIZE:
        raise CheckpointError(f"{PREFIX}{name}: images are at most {MAX_SIZE} pixels wide")
    return match, side


def uninitialised(build: Callable[[], M]) -> M:
    """Build a network whose weights are still to be drawn.

    Modules draw their initial weights, which takes seconds for a large network; on the meta device
    they draw nothing.
    """
    with torch.device("meta"):
        model = build()
    return model.to_empty(device="cpu")


@torch.no_grad()
def draw(model: nn.Module, seed: int) -> None:
    """Draw every parameter from a seed; linear layers keep the variance of their input."""
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
