"""CLIP and SigLIP: what each computes, however its weights are kept."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class DualKind(NamedTuple):
    """One of the two.

    Attributes:
        name: which usual pre-processing it has, see `processors`.
        image, text: what differs from the towers' defaults, as fields of their configurations.
        scores: see `DualConfig`.
        template: what a label becomes a text by, as published.
        tokenizer: the repository of the hub whose vocabulary the published networks share.
    """

    name: Literal["clip", "siglip"]
    image: dict[str, Any]
    text: dict[str, Any]
    scores: Literal["softmax", "sigmoid"]
    template: str
    tokenizer: str


CLIP = DualKind(
    "clip",
    {
        "activation": "quick_gelu",
        "eps": 1e-5,
        "patch_bias": False,
        "pre_norm": True,
        # As published, of the class token alone.
        "final_norm": "after",
        "pool": "class",
        "head_bias": False,
    },
    {"activation": "quick_gelu", "eps": 1e-5, "causal": True},
    "softmax",
    "a photo of a {}.",
    "openai/clip-vit-base-patch32",
)
SIGLIP = DualKind(
    "siglip",
    {
        "activation": "gelu_tanh",
        "eps": 1e-6,
        "class_token": False,
        "pool": "attention",
        "classes": 0,
    },
    {"activation": "gelu_tanh", "eps": 1e-6, "padded": True, "projection_bias": True},
    "sigmoid",
    "This is a photo of {}.",
    "google/siglip-base-patch16-224",
)
