"""From a network to one ONNX graph: pixels and a plan in, logits and slots out."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.plugins.functions import DOMAIN, OPSET, functions
from export.symbolic import Symbolic
from models.preprocess import Preprocess
from models.reduction.matcher import Matcher
from models.vit import PatchEmbed, VisionTransformer

EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights from which on they are kept outside the graph's file."""


class Patches(nn.Module):
    """Patch embedding of raw pixels as one matrix product, normalisation folded into its weights.

    A transpose of bytes and a product are faster than a convolution after four passes over floats.
    """

    def __init__(self, embed: PatchEmbed, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        kernel = embed.proj.weight.detach().double()  # (D, 3, p, p)
        mean, std = _columns(preprocess)
        weight = kernel / std.double()
        bias = -(weight * mean.double()).sum((1, 2, 3))
        if embed.proj.bias is not None:
            bias = bias + embed.proj.bias.detach().double()
        # Weights over 255 would fall below float16's normal numbers; there the pixels are scaled.
        self.scale = 1 / 255 if dtype == torch.float16 else None
        if self.scale is None:
            weight = weight / 255
        dim, _, self.side, _ = kernel.shape
        self.linear = nn.Linear(3 * self.side**2, dim)
        self.linear.weight.data = weight.permute(0, 2, 3, 1).reshape(dim, -1).to(dtype)
        self.linear.bias.data = bias.to(dtype)

    def forward(self, image: Tensor) -> Tensor:
        p = self.side
        _, height, width, _ = image.shape
        x = image.reshape(-1, height // p, p, width // p, 3 * p)
        x = x.transpose(2, 3).reshape(-1, (height // p) * (width // p), 3 * p * p)
        x = x.to(self.linear.weight.dtype)
        out: Tensor = self.linear(x if self.scale is None else x * self.scale)
        return out  # (B, patches, D)


class Pixels(nn.Module):
    """Any other stem, after normalisation."""

    def __init__(self, stem: nn.Module, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = stem
        self.dtype = dtype
        mean, std = _columns(preprocess)
        self.scale = nn.Buffer(1 / (255 * std))
        self.shift = nn.Buffer(-mean / std)

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        out: Tensor = self.stem(x.to(self.dtype))
        return out  # (B, patches, D)


def _columns(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (3, 1, 1) each."""
    return torch.tensor(preprocess.mean)[:, None, None], torch.tensor(preprocess.std)[:, None, None]


class Graph(nn.Module):
    """`image` (B, H, W, 3) uint8 and `plan` (depth,) int64 to `logits` and `slots`."""

    def __init__(
        self,
        model: VisionTransformer,
        preprocess: Preprocess,
        matchers: Sequence[Matcher] | None,
        proportional: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a network, which is left as it is.

        Args:
            matchers: one per layer; None for a graph that never reduces.
            proportional: whether attention counts sizes.
            dtype: of weights and tokens; sizes stay float32, and so do the logits that come out.
        """
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        stem = model.patch_embed
        self.stem = (
            Patches(stem, preprocess, dtype)
            if isinstance(stem, PatchEmbed)
            else Pixels(self.model.patch_embed, preprocess, dtype)
        )
        self.matchers = matchers
        self.proportional = proportional

    def forward(self, image: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        x = self.model.embed(self.stem(image))
        # An element of the plan stands where eager code has a number; Symbolic knows what to do.
        counts: Sequence[Any] | None = None if self.matchers is None else torch.split(plan, 1)
        out = self.model.classify(x, counts, self.matchers, self.proportional, Symbolic())
        return out.logits.float(), out.slots


def export(graph: Graph, path: Path) -> None:
    """Write the graph, with the bodies of the ops that it uses."""
    config = graph.model.config
    image = torch.zeros(2, *config.image_size, 3, dtype=torch.uint8)
    plan = torch.full((config.depth,), 2, dtype=torch.int64)
    # The exporter warns of its own deprecations, and that there is no torchvision.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            (image, plan),
            input_names=["image", "plan"],
            output_names=["logits", "slots"],
            dynamic_shapes=({0: torch.export.Dim("batch")}, None),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    del model.functions[:]
    model.functions.extend(body for kind, body in functions().items() if kind in used)
    save(model, path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; weights of a large one go to a second file, for a protobuf ends at 2 GB."""
    if weights_size(model) < EXTERNAL_ABOVE:
        onnx.save(model, path)
    else:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=1024,
        )


def weights_size(model: onnx.ModelProto) -> int:
    """Bytes of the constants of a graph."""
    return sum(
        math.prod(weight.dims) * onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        for weight in model.graph.initializer
    )
