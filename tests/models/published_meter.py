"""A METER made of parts of `transformers`, and its weights with their published names.

BridgeTower's cross-modal layers are METER's.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from tokenfold.models.networks.cross import Form

DIM, HIDDEN, PATCH, SIDE = 128, 96, 8, 32  # heads of published networks are 64 wide
VOCABULARY, POSITIONS, PADDING = 30, 60, 1
CLASSES = {"vqa": 7, "snli": 3, "nlvr2": 2}


class PublishedMeter(nn.Module):
    """Random METER with three image layers, two text layers and three cross-modal pairs."""

    def __init__(self, *, images: int = 1) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "hidden_size": DIM,
            "intermediate_size": HIDDEN,
            "num_attention_heads": DIM // 64,
            "attn_implementation": "eager",
        }
        self.vision: Any = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                **common, num_hidden_layers=3, image_size=SIDE, patch_size=PATCH
            )
        )
        self.text: Any = transformers.RobertaModel(
            transformers.RobertaConfig(
                **common,
                num_hidden_layers=2,
                vocab_size=VOCABULARY,
                max_position_embeddings=POSITIONS,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                pad_token_id=PADDING,
            )
        )
        cross = transformers.BridgeTowerTextConfig(**common, layer_norm_eps=1e-12)
        layer: Any = BridgeTowerBertCrossLayer
        self.layers = nn.ModuleDict(
            {
                stream: nn.ModuleList(layer(cross, index) for index in range(3))
                for stream in ("text", "image")
            }
        )
        self.transforms = nn.ModuleDict({s: nn.Linear(DIM, DIM) for s in ("text", "image")})
        self.poolers = nn.ModuleDict({s: nn.Linear(DIM, DIM) for s in ("text", "image")})
        self.modality = nn.Embedding(1 + images, DIM)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear((4 if name == "nlvr2" else 2) * DIM, 2 * DIM),
                    nn.LayerNorm(2 * DIM),
                    nn.GELU(),
                    nn.Linear(2 * DIM, classes),
                )
                for name, classes in CLASSES.items()
                if images == 2 or name != "nlvr2"
            }
        )
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in self.parameters():
                centre = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
                parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))
        self.eval()

    def image_tokens(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to tokens (B, I, D)."""
        hidden = self.vision(image, interpolate_pos_encoding=True).last_hidden_state
        out: Tensor = self.vision.post_layernorm(hidden)
        return out

    def text_tokens(self, ids: Tensor) -> Tensor:
        """Map ids (B, T), padded with PADDING, to tokens (B, T, D)."""
        out: Tensor = self.text(ids, attention_mask=(ids != PADDING).long()).last_hidden_state
        return out

    def pooled(self, image: Tensor, ids: Tensor, form: Form, second: bool = False) -> Tensor:
        """Return the pooled output (B, 2 D)."""
        x = self.transforms["text"](self.text_tokens(ids)) + self.modality.weight[0]
        y = self.transforms["image"](self.image_tokens(image))
        y = y + self.modality.weight[2 if second else 1]
        absent = (ids == PADDING)[:, None, None, :]
        of_text = torch.zeros(absent.shape).masked_fill(absent, -10000.0)
        of_image = torch.zeros(len(y), 1, 1, y.shape[1])
        streams = zip(self.layers["text"], self.layers["image"], strict=True)  # type: ignore[call-overload]
        for text_layer, image_layer in streams:
            x1 = text_layer(x, y, of_text, of_image)[0]
            visible_text = x if form == "parallel" else x1
            y = image_layer(y, visible_text, of_image, of_text)[0]
            x = x1
        parts = [self.poolers["text"](x[:, 0]), self.poolers["image"](y[:, 0])]
        return torch.cat(parts, dim=-1).tanh()

    def official(self) -> dict[str, Tensor]:
        """Return a state dict with the names of the official files."""
        weights = _vision(self.vision.state_dict())
        weights |= {f"text_transformer.{k}": v for k, v in self.text.state_dict().items()}
        for stream, layers in self.layers.items():
            weights |= {
                f"cross_modal_{stream}_layers.{k}": v for k, v in layers.state_dict().items()
            }
        for kind in ("weight", "bias"):
            for stream in ("text", "image"):
                transform, pooler = self.transforms[stream], self.poolers[stream]
                weights[f"cross_modal_{stream}_transform.{kind}"] = getattr(transform, kind)
                weights[f"cross_modal_{stream}_pooler.dense.{kind}"] = getattr(pooler, kind)
        weights["token_type_embeddings.weight"] = self.modality.weight
        for name, head in self.heads.items():
            weights |= {f"{name}_classifier.{k}": v for k, v in head.state_dict().items()}
        # Weights of CLIP's text tower, which the official files also contain.
        weights["vit_model.positional_embedding"] = torch.zeros(5, 4)
        weights["vit_model.token_embedding.weight"] = torch.zeros(6, 4)
        weights |= {f"vit_model.ln_final.{kind}": torch.zeros(4) for kind in ("weight", "bias")}
        return {key: value.detach().clone() for key, value in weights.items()}

    def pumers(self) -> dict[str, Tensor]:
        """Return a state dict with the names of PuMer's folders."""
        weights = {}
        for key, value in self.official().items():
            if key.startswith("vit_model.visual."):
                key = key.replace("vit_model.visual.", "vit_model.")
            elif key.startswith(("vit_model.", "text_transformer.pooler.")):
                continue
            key = key.replace("snli_classifier", "ve_classifier")
            weights[key if "classifier" in key else f"meter.{key}"] = value
        return weights


def _vision(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of CLIP's image tower with the names of its code."""
    root = "vit_model.visual"
    weights = {
        f"{root}.conv1.weight": theirs["embeddings.patch_embedding.weight"],
        f"{root}.class_embedding": theirs["embeddings.class_embedding"],
        f"{root}.positional_embedding": theirs["embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        weights[f"{root}.ln_pre.{kind}"] = theirs[f"pre_layrnorm.{kind}"]
        weights[f"{root}.ln_post.{kind}"] = theirs[f"post_layernorm.{kind}"]
        for index in range(3):
            layer, block = f"encoder.layers.{index}", f"{root}.transformer.resblocks.{index}"
            parts = [theirs[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            weights[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, part_name in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                weights[f"{block}.{ours}.{kind}"] = theirs[f"{layer}.{part_name}.{kind}"]
    return weights
