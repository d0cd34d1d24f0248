"""From an image classifier to one ONNX graph: pixels and a plan in, logits and slots out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export import onnx_file
from tokenfold.export.stems import stem
from tokenfold.export.symbolic import Symbolic, on_host
from tokenfold.models.networks.vit import VisionTransformer
from tokenfold.models.reduction.matcher import Matcher


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
        self.stem = stem(model.patch_embed, preprocess, dtype)
        self.matchers = matchers
        self.proportional = proportional

    def forward(self, image: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        plan = on_host(plan, image)
        if config.cut_edges:  # a convolution leaves them out by itself, one matrix product does not
            rows, columns = (side * config.patch_size for side in config.grid)
            image = image[:, :rows, :columns]
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
    onnx_file.write(
        graph,
        (image, plan),
        path,
        input_names=["image", "plan"],
        output_names=["logits", "slots"],
        dynamic_shapes=({0: torch.export.Dim("batch")}, None),
    )
