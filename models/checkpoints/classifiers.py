"""Supported classifiers of Hugging Face: the network of each, and the names of its weights.

The names are those on disk, which `transformers` kept when it renamed its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.dual_names import huggingface_blocks
from tokenfold.models.checkpoints.weights import NameTable, add_layer
from tokenfold.models.networks.blocks import Activation
from tokenfold.models.networks.vit import VisionConfig

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class ClassifierSettings(BaseModel):
    """Fields of `config.json` that change the result, with the defaults of `transformers`."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: int = Field(default=768, ge=1)
    num_hidden_layers: int = Field(default=12, ge=1)
    num_attention_heads: int = Field(default=12, ge=1)
    intermediate_size: int = Field(default=3072, ge=1)
    mlp_ratio: float = Field(default=4, gt=0)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size

    def square_patch(self, where: str) -> int:
        """Return the side of the patches, pixels.

        Args:
            where: start of the message.

        Raises:
            CheckpointError: the patches are not square, or images do not have three channels.
        """
        if self.num_channels != 3:
            raise CheckpointError(f"{where}: num_channels is {self.num_channels}; supported is 3")
        if isinstance(self.patch_size, int):
            return self.patch_size
        height, width = self.patch_size
        if height != width:
            raise CheckpointError(
                f"{where}: patch_size is {self.patch_size}; supported are square patches"
            )
        return height


class Classifier(NamedTuple):
    """An architecture of Hugging Face.

    Attributes:
        processor: key of the default pre-processing, see `processors.default`.
        defaults: defaults of `config.json` that differ from those of `ClassifierSettings`.
        network: function from settings to the fields of VisionConfig that differ from a plain ViT.
        names: function from the network to the names of its weights.
        unused: prefixes of the weights that the classifier does not use.
    """

    processor: str
    defaults: dict[str, Any]
    network: Callable[[ClassifierSettings], dict[str, Any]]
    names: Callable[[VisionConfig], NameTable]
    unused: tuple[str, ...]


def _vit_network(_: ClassifierSettings) -> dict[str, Any]:
    return {}


def _deit_network(_: ClassifierSettings) -> dict[str, Any]:
    # Without a teacher the distillation token exists too, but no head uses it.
    return {"distill_token": True}


def _distilled_network(_: ClassifierSettings) -> dict[str, Any]:
    return {"distill_token": True, "pool": "class+distill"}


def _dinov2_network(settings: ClassifierSettings) -> dict[str, Any]:
    hidden = int(settings.hidden_size * settings.mlp_ratio)
    if settings.use_swiglu_ffn:
        # SwiGLU keeps two thirds of the width, rounded up to a multiple of 8.
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {
        "mlp_dim": hidden,
        "gated_mlp": settings.use_swiglu_ffn,
        "layer_scale": True,
        "pool": "class+mean",
    }


def _clip_network(_: ClassifierSettings) -> dict[str, Any]:
    # The classifier takes the mean of the patches directly after the last block: CLIP's
    # post_layernorm belongs to the class token, which the classifier does not use.
    return {"pre_norm": True, "patch_bias": False, "final_norm": "none", "pool": "mean"}


def _vit_names(prefix: str, heads: dict[str, str]) -> Callable[[VisionConfig], NameTable]:
    """Return the names that ViT, DeiT and DINOv2 share."""

    def names(network: VisionConfig) -> NameTable:
        dinov2 = prefix == "dinov2"
        embeddings = f"{prefix}.embeddings"
        table: NameTable = {
            "cls_token": (f"{embeddings}.cls_token",),
            "pos_embed": (f"{embeddings}.position_embeddings",),
        }
        if network.distill_token:
            table["dist_token"] = (f"{embeddings}.distillation_token",)
        add_layer(table, "patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
        for i in range(network.depth):
            ours, theirs = f"blocks.{i}", f"{prefix}.encoder.layer.{i}"
            attention = f"{theirs}.attention"
            add_layer(
                table, f"{ours}.norm1", f"{theirs}.{'norm1' if dinov2 else 'layernorm_before'}"
            )
            add_layer(
                table, f"{ours}.norm2", f"{theirs}.{'norm2' if dinov2 else 'layernorm_after'}"
            )
            parts = [f"{attention}.attention.{part}" for part in ("query", "key", "value")]
            add_layer(table, f"{ours}.attn.qkv", *parts, bias=network.qkv_bias)
            add_layer(table, f"{ours}.attn.proj", f"{attention}.output.dense")
            if not dinov2:
                fc1, fc2 = "intermediate.dense", "output.dense"
            elif network.gated_mlp:
                fc1, fc2 = "mlp.weights_in", "mlp.weights_out"
            else:
                fc1, fc2 = "mlp.fc1", "mlp.fc2"
            add_layer(table, f"{ours}.mlp.fc1", f"{theirs}.{fc1}")
            add_layer(table, f"{ours}.mlp.fc2", f"{theirs}.{fc2}")
            if network.layer_scale:
                table[f"{ours}.ls1.gamma"] = (f"{theirs}.layer_scale1.lambda1",)
                table[f"{ours}.ls2.gamma"] = (f"{theirs}.layer_scale2.lambda1",)
        add_layer(table, "norm", f"{prefix}.layernorm")
        for ours, head in heads.items():
            add_layer(table, ours, head)
        return table

    return names


def _clip_names(network: VisionConfig) -> NameTable:
    embeddings = "vision_model.embeddings"
    table: NameTable = {
        "cls_token": (f"{embeddings}.class_embedding",),
        "pos_embed": (f"{embeddings}.position_embedding.weight",),
        "patch_embed.proj.weight": (f"{embeddings}.patch_embedding.weight",),
    }
    add_layer(table, "norm_pre", "vision_model.pre_layrnorm")  # sic
    huggingface_blocks(table, "blocks", "vision_model.encoder.layers", network.depth)
    add_layer(table, "head", "classifier")
    return table


CLASSIFIERS: dict[str, Classifier] = {
    "ViTForImageClassification": Classifier(
        "vit", {}, _vit_network, _vit_names("vit", {"head": "classifier"}), ("vit.pooler.",)
    ),
    "DeiTForImageClassification": Classifier(
        "deit", {}, _deit_network, _vit_names("deit", {"head": "classifier"}), ("deit.pooler.",)
    ),
    "DeiTForImageClassificationWithTeacher": Classifier(
        "deit",
        {},
        _distilled_network,
        _vit_names("deit", {"head": "cls_classifier", "head_dist": "distillation_classifier"}),
        ("deit.pooler.",),
    ),
    "Dinov2ForImageClassification": Classifier(
        "dinov2",
        {"layer_norm_eps": 1e-6, "patch_size": 14},
        _dinov2_network,
        _vit_names("dinov2", {"head": "classifier"}),
        ("dinov2.embeddings.mask_token",),
    ),
    "CLIPForImageClassification": Classifier(
        "clip",
        {"layer_norm_eps": 1e-5, "patch_size": 32, "hidden_act": "quick_gelu"},
        _clip_network,
        _clip_names,
        ("vision_model.post_layernorm.", "vision_model.embeddings.position_ids"),
    ),
}
