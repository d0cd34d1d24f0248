"""Train the embedded dual encoder: a tiny SigLIP on the world of scenes.

    python -m tokenfold.models.training.scenes_retrieval train
    python -m tokenfold.models.training.scenes_retrieval checkpoint

Images and their descriptions are drawn together, others apart (CLIP, Radford et al. 2021). Beside
that, each patch is asked what it shows, and each vector, of image and text alike, which attributes
the scene's things have together: a dense signal, so that half an hour on two cores is enough. The
image tower begins with the weights of the shipped ViLT of the same world. For most steps it sees
all the patches with things but only some of the others; the last ones see whole images, at random
reductions, with ToMe in the loop.

The run is seeded, saves as it goes, and goes on from there when started again. `checkpoint` writes
the network for export, with a gallery of held-out scenes to measure it on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from tokenfold import scenes
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import plan_for
from tokenfold.models.checkpoints import native
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.models.dual import DualConfig, DualEncoder
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.text_tower import TextConfig
from tokenfold.models.training.mixed_precision import MixedPrecision
from tokenfold.models.training.retrieval_data import (
    MOST_TEXT,
    TEXT,
    Batches,
    Gallery,
    encoded,
    held_out,
    pixels,
    write_held_out,
)
from tokenfold.models.training.retrieval_losses import Probes, losses
from tokenfold.models.training.run import Run, Settings
from tokenfold.models.training.scenes_data import PATCH
from tokenfold.models.training.scenes_losses import MEAN, STD, normalised
from tokenfold.models.training.scenes_network import waves
from tokenfold.models.vilt import Vilt
from tokenfold.models.vit import VisionConfig

WIDTH, VECTOR = 160, 256
CONFIG = DualConfig(
    image=VisionConfig(
        image_size=(scenes.SIZE, scenes.SIZE),
        patch_size=PATCH,
        dim=WIDTH,
        depth=6,
        heads=5,
        mlp_dim=480,
        classes=VECTOR,
        class_token=False,
        stem=((32, 2), (64, 2), (128, 2)),
        pool="attention",
    ),
    text=TextConfig(
        vocabulary=TEXT.vocabulary,
        most_text=MOST_TEXT,
        dim=WIDTH,
        depth=4,
        heads=5,
        mlp_dim=480,
        classes=VECTOR,
        projection_bias=True,
    ),
)
VILT = Path(__file__).parent.parent / "demo" / "checkpoints" / "scenes"
BATCH = 128
SETTINGS = Settings(steps=1400, rate=1e-3, seed=0, patches=72, masked=900, reductions=(0.0, 0.65))
EVERY = 250
REPORTED = (0.0, 0.4)
# Scenes of the gallery that the shipped network is measured on.
MEASURED = 1000


def initialised(vilt: Vilt | None = None) -> DualEncoder:
    """A new network.

    Args:
        vilt: of the same world, whose image side is taken; None for none.
    """
    made = DualEncoder(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = cast(DualEncoder, made)
    with torch.no_grad():
        model.image.pos_embed[:] = 0.5 * waves(CONFIG.image.grid, WIDTH)
        model.logit_scale.fill_(np.log(14.0))
    nn.init.trunc_normal_(model.image.attn_pool.probe, std=0.5)
    for parameter in (model.text.words.weight, model.text.positions.weight):
        nn.init.trunc_normal_(parameter, std=0.1)
    if vilt is not None:
        own, theirs = model.image.state_dict(), vilt.state_dict()
        for name in own:
            if name.startswith(("patch_embed.", "blocks.")):
                own[name] = theirs[name]
        own["pos_embed"] = theirs["pos_embed"][:, 1:] + theirs["modality.weight"][1]
        model.image.load_state_dict(own)
    return model


def train(out: Path) -> None:
    """Bring the run to its end."""
    torch.manual_seed(SETTINGS.seed)
    probes = Probes(WIDTH, VECTOR)
    file = out / "dual.pt"
    model = initialised(None if file.exists() else cast(Vilt, native.load(VILT).model))
    run = Run(model, probes, SETTINGS, file)
    loader = DataLoader(
        Batches(BATCH, SETTINGS.seed, run.step, SETTINGS.steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=8,
    )
    gallery = held_out(1000, first=50_000)
    begun, sums, counted = time.monotonic(), np.zeros(3), 0
    for batch in loader:
        model.train()
        contrast, dense, found = losses(model, probes, batch, run.step, SETTINGS)
        run.update(contrast + (0.5 if run.step < SETTINGS.masked else 0.2) * dense)
        sums += np.array([contrast.item(), dense.item(), found])
        counted += 1
        if run.step % 50 == 0:
            said = {"step": run.step, "seconds": round(time.monotonic() - begun)}
            print(json.dumps({**said, "losses": (sums / counted).round(3).tolist()}), flush=True)
            sums, counted = np.zeros(3), 0
        if run.step % EVERY == 0 or run.step == SETTINGS.steps:
            run.save()
            for name, network in (("raw", model), ("average", run.averaged)):
                shares = [f"{100 * recall(network, gallery, by):.1f}" for by in REPORTED]
                print(f"recall@1 {name}: {' '.join(shares)}", flush=True)


@torch.no_grad()
def recall(model: DualEncoder, gallery: Gallery, reduction: float) -> float:
    """Share of descriptions whose own scene comes first, at a reduction of the images."""
    model.eval()
    images, texts = [], []
    plan = plan_for(CONFIG.image.workload("tome"), reduction) if reduction else None
    matchers = [ToMe() for _ in range(CONFIG.image.depth)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for first in range(0, len(gallery.drawn), 100):
            part = slice(first, first + 100)
            x = normalised(pixels(gallery.drawn[part]))
            images.append(model.embed_images(x, plan, matchers, run=MixedPrecision()).float())
            read = encoded(gallery.texts[part])
            texts.append(model.embed_texts(*read, run=MixedPrecision()).float())
    best = (torch.cat(texts) @ torch.cat(images).T).argmax(1)
    return float((best == torch.arange(len(best))).float().mean())


def write_checkpoint(out: Path) -> None:
    """Write `retrieval-checkpoint/` and `retrieval-held-out.zip`, both for export."""
    run = Run(initialised(), Probes(WIDTH, VECTOR), SETTINGS, out / "dual.pt")
    folder = out / "retrieval-checkpoint"
    side = (scenes.SIZE, scenes.SIZE)
    preprocess = Preprocess(size=side, interpolation="bicubic", mean=MEAN, std=STD)
    native.save(folder, DualCheckpoint(run.averaged.eval(), preprocess, TEXT, "A picture of a {}."))
    told = {**SETTINGS._asdict(), "batch": BATCH}
    (folder / "training.json").write_text(json.dumps(told, indent=2) + "\n")
    write_held_out(out / "retrieval-held-out.zip", held_out(MEASURED))


PHASES = {"train": train, "checkpoint": write_checkpoint}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--out", type=Path, default=Path("build/scenes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    PHASES[options.phase](options.out)


if __name__ == "__main__":
    main()
