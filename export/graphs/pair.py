"""The two graphs of an image-text network.

The first embeds an image independently of the text; the second combines an embedded image with a
text.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.export.graphs import onnx_file
from tokenfold.export.graphs.stems import stem
from tokenfold.export.graphs.symbolic import Symbolic, on_host
from tokenfold.export.matchers import matcher_counts, pair_matchers
from tokenfold.models.networks.meter import Meter
from tokenfold.models.networks.pair import PairReduction
from tokenfold.models.networks.vilt import Vilt

MAX_GRID_SIDE = 64
"""Largest number of patch rows or columns in an image whose grid differs from the network's."""


class VisionGraph(nn.Module):
    """`image` (B, H, W, 3) uint8 to `image_tokens` (B, I, D) float32."""

    def __init__(
        self, model: Vilt | Meter, preprocess: Preprocess, dtype: torch.dtype = torch.float32
    ) -> None:
        """Wrap a copy of a network."""
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.side = model.config.patch_size
        self.stem = stem(model.patch_embed, preprocess, dtype)

    def forward(self, image: Tensor) -> Tensor:
        _, height, width, _ = image.shape
        grid = (height // self.side, width // self.side)
        tokens: Tensor = self.model.embed_image(self.stem(image), grid, ops=Symbolic())
        return tokens.float()

    def write(self, path: Path) -> None:
        """Trace the network and write the graph.

        The graph takes any batch size, and any grid of patches where the network resizes its
        position embedding (ViLT).
        """
        height, width = self.model.config.image_size
        shapes: dict[int, Any] = {0: Dim("batch")}
        if isinstance(self.model, Vilt):
            # Height and width differ from the network's size and from each other, so that the
            # tracer keeps all of them apart.
            height, width = height + self.side, width + 2 * self.side
            for axis, name in ((1, "rows"), (2, "columns")):
                shapes[axis] = self.side * Dim(name, min=1, max=MAX_GRID_SIDE)
        onnx_file.write(
            self,
            [torch.zeros(2, height, width, 3, dtype=torch.uint8)],
            path,
            input_names=["image"],
            output_names=["image_tokens"],
            dynamic_shapes=[shapes],
        )


class JointGraph(nn.Module):
    """Image tokens and a text to one output per task, `pooled`, `text_slots` and `image_slots`.

    A network with a head for `reason` takes two more inputs: `second` is 1 for the second image of
    a pair, and `other` is then the pooled output of the first image.
    """

    def __init__(
        self,
        model: Vilt | Meter,
        workload: PairWorkload,
        *,
        weighted: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a copy of a network.

        Args:
            workload: has the method that chooses the matchers of the layers.
            weighted: whether tokens merge by size and attention counts sizes.
            dtype: type of weights and tokens; sizes and outputs stay float32.
        """
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype
        self.workload = workload
        self.matchers = pair_matchers(workload)
        self.weighted = weighted
        self.tasks: list[PairTask] = list(model.config.heads)
        self.has_reason = "reason" in model.heads

    def forward(
        self,
        image_tokens: Tensor,
        input_ids: Tensor,
        text_size: Tensor,
        plan: Tensor,
        second: Tensor | None = None,
        other: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        # The elements of the plan are tensors where eager code has numbers; Symbolic takes both.
        plan = on_host(plan, image_tokens)
        elements: Any = torch.split(plan, 1)
        counts = matcher_counts(self.workload, tuple(elements))
        reduction = None
        if counts is not None and self.matchers is not None:
            reduction = PairReduction(counts, self.matchers, self.weighted)
        fused = self.model.fuse(
            image_tokens.to(self.dtype),
            input_ids,
            text_size,
            second=False if second is None else second,
            reduction=reduction,
            ops=Symbolic(),
        )
        logits = []
        for task in self.tasks:
            head_input = fused.pooled
            if task == "reason":
                assert other is not None
                head_input = torch.cat([other.to(self.dtype), head_input], dim=-1)
            logits.append(self.model.heads.logits(head_input, task).float())
        return (*logits, fused.pooled.float(), fused.text, fused.image)

    @torch.no_grad()
    def write(self, path: Path) -> None:
        """Trace the network for any batch size, text length and number of image tokens."""
        workload = self.workload
        batch, image = Dim("batch"), Dim("image", min=2)
        text = Dim("text", min=2, max=workload.most_text)
        shapes: list[dict[int, Any] | None] = [
            {0: batch, 1: image},
            {0: batch, 1: text},
            {0: batch, 1: text},
            None,
        ]
        names = ["image_tokens", "input_ids", "text_size", "plan"]
        length = min(7, workload.most_text)
        inputs = [
            torch.zeros(3, workload.image, self.model.config.dim),
            torch.zeros(3, length, dtype=torch.int64),
            torch.ones(3, length),
            torch.ones(workload.plan_length, dtype=torch.int64),
        ]
        if self.has_reason:
            names += ["second", "other"]
            shapes += [None, {0: batch}]
            inputs += [
                torch.ones(1, dtype=torch.int64),
                torch.zeros(3, _input_width(self.model.heads["reason"]) // 2),
            ]
        onnx_file.write(
            self,
            inputs,
            path,
            input_names=names,
            output_names=[*self.tasks, "pooled", "text_slots", "image_slots"],
            dynamic_shapes=shapes,
        )


def _input_width(head: nn.Module) -> int:
    """Return the width of a head's input."""
    return next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
