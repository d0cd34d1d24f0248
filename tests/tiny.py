"""Networks small enough to export in a test."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints.checkpoint import Checkpoint, DualCheckpoint, PairCheckpoint
from tokenfold.models.networks.dual import DualConfig, DualEncoder
from tokenfold.models.networks.meter import Meter, MeterConfig
from tokenfold.models.networks.vilt import Vilt, ViltConfig
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer

SIZE = (32, 32)
LABELS = ("ant", "bee", "cat", "dog", "elk")
PREPROCESS = Preprocess(size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
WORDS = ("is", "it", "an", "a", "or", "what", "two", *LABELS)

M = TypeVar("M", bound=nn.Module)


def checkpoint(seed: int = 0, **changes: Any) -> Checkpoint:
    """Return a ViT of three layers and 17 tokens with random weights."""
    fields = {
        "image_size": SIZE,
        "patch_size": 8,
        "dim": 48,
        "depth": 3,
        "heads": 3,
        "mlp_dim": 96,
        "classes": len(LABELS),
    }
    model = drawn(VisionTransformer(VisionConfig.model_validate(fields | changes)), seed)
    return Checkpoint(model, PREPROCESS, LABELS)


def pair_checkpoint(seed: int = 0, **changes: Any) -> PairCheckpoint:
    """Return the checkpoint of `vilt`, with labels for each task except `match`, which ranks."""
    labels: dict[PairTask, tuple[str, ...]] = {
        "vqa": LABELS,
        "entail": ("contradiction", "neutral", "entailment"),
        "reason": ("false", "true"),
        "match": (),
    }
    model = vilt(seed, **changes)
    task_labels = {task: labels[task] for task in model.config.heads}
    text = word_level(WORDS, model.config.most_text)
    return PairCheckpoint(model, PREPROCESS, task_labels, text, weighted=True)


def vilt(seed: int = 0, **changes: Any) -> Vilt:
    """Return a ViLT of four layers, 17 image tokens, up to 12 text tokens and all heads."""
    fields = {
        "image_size": SIZE,
        "patch_size": 8,
        "dim": 48,
        "depth": 4,
        "heads_per_layer": 3,
        "mlp_dim": 96,
        "vocabulary": len(WORDS) + 4,
        "most_text": 12,
        "modalities": 3,
        "heads": {
            "vqa": {"classes": 5, "hidden": 64},
            "entail": {"classes": 3},
            "reason": {"classes": 2, "hidden": 64},
            "match": {"classes": 1},
        },
        "layers": (1, 2),
        "rates": (0.1, 0.3, 0.2),
    }
    return drawn(Vilt(ViltConfig.model_validate(fields | changes)), seed)


def meter_checkpoint(seed: int = 0, **changes: Any) -> PairCheckpoint:
    """Return a METER with two pairs of layers, 17 image tokens and up to 12 text tokens."""
    fields = {
        "form": "sequential",
        "protect_class": False,
        "image_size": SIZE,
        "patch_size": 8,
        "dim": 48,
        "heads_per_layer": 3,
        "mlp_dim": 96,
        "depth": 2,
        "vision_depth": 1,
        "text_depth": 1,
        "vocabulary": len(WORDS) + 4,
        "most_text": 12,
        "modalities": 3,
        "layers": (0, 1),
        "heads": {"vqa": {"classes": 5, "hidden": 64}, "reason": {"classes": 2, "hidden": 64}},
    }
    model = drawn(Meter(MeterConfig.model_validate(fields | changes)), seed)
    labels: dict[PairTask, tuple[str, ...]] = {"vqa": LABELS, "reason": ("false", "true")}
    return PairCheckpoint(model, PREPROCESS, labels, word_level(WORDS, 12), weighted=False)


def dual_checkpoint(seed: int = 0, *, siglip: bool = False, **changes: Any) -> DualCheckpoint:
    """Return the checkpoint of `dual`, with the same vocabulary as the others."""
    model = dual(seed, siglip=siglip, **changes)
    text = word_level(WORDS, model.config.text.most_text, padded=model.config.text.padded)
    return DualCheckpoint(model, PREPROCESS, text, "it is an {}")


def dual(seed: int = 0, *, siglip: bool = False, **changes: Any) -> DualEncoder:
    """Return two towers of three layers, 17 image tokens (SigLIP: 16) and up to 12 text tokens.

    Args:
        siglip: use SigLIP's attention pooling, padded texts and independent scores, not CLIP's.
        changes: fields of DualConfig; `image` and `text` contain fields of the towers.
    """
    shared = {"dim": 48, "depth": 3, "heads": 3, "mlp_dim": 96}
    image: dict[str, Any] = {**shared, "image_size": SIZE, "patch_size": 8, "classes": 40}
    text: dict[str, Any] = {**shared, "vocabulary": len(WORDS) + 4, "most_text": 12, "classes": 40}
    if siglip:
        image |= {
            "class_token": False,
            "pool": "attention",
            "classes": 0,
            "activation": "gelu_tanh",
        }
        text |= {"classes": 48, "padded": True, "projection_bias": True, "activation": "gelu_tanh"}
    else:
        clip = {"activation": "quick_gelu", "eps": 1e-5}
        image |= {**clip, "pre_norm": True, "patch_bias": False, "final_norm": "after"}
        image["head_bias"] = False
        text |= {**clip, "causal": True}
    fields = {"scores": "sigmoid" if siglip else "softmax"} | changes
    fields["image"] = image | changes.get("image", {})
    fields["text"] = text | changes.get("text", {})
    model = drawn(DualEncoder(DualConfig.model_validate(fields)), seed)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        model.logit_bias.fill_(-2.0 if siglip else 0.0)
    return model


def drawn(model: M, seed: int) -> M:
    """Set every weight and buffer of a network to random values; return it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                spread = 1.0 if weight.ndim < 2 or "embed" in name or "token" in name else 2.0
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * spread * 0.1 + (1.0 if _is_scale(name, weight) else 0.0))
    return model.eval()


def _is_scale(name: str, weight: torch.Tensor) -> bool:
    return name.endswith(("gamma", "running_var")) or (weight.ndim == 1 and name.endswith("weight"))
