"""From a dual encoder to two ONNX graphs: one makes vectors of images, one of texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export import onnx_file
from tokenfold.export.graph import Graph
from tokenfold.export.symbolic import Symbolic
from tokenfold.models.networks.dual import DualEncoder
from tokenfold.models.networks.text_tower import TextTower
from tokenfold.models.reduction.matcher import Matcher


class ImageGraph(nn.Module):
    """`image` (B, H, W, 3) uint8 and `plan` (depth,) int64 to `vector` and `slots`."""

    def __init__(
        self,
        model: DualEncoder,
        preprocess: Preprocess,
        matchers: Sequence[Matcher] | None,
        proportional: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a network, which is left as it is; see `tokenfold.export.graph.Graph`."""
        super().__init__()
        self.tower = Graph(model.image, preprocess, matchers, proportional, dtype)

    def forward(self, image: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        embedding, slots = self.tower(image, plan)
        return F.normalize(embedding, dim=-1), slots

    def write(self, path: Path) -> None:
        """Trace it."""
        config = self.tower.model.config
        onnx_file.write(
            self,
            [
                torch.zeros(2, *config.image_size, 3, dtype=torch.uint8),
                torch.full((config.depth,), 2, dtype=torch.int64),
            ],
            path,
            input_names=["image", "plan"],
            output_names=["vector", "slots"],
            dynamic_shapes=[{0: Dim("batch")}, None],
        )


class TextGraph(nn.Module):
    """`input_ids` (B, T) int64 and `text_size` (B, T) float32 to `vector`."""

    def __init__(self, model: DualEncoder, dtype: torch.dtype = torch.float32) -> None:
        """Wrap a network, which is left as it is."""
        super().__init__()
        self.tower: TextTower = copy.deepcopy(model.text).to(dtype)

    def forward(self, input_ids: Tensor, text_size: Tensor) -> Tensor:
        embedding = self.tower(input_ids, text_size, ops=Symbolic())
        return F.normalize(embedding.float(), dim=-1)

    def write(self, path: Path) -> None:
        """Trace it, for any batch and any length up to the longest."""
        most = self.tower.config.most_text
        words = min(7, most)
        batch, text = Dim("batch"), Dim("text", min=2, max=most)
        onnx_file.write(
            self,
            [torch.zeros(3, words, dtype=torch.int64), torch.ones(3, words)],
            path,
            input_names=["input_ids", "text_size"],
            output_names=["vector"],
            dynamic_shapes=[{0: batch, 1: text}] * 2,
        )
