"""The two graphs of a dual encoder: one makes vectors of images, one of texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.export.graphs import onnx_file
from tokenfold.export.graphs.classifier import ClassifierGraph, write_image_graph
from tokenfold.export.graphs.symbolic import Symbolic
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
        """Wrap a copy of the image tower; see `ClassifierGraph` for the arguments."""
        super().__init__()
        self.tower = ClassifierGraph(model.image, preprocess, matchers, proportional, dtype)

    def forward(self, image: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        embedding, slots = self.tower(image, plan)
        return F.normalize(embedding, dim=-1), slots

    def write(self, path: Path) -> None:
        """Trace the tower for any batch size and write the graph."""
        write_image_graph(self, self.tower.model, path, "vector")


class TextGraph(nn.Module):
    """`input_ids` (B, T) int64 and `text_size` (B, T) float32 to `vector`."""

    def __init__(self, model: DualEncoder, dtype: torch.dtype = torch.float32) -> None:
        """Wrap a copy of the text tower."""
        super().__init__()
        self.tower: TextTower = copy.deepcopy(model.text).to(dtype)

    def forward(self, input_ids: Tensor, text_size: Tensor) -> Tensor:
        embedding = self.tower(input_ids, text_size, ops=Symbolic())
        return F.normalize(embedding.float(), dim=-1)

    def write(self, path: Path) -> None:
        """Trace the tower for any batch size and text length, and write the graph."""
        max_length = self.tower.config.most_text
        length = min(7, max_length)
        batch, text = Dim("batch"), Dim("text", min=2, max=max_length)
        onnx_file.write(
            self,
            [torch.zeros(3, length, dtype=torch.int64), torch.ones(3, length)],
            path,
            input_names=["input_ids", "text_size"],
            output_names=["vector"],
            dynamic_shapes=[{0: batch, 1: text}] * 2,
        )
