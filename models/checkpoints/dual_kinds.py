"""CLIP and SigLIP: the configuration of each, independent of the format of its weights."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class DualKind(NamedTuple):
    """CLIP or SigLIP.

    Attributes:
        name: key of the default pre-processing, see `processors.default`.
        image, text: fields of the towers' configurations that differ from the defaults.
        scores: see `DualConfig`.
        template: published template of a label's text, see `DualCheckpoint`.
        tokenizer: repository on the hub whose tokenizer the published networks share.
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
        # As published, the norm is applied to the class token alone.
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
