"""Train the embedded dual encoder: a tiny SigLIP on the world of scenes.

    python -m models.training.scenes_retrieval train
    python -m models.training.scenes_retrieval checkpoint

Images and their descriptions are drawn together, others apart (CLIP, Radford et al. 2021). Beside
that, each patch is asked what it shows, and each vector, of image and text alike, which attributes
the scene's things have together: a dense signal, so that an hour on two cores is enough. The image
tower begins with the weights of the ViLT of the same world (`models.training.scenes teacher`) where
these are at hand. For most steps it sees all the patches with things but only some of the others;
the last ones see whole images, at random reductions, with ToMe in the loop.

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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from models.demo import scenes
from models.dual import DualConfig, DualEncoder
from models.reduction.schedule import plan_for
from models.reduction.tome import ToMe
from models.text_tower import TextConfig
from models.training.mixed_precision import MixedPrecision
from models.training.retrieval_data import (
    FACTS,
    GRID,
    KINDS,
    MOST_TEXT,
    PATCH,
    TEXT,
    Batch,
    Batches,
    Gallery,
    encoded,
    held_out,
    pixels,
)
from models.training.run import Run, Settings
from models.training.scenes_losses import normalised
from models.training.scenes_network import waves
from models.vit import VisionConfig

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
BATCH = 128
SETTINGS = Settings(
    steps=3200, rate=1e-3, seed=0, patches=72, masked=2500, reductions=(0.0, 0.65)
)
EVERY = 250
REPORTED = (0.0, 0.4)


class Probes(nn.Module):
    """Dense supervision, left out of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(KINDS) + 2 * GRID))
                for name in ("middle", "last")
            }
        )
        # One reading for both towers: what it learns of one, the other can use.
        self.facts = nn.Linear(VECTOR, FACTS)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(
        self,
        middle: Tensor,
        last: Tensor,
        vectors: tuple[Tensor, Tensor],
        batch: Batch,
        chosen: Tensor,
    ) -> Tensor:
        """The loss.

        Args:
            middle, last: patches (B, P, D) halfway and behind the last layer.
            vectors: (B, width) of images and texts.
            chosen: (B, P) indexes of the patches.
        """
        loss = torch.zeros(())
        for tokens, probe in ((middle, self.shown["middle"]), (last, self.shown["last"])):
            *kinds, rows, columns = probe(tokens).float().split([*KINDS, GRID, GRID], dim=-1)
            for at, kind in enumerate(kinds):
                wanted = batch.shown[:, at].gather(1, chosen)
                loss = loss + F.cross_entropy(kind.flatten(0, 1), wanted.flatten())
            loss = loss + 0.25 * F.cross_entropy(rows.flatten(0, 1), chosen.flatten() // GRID)
            loss = loss + 0.25 * F.cross_entropy(columns.flatten(0, 1), chosen.flatten() % GRID)
        for vector in vectors:
            read = self.facts(self.scale * vector).float()
            loss = loss + 10.0 * F.binary_cross_entropy_with_logits(read, batch.facts)
        return loss


def initialised(teacher: Path | None = None) -> DualEncoder:
    """A new network.

    Args:
        teacher: the file of the ViLT's training, whose image side is taken; None for none.
    """
    model = cast(DualEncoder, DualEncoder(CONFIG).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    with torch.no_grad():
        model.image.pos_embed[:] = 0.5 * waves(CONFIG.image.grid, WIDTH)
        model.logit_scale.fill_(np.log(14.0))
    nn.init.trunc_normal_(model.image.attn_pool.probe, std=0.5)
    for parameter in (model.text.words.weight, model.text.positions.weight):
        nn.init.trunc_normal_(parameter, std=0.1)
    if teacher is not None:
        kept = torch.load(teacher, weights_only=True)["average"]
        theirs = {name.removeprefix("module."): value for name, value in kept.items()}
        own = model.image.state_dict()
        for name in own:
            if name.startswith(("patch_embed.", "blocks.")):
                own[name] = theirs[name]
        own["pos_embed"] = theirs["pos_embed"][:, 1:] + theirs["modality.weight"][1]
        model.image.load_state_dict(own)
    return model


def train(out: Path) -> None:
    """Bring the run to its end."""
    torch.manual_seed(SETTINGS.seed)
    probes = Probes()
    file, teacher = out / "dual.pt", out / "teacher.pt"
    model = initialised(teacher if teacher.exists() and not file.exists() else None)
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
        contrast, dense, right = loss(model, probes, batch, run.step)
        run.update(contrast + (0.5 if run.step < SETTINGS.masked else 0.2) * dense)
        sums += np.array([contrast.item(), dense.item(), right])
        counted += 1
        if run.step % 50 == 0:
            said = {"step": run.step, "seconds": round(time.monotonic() - begun)}
            print(json.dumps({**said, "losses": (sums / counted).round(3).tolist()}), flush=True)
            sums, counted = np.zeros(3), 0
        if run.step % EVERY == 0 or run.step == SETTINGS.steps:
            run.save()
            for name, network in (("raw", model), ("average", run.averaged)):
                found = [f"{100 * recall(network, gallery, by):.1f}" for by in REPORTED]
                print(f"recall@1 {name}: {' '.join(found)}", flush=True)


def loss(
    model: DualEncoder, probes: Probes, batch: Batch, step: int
) -> tuple[Tensor, Tensor, float]:
    """The contrast, the probes' loss, and the share of texts that find their image in the batch."""
    tower, count = model.image, CONFIG.image.patches
    random = np.random.default_rng((SETTINGS.seed, step, 1))
    reduction = 0.0
    generator = torch.Generator().manual_seed(step)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = tower.embed(tower.patch_embed(normalised(batch.pixels)))
        if step < SETTINGS.masked:
            draw = torch.rand(len(x), count, generator=generator)
            order = (draw + (batch.shown[:, 0] > 0)).argsort(dim=1, descending=True)
            chosen = order[:, : SETTINGS.patches]
            x = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, WIDTH))
        else:
            chosen = torch.arange(count).expand(len(x), -1)
            if random.random() < 0.6:
                reduction = float(random.uniform(*SETTINGS.reductions))
        seen: dict[int, Tensor] = {}
        depth = CONFIG.image.depth
        hooks = [
            tower.blocks[at].register_forward_hook(
                lambda _module, _inputs, output, at=at: seen.__setitem__(at, output.x)
            )
            for at in (depth // 2 - 1, depth - 1)
        ]
        plan = plan_for(CONFIG.image.workload("tome"), reduction) if reduction else None
        matchers = [ToMe() for _ in range(depth)] if reduction else None
        out = tower.classify(x, plan, matchers, True, MixedPrecision())
        for hook in hooks:
            hook.remove()
        images = F.normalize(out.logits.float(), dim=-1)
        texts = model.embed_texts(batch.ids, batch.size, run=MixedPrecision()).float()
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        middle, last = seen.values()
        if reduction:  # what merged tokens show is not asked
            middle, last = middle[:, :0], last[:, :0]
            dense = torch.zeros(())
        else:
            dense = probes(middle, last, (images, texts), batch, chosen)
    logits = model.logit_scale.exp().clamp_max(100) * images @ texts.T
    right = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    return contrast, dense, float((logits.argmax(0) == right).float().mean())


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
            texts.append(model.embed_texts(*encoded(gallery.texts[part]), run=MixedPrecision()).float())
    best = (torch.cat(texts) @ torch.cat(images).T).argmax(1)
    return float((best == torch.arange(len(best))).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("phase", choices=("train",))
    parser.add_argument("--out", type=Path, default=Path("build/scenes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out)


if __name__ == "__main__":
    main()
