"""From a network to one ONNX graph: pixels and a plan in, logits and slots out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.plugins.functions import DOMAIN, OPSET, VERSION, functions
from export.symbolic import Symbolic
from models.preprocess import Preprocess
from models.reduction.matcher import Matcher
from models.vit import PatchEmbed, VisionTransformer


class Patches(nn.Module):
    """Patch embedding of raw pixels as one matrix product, normalisation folded into its weights.

    A transpose of bytes and a product are faster than a convolution after four passes over floats.
    """

    def __init__(self, embed: PatchEmbed, preprocess: Preprocess) -> None:
        super().__init__()
        kernel = embed.proj.weight.detach().double()  # (D, 3, p, p)
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (preprocess.mean, preprocess.std))
        weight = kernel / (255 * std)
        bias = -(kernel * mean / std).sum((1, 2, 3))
        if embed.proj.bias is not None:
            bias = bias + embed.proj.bias.detach().double()
        dim, _, self.side, _ = kernel.shape
        self.linear = nn.Linear(3 * self.side**2, dim)
        self.linear.weight.data = weight.permute(0, 2, 3, 1).reshape(dim, -1).float()
        self.linear.bias.data = bias.float()

    def forward(self, image: Tensor) -> Tensor:
        p = self.side
        _, height, width, _ = image.shape
        x = image.reshape(-1, height // p, p, width // p, 3 * p)
        x = x.transpose(2, 3).reshape(-1, (height // p) * (width // p), 3 * p * p)
        out: Tensor = self.linear(x.to(self.linear.weight.dtype))
        return out  # (B, patches, D)


class Pixels(nn.Module):
    """Any other stem, after normalisation."""

    def __init__(self, stem: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.stem = stem
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None])
        self.register_buffer("shift", (-mean / std)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift  # type: ignore[operator, arg-type]
        out: Tensor = self.stem(x)
        return out  # (B, patches, D)


class Graph(nn.Module):
    """What is exported: `image` (B, H, W, 3) uint8 and `plan` (depth,) int64 to `logits`, `slots`."""

    def __init__(
        self,
        model: VisionTransformer,
        preprocess: Preprocess,
        matchers: Sequence[Matcher] | None,
        proportional: bool,
    ) -> None:
        super().__init__()
        self.model = model
        embed = model.patch_embed
        self.stem = (
            Patches(embed, preprocess) if isinstance(embed, PatchEmbed) else Pixels(embed, preprocess)
        )
        self.matchers = matchers
        self.proportional = proportional

    def forward(self, image: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
        x = self.model.embed(self.stem(image))
        counts = None if self.matchers is None else list(plan.split(1))
        out = self.model.classify(x, counts, self.matchers, self.proportional, Symbolic())  # type: ignore[arg-type]
        return out.logits, out.slots


def export(graph: Graph, path: Path) -> None:
    """Write the graph, with the bodies of the ops that it uses."""
    config = graph.model.config
    image = torch.zeros(2, *config.image_size, 3, dtype=torch.uint8)
    plan = torch.full((config.depth,), 2, dtype=torch.int64)
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
    onnx.save(model, path)
