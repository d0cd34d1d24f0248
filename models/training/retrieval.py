"""Train the demo dual encoder: a small SigLIP that retrieves scenes by their descriptions.

    python -m tokenfold.models.training.retrieval train
    python -m tokenfold.models.training.retrieval checkpoint

The contrastive loss pulls images and their descriptions together and pushes others apart (CLIP,
Radford et al. 2021). Besides, probes predict what each patch shows, and, from the vector of an
image or a text, which attributes the things of the scene have together. This dense supervision
makes half an hour on two cores enough. The image tower starts from the weights of the demo ViLT for
scenes. Most steps see all patches with things but only some of the others; the last steps see whole
images, at random reductions by ToMe.

The run is seeded, saves regularly, and resumes from the last save. `checkpoint` writes the network
for export, with a gallery of held-out scenes to measure it on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from tokenfold import scenes
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import plan_for
from tokenfold.models.checkpoints import native
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.models.networks.dual import DualConfig, DualEncoder
from tokenfold.models.networks.text_tower import TextConfig
from tokenfold.models.networks.vilt import Vilt
from tokenfold.models.networks.vit import VisionConfig
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.training.pair_data import PATCH
from tokenfold.models.training.pair_losses import MEAN, STD, normalise
from tokenfold.models.training.pair_network import sinusoids
from tokenfold.models.training.retrieval_data import (
    MAX_TEXT,
    TEXT,
    Gallery,
    RetrievalBatch,
    RetrievalBatches,
    encode,
    held_out,
    pixels,
    write_held_out,
)
from tokenfold.models.training.retrieval_losses import RetrievalProbes, losses
from tokenfold.models.training.run import (
    MixedPrecision,
    Run,
    StepResult,
    TrainingSettings,
    run_phase,
    train,
)

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
        most_text=MAX_TEXT,
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
SETTINGS = TrainingSettings(
    steps=1400, rate=1e-3, seed=0, patches=72, masked=900, reductions=(0.0, 0.65)
)
LOG_EVERY, SAVE_EVERY = 50, 250
REPORTED_REDUCTIONS = (0.0, 0.4)
# Scenes of the gallery that the demo network is measured on.
MEASURED = 1000


def initialise(vilt: Vilt | None = None) -> DualEncoder:
    """Return a network with initial weights.

    Args:
        vilt: trained ViLT for scenes, whose image side the image tower starts from; None to start
            from random weights.
    """
    model = cast(
        DualEncoder,
        DualEncoder(CONFIG).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    )
    with torch.no_grad():
        model.image.pos_embed[:] = 0.5 * sinusoids(CONFIG.image.grid, WIDTH)
        model.logit_scale.fill_(np.log(14.0))
    nn.init.trunc_normal_(model.image.attn_pool.probe, std=0.5)
    for parameter in (model.text.words.weight, model.text.positions.weight):
        nn.init.trunc_normal_(parameter, std=0.1)
    if vilt is not None:
        weights, source = model.image.state_dict(), vilt.state_dict()
        for name in weights:
            if name.startswith(("patch_embed.", "blocks.")):
                weights[name] = source[name]
        weights["pos_embed"] = source["pos_embed"][:, 1:] + source["modality.weight"][1]
        model.image.load_state_dict(weights)
    return model


def train_encoder(out: Path) -> None:
    """Train the network."""
    torch.manual_seed(SETTINGS.seed)
    probes = RetrievalProbes(WIDTH, VECTOR)
    file = out / "dual.pt"
    model = initialise(None if file.exists() else cast(Vilt, native.load(VILT).model))
    run = Run(model, probes, SETTINGS, file)
    gallery = held_out(1000, first=50_000)

    def step(batch: RetrievalBatch, number: int) -> StepResult:
        contrast, dense, batch_recall = losses(model, probes, batch, number, SETTINGS)
        loss = contrast + (0.5 if number < SETTINGS.masked else 0.2) * dense
        return StepResult(loss, (contrast.item(), dense.item(), batch_recall))

    def report() -> None:
        for name, network in (("raw", model), ("average", run.averaged)):
            recalls = (recall(network, gallery, reduction) for reduction in REPORTED_REDUCTIONS)
            print(
                f"recall@1 {name}: {' '.join(f'{100 * value:.1f}' for value in recalls)}",
                flush=True,
            )

    batches = RetrievalBatches(BATCH, SETTINGS.seed, run.step, SETTINGS.steps)
    train(run, batches, step, report, log_every=LOG_EVERY, save_every=SAVE_EVERY)


@torch.no_grad()
def recall(model: DualEncoder, gallery: Gallery, reduction: float) -> float:
    """Return the share of descriptions whose own scene ranks first, at a reduction."""
    model.eval()
    images, texts = [], []
    plan = plan_for(CONFIG.image.workload("tome"), reduction) if reduction else None
    matchers = [ToMe() for _ in range(CONFIG.image.depth)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for first in range(0, len(gallery.scenes), 100):
            part = slice(first, first + 100)
            x = normalise(pixels(gallery.scenes[part]))
            images.append(model.embed_images(x, plan, matchers, ops=MixedPrecision()).float())
            ids, size = encode(gallery.texts[part])
            texts.append(model.embed_texts(ids, size, ops=MixedPrecision()).float())
    best = (torch.cat(texts) @ torch.cat(images).T).argmax(1)
    return float((best == torch.arange(len(best))).float().mean())


def write_checkpoint(out: Path) -> None:
    """Write `retrieval-checkpoint/` and `retrieval-held-out.zip`, both for export."""
    run = Run(initialise(), RetrievalProbes(WIDTH, VECTOR), SETTINGS, out / "dual.pt")
    folder = out / "retrieval-checkpoint"
    side = (scenes.SIZE, scenes.SIZE)
    preprocess = Preprocess(size=side, interpolation="bicubic", mean=MEAN, std=STD)
    native.save(folder, DualCheckpoint(run.averaged.eval(), preprocess, TEXT, "A picture of a {}."))
    settings = {**SETTINGS._asdict(), "batch": BATCH}
    (folder / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    write_held_out(out / "retrieval-held-out.zip", held_out(MEASURED))


PHASES = {"train": train_encoder, "checkpoint": write_checkpoint}


def main() -> None:
    run_phase(__doc__, PHASES)


if __name__ == "__main__":
    main()
