"""Train the demo classifier: a small ViT for CIFAR-10, with token merging during training.

    python -m tokenfold.models.training.cifar \\
        --data ../shared/data/cifar10-train.zip --out build/cifar10

Every tenth image of each class (5,000 in all) is held out and never trained on. Half of the steps
run at a random reduction, so that the reduced levels lose little accuracy. The run is seeded, saves
after each epoch, and resumes from the last save.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import DEFAULT_LEVELS, plan_for
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.models.checkpoints.native import save
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.training.run import MixedPrecision

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
HOLD_OUT_EVERY = 10
CONFIG = VisionConfig(
    image_size=(32, 32),
    patch_size=4,
    dim=128,
    depth=8,
    heads=4,
    mlp_dim=384,
    classes=len(CLASSES),
    stem=((64, 2), (64, 1), (128, 2)),
)


PREPROCESS = Preprocess(size=CONFIG.image_size, interpolation="bicubic", mean=MEAN, std=STD)


class Images(NamedTuple):
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64."""

    pixels: Tensor
    labels: Tensor


def split(archive: zipfile.ZipFile) -> tuple[list[str], list[str]]:
    """Return the training and held-out files of an archive, named `train/<class>/<n>.jpg`."""
    parts: tuple[list[str], list[str]] = ([], [])
    counts = dict.fromkeys(CLASSES, 0)
    for name in sorted(archive.namelist()):
        if name.endswith(".jpg"):
            label = _label(name)
            parts[counts[label] % HOLD_OUT_EVERY == 0].append(name)
            counts[label] += 1
    return parts


def load(path: Path) -> tuple[Images, Images]:
    """Load the training and the held-out images of an archive."""
    with zipfile.ZipFile(path) as archive:
        train, held_out = (_decode(archive, names) for names in split(archive))
    return train, held_out


def _label(name: str) -> str:
    return name.split("/")[-2]


def _decode(archive: zipfile.ZipFile, names: list[str]) -> Images:
    pixels = []
    for name in names:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    labels = [CLASSES.index(_label(name)) for name in names]
    return Images(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))


def save_held_out(path: Path, target: Path) -> None:
    """Copy the held-out images, `<class>/<n>.jpg`, to an archive for export to measure on."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as held_out:
        for name in split(archive)[1]:
            held_out.writestr(name.partition("/")[2], archive.read(name))


def normalise(pixels: Tensor) -> Tensor:
    """Map pixels (B, 32, 32, 3) uint8 to normalised images (B, 3, 32, 32) float32."""
    x = pixels.float().div(255).sub(torch.tensor(MEAN)).div(torch.tensor(STD))
    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image randomly by up to four pixels, and flip it at random."""
    batch = x.shape[0]
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    dy, dx = torch.randint(0, 9, (2, batch, 1), generator=generator)
    flip = torch.rand(batch, 1, generator=generator) < 0.5
    side = torch.arange(32)
    rows = dy + side  # (B, 32)
    columns = dx + torch.where(flip, side.flip(0), side)
    index = torch.arange(batch)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)  # (B, 3, 32, 32), channels last in memory


def batches(data: Images, size: int, generator: torch.Generator) -> Iterator[Images]:
    """Yield the full batches of one epoch, in random order."""
    order = torch.randperm(len(data.labels), generator=generator)
    for indexes in order.split(size):
        if len(indexes) == size:
            yield Images(data.pixels[indexes], data.labels[indexes])


@torch.no_grad()
def accuracy(model: VisionTransformer, data: Images, reduction: float) -> float:
    """Return the accuracy, 0 to 1, at a reduction."""
    model.eval()
    plan = plan_for(CONFIG.workload("tome"), reduction)
    correct = 0
    for pixels, labels in zip(data.pixels.split(500), data.labels.split(500), strict=True):
        logits = model(normalise(pixels), plan, [ToMe()] * CONFIG.depth).logits
        correct += int((logits.argmax(-1) == labels).sum())
    return correct / len(data.labels)


def train(data: Path, out: Path, *, epochs: int, batch: int, rate: float, seed: int) -> None:
    """Train, and write a checkpoint and `held-out.zip` to `out`, both for export.

    Args:
        data: archive of CIFAR-10's training images.
        rate: peak learning rate.

    Raises:
        ValueError: `out` contains a run with other settings.
    """
    settings = {"epochs": epochs, "batch": batch, "rate": rate, "seed": seed}
    torch.manual_seed(seed)
    train_part, held_out = load(data)
    print(
        f"{len(train_part.labels)} images to train on, {len(held_out.labels)} held out", flush=True
    )
    model = VisionTransformer(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in (model.cls_token, model.pos_embed):
        torch.nn.init.trunc_normal_(parameter, std=0.02)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    per_epoch = len(train_part.labels) // batch
    total, warm_up = epochs * per_epoch, per_epoch
    workload = CONFIG.workload("tome")
    matchers = [ToMe()] * CONFIG.depth

    out.mkdir(parents=True, exist_ok=True)
    save_held_out(data, out / "held-out.zip")
    state_file = out / "training.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["settings"] != settings:
            raise ValueError(f"{out} contains a run with {state['settings']}, not {settings}")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["epoch"]
    for epoch in range(first, epochs):
        # One generator per epoch, so that a resumed run draws what an uninterrupted one would.
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        draw = random.Random(seed * 1000 + epoch)
        started, losses = time.monotonic(), 0.0
        model.train()
        for index, (pixels, labels) in enumerate(batches(train_part, batch, generator)):
            step = epoch * per_epoch + index
            progress = max(0.0, (step - warm_up) / max(1, total - warm_up))
            factor = min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * progress))
            for group in optimiser.param_groups:
                group["lr"] = rate * max(factor, 0.01)
            reduction = draw.uniform(0.2, 0.75) if draw.random() < 0.5 else 0.0
            x = augment(normalise(pixels), generator)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                plan = plan_for(workload, reduction)
                logits = model(x, plan, matchers, ops=MixedPrecision()).logits
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            losses += loss.item()
        # The checkpoint is written first: a run that is killed in between repeats the epoch.
        averaged = cast(VisionTransformer, average.module)
        scores = {
            level: accuracy(averaged, held_out, reduction)
            for level, reduction in DEFAULT_LEVELS.items()
        }
        save(out, Checkpoint(averaged, PREPROCESS, CLASSES))
        summary = {**settings, "epoch": epoch + 1, "held_out": scores}
        (out / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
        torch.save(
            {
                "settings": settings,
                "epoch": epoch + 1,
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
            state_file.with_suffix(".part"),
        )
        state_file.with_suffix(".part").replace(state_file)
        seconds = time.monotonic() - started
        print(
            f"epoch {epoch + 1}/{epochs}  {seconds:.0f} s  loss {losses / per_epoch:.3f}  "
            + "  ".join(f"{level} {100 * score:.2f}" for level, score in scores.items()),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10-train.zip"))
    parser.add_argument("--out", type=Path, default=Path("build/cifar10"))
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(
        options.data,
        options.out,
        epochs=options.epochs,
        batch=options.batch,
        rate=options.rate,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
