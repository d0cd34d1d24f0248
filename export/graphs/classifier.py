"""The graph of an image classifier: pixels and a plan in, logits and slots out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export.graphs import onnx_file
from tokenfold.export.graphs.stems import stem
from tokenfold.export.graphs.symbolic import Symbolic, on_host
from tokenfold.models.networks.vit import VisionTransformer
from tokenfold.models.reduction.matcher import Matcher


class ClassifierGraph(nn.Module):
    """`image` (B, H, W, 3) uint8 and `plan` (depth,) int64 to `logits` and `slots`."""

    def __init__(
        self,
        model: VisionTransformer,
        preprocess: Preprocess,
        matchers: Sequence[Matcher] | None,
        proportional: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a copy of a network.

        Args:
            matchers: one per layer; None for a graph that never reduces.
            proportional: whether attention counts token sizes.
            dtype: type of weights and tokens; sizes and returned logits stay float32.
        """
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.stem = stem(model.patch_embed, preprocess, dtype)
        self.matchers = matchers
        self.proportional = proportional

    def forward(self, image: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        plan = on_host(plan, image)
        if config.cut_edges:  # a convolution drops the edges by itself, a matrix product does not
            rows, columns = (side * config.patch_size for side in config.grid)
            image = image[:, :rows, :columns]
        x = self.model.embed(self.stem(image))
        # The elements of the plan are tensors where eager code has numbers; Symbolic takes both.
        counts: Sequence[Any] | None = None if self.matchers is None else torch.split(plan, 1)
        out = self.model.classify(x, counts, self.matchers, self.proportional, Symbolic())
        return out.logits.float(), out.slots

    def write(self, path: Path) -> None:
        """Trace the network for any batch size and write the graph."""
        write_image_graph(self, self.model, path, "logits")


def write_image_graph(
    graph: nn.Module, model: VisionTransformer, path: Path, output_name: str
) -> None:
    """Trace and write a graph with the inputs `image` and `plan`.

    Args:
        graph: the module to trace; returns (B, width) float32 and slots.
        model: the network whose images and plans the graph takes.
        output_name: name of the first output; the second is `slots`.
    """
    config = model.config
    onnx_file.write(
        graph,
        [
            torch.zeros(2, *config.image_size, 3, dtype=torch.uint8),
            torch.full((config.depth,), 2, dtype=torch.int64),
        ],
        path,
        input_names=["image", "plan"],
        output_names=[output_name, "slots"],
        dynamic_shapes=[{0: torch.export.Dim("batch")}, None],
    )
