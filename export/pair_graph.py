"""From a network that sees an image with a text to two ONNX graphs.

The first embeds images, whatever they are asked; the second takes an embedded image with a text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.export import onnx_file
from tokenfold.export.stems import stem
from tokenfold.export.symbolic import Symbolic, on_host
from tokenfold.models.networks.meter import Meter
from tokenfold.models.networks.vilt import Vilt
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe

MOST_SIDE = 64
"""Rows or columns of patches that an image of another grid than the network's may have."""

PairMatchers = Sequence[Matcher | PuMer | None]


def pair_matchers(workload: PairWorkload) -> PairMatchers | None:
    """One matcher per layer, None for a layer that never reduces; None where none does."""
    if workload.method == "none":
        return None
    if workload.method == "tome":
        return [ToMe(class_token=True)] * workload.depth
    return [PuMer() if layer in workload.layers else None for layer in range(workload.depth)]


def counts(workload: PairWorkload, plan: Plan) -> Plan | None:
    """Of a plan, what those layers want that have a matcher: what a network in PyTorch takes."""
    if workload.method == "none":
        return None
    if workload.method == "tome":
        return plan
    return tuple(count for layer in workload.layers for count in plan[3 * layer : 3 * layer + 3])


class VisionGraph(nn.Module):
    """`image` (B, H, W, 3) uint8 to `image_tokens` (B, I, D) float32."""

    def __init__(
        self, model: Vilt | Meter, preprocess: Preprocess, dtype: torch.dtype = torch.float32
    ) -> None:
        """Wrap a network, which is left as it is."""
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
        """Trace it. A network that resizes its positions takes images of any whole patches."""
        height, width = self.model.config.image_size
        shapes: dict[int, Any] = {0: Dim("batch")}
        if isinstance(self.model, Vilt):
            # Both differ from the network's own, and from each other.
            height, width = height + self.side, width + 2 * self.side
            for axis, name in ((1, "rows"), (2, "columns")):
                shapes[axis] = self.side * Dim(name, min=1, max=MOST_SIDE)
        onnx_file.write(
            self,
            [torch.zeros(2, height, width, 3, dtype=torch.uint8)],
            path,
            input_names=["image"],
            output_names=["image_tokens"],
            dynamic_shapes=[shapes],
        )


class JointGraph(nn.Module):
    """Image tokens and a text to an output for each task, `pooled`, and both kinds of slots.

    With a head for `reason` the inputs `second` and `other` say whether it is the second image of
    a pair, and what the first one's pooled output was.
    """

    def __init__(
        self,
        model: Vilt | Meter,
        workload: PairWorkload,
        *,
        weighted: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap a network, which is left as it is.

        Args:
            workload: says by which method its layers reduce.
            weighted: whether tokens merge by size and attention counts sizes.
            dtype: of weights and tokens; sizes stay float32, and so does what comes out.
        """
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype
        self.workload = workload
        self.matchers = pair_matchers(workload)
        self.weighted = weighted
        self.tasks: list[PairTask] = list(model.config.heads)
        self.reasons = "reason" in model.heads

    def forward(
        self,
        image_tokens: Tensor,
        input_ids: Tensor,
        text_size: Tensor,
        plan: Tensor,
        second: Tensor | None = None,
        other: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        # An element of the plan stands where eager code has a number; Symbolic knows what to do.
        plan = on_host(plan, image_tokens)
        amounts: Any = counts(self.workload, tuple(torch.split(plan, 1)))  # type: ignore[arg-type]
        fused = self.model.fuse(
            image_tokens.to(self.dtype),
            input_ids,
            text_size,
            second=False if second is None else second,
            plan=amounts,
            matchers=self.matchers,
            weighted=self.weighted,
            ops=Symbolic(),
        )
        answers = []
        for task in self.tasks:
            seen = fused.pooled
            if task == "reason":
                assert other is not None
                seen = torch.cat([other.to(self.dtype), seen], dim=-1)
            answers.append(self.model.heads.logits(seen, task).float())
        return (*answers, fused.pooled.float(), fused.text, fused.image)

    @torch.no_grad()
    def write(self, path: Path) -> None:
        """Trace it, for any batch, text and number of image tokens."""
        own = self.workload
        batch, image = Dim("batch"), Dim("image", min=2)
        text = Dim("text", min=2, max=own.most_text)
        shapes: list[dict[int, Any] | None] = [
            {0: batch, 1: image},
            {0: batch, 1: text},
            {0: batch, 1: text},
            None,
        ]
        names = ["image_tokens", "input_ids", "text_size", "plan"]
        words = min(7, own.most_text)
        inputs = [
            torch.zeros(3, own.image, self.model.config.dim),
            torch.zeros(3, words, dtype=torch.int64),
            torch.ones(3, words),
            torch.ones(own.plan_length, dtype=torch.int64),
        ]
        if self.reasons:
            names += ["second", "other"]
            shapes += [None, {0: batch}]
            inputs += [
                torch.ones(1, dtype=torch.int64),
                torch.zeros(3, _seen(self.model.heads["reason"]) // 2),
            ]
        onnx_file.write(
            self,
            inputs,
            path,
            input_names=names,
            output_names=[*self.tasks, "pooled", "text_slots", "image_slots"],
            dynamic_shapes=shapes,
        )


def _seen(head: nn.Module) -> int:
    """Width of what a head takes."""
    return next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
