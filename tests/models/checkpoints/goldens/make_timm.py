"""Write `timm.json`: outputs of timm and torchvision for weights that numpy can reproduce.

The script needs timm and torchvision, the tests do not. Run it only to add networks:

    python tests/models/checkpoints/goldens/make_timm.py
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 4, "img_size": 16, "patch_size": 8}
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_base_patch16_224", {"global_pool": "avg"}),  # as in fine-tuned MAE
    ("vit_base_patch16_224", {"qk_norm": True, "qkv_bias": False, "mlp_ratio": 3}),
    ("vit_base_patch16_224", {"act_layer": "gelu_tanh", "img_size": [16, 24]}),
    ("vit_base_patch16_clip_224", {}),
    ("vit_base_patch16_clip_quickgelu_224", {}),
    ("vit_base_patch16_gap_224", {}),
    ("vit_small_patch14_dinov2", {}),
    ("vit_giant_patch14_dinov2", {"mlp_ratio": 5}),
    ("deit_small_patch16_224", {}),
    ("deit_small_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
]


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw weights from RandomState, whose stream numpy keeps stable."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    values = 0.3 * random.standard_normal(shape) + (0.5 if len(shape) == 1 else 0.0)
    return values.astype(np.float32)


def entry(model: Any, config: dict[str, Any] | None, size: tuple[int, int]) -> dict[str, Any]:
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(draw(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(weights)
    image = torch.from_numpy(draw("image", (2, 3, *size)))
    with torch.no_grad():
        logits = model.eval()(image)
    return {"config": config, "size": size, "shapes": shapes, "logits": logits.tolist()}


def main() -> None:
    import timm  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import torchvision  # type: ignore[import-not-found,import-untyped,unused-ignore]

    entries = {}
    for name, changes in NETWORKS:
        args = {**SMALL, **changes, "num_classes": 3}
        model = timm.create_model(name, **args)
        with tempfile.TemporaryDirectory() as folder:
            timm.models.save_for_hf(model, folder, model_args=args)
            config = json.loads((Path(folder) / "config.json").read_text())
        label = " ".join([name, *(f"{key}={value}" for key, value in changes.items())])
        size = args["img_size"]
        entries[label] = entry(model, config, (size, size) if isinstance(size, int) else size)
    model = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=16,
        num_classes=3,
    )  # fmt: skip
    entries["torchvision"] = entry(model, None, (16, 16))
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
    file = Path(__file__).with_name("timm.json")
    lines = [f"{json.dumps(label)}: {json.dumps(entries[label])}" for label in entries]
    networks = ",\n".join(lines)
    file.write_text(f'{{"versions": {json.dumps(versions)}, "networks": {{\n{networks}\n}}}}\n')


if __name__ == "__main__":
    main()
