"""Networks small enough to export in a test."""

from __future__ import annotations

from typing import Any

import torch

from models.checkpoints.checkpoint import Checkpoint
from models.preprocess import Preprocess
from models.vit import VisionConfig, VisionTransformer

SIZE = (32, 32)
LABELS = ("ant", "bee", "cat", "dog", "elk")


def checkpoint(seed: int = 0, **changes: Any) -> Checkpoint:
    """A ViT of three layers and 17 tokens, random but far from degenerate."""
    fields = {
        "image_size": SIZE,
        "patch_size": 8,
        "dim": 48,
        "depth": 3,
        "heads": 3,
        "mlp_dim": 96,
        "classes": len(LABELS),
    }
    config = VisionConfig.model_validate(fields | changes)
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer(config)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                spread = 1.0 if weight.ndim < 2 or "embed" in name or "token" in name else 2.0
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * spread * 0.1 + (1.0 if _is_scale(name, weight) else 0.0))
    preprocess = Preprocess(size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return Checkpoint(model.eval(), preprocess, LABELS)


def _is_scale(name: str, weight: torch.Tensor) -> bool:
    return name.endswith(("gamma", "running_var")) or (weight.ndim == 1 and name.endswith("weight"))
