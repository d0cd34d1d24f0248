"""What the networks of the world of scenes are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold import scenes
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.models.operators import Tokens
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.training.mixed_precision import MixedPrecision
from tokenfold.models.training.scenes_data import GRID, PHRASES, Batch
from tokenfold.models.training.scenes_network import WIDTH
from tokenfold.models.vilt import Vilt

MEAN = STD = (0.5, 0.5, 0.5)
# Layers behind which the patches say what they show, and whether the text mentions it.
SHOWS, FINDS = 1, (2, 4)
KINDS = (
    1 + len(scenes.SHAPES),
    1 + len(scenes.COLOURS),
    1 + len(scenes.SIZES),
    1 + len(scenes.TEXTURES),
)
MOST = 5
"""Things in a scene."""


class Probes(nn.Module):
    """Dense supervision: linear readings of the image tokens, left out of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(KINDS) + 1))
        self.found = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PHRASES)) for _ in FINDS
        )
        self.told = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PHRASES * (MOST + 1 + 2 * GRID))
        )
        self.middles = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PHRASES)) for _ in FINDS
        )
        self.where = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * GRID)) for _ in FINDS
        )

    def forward(
        self, layers: Mapping[int, Tensor], batch: Batch, chosen: Tensor | None, told: bool
    ) -> Tensor:
        """The loss.

        Args:
            layers: tokens (N, T + 1 + patches, D) behind some layers.
            chosen: (N, patches) indexes of the patches; None for all.
            told: whether the text's first token is asked for counts and places, too, and each patch
                where it is.
        """
        patches = batch.centre.shape[1]
        read = self.shown(layers[SHOWS][:, -patches:]).float()
        *kinds, centre = read.split([*KINDS, 1], dim=-1)
        loss = F.binary_cross_entropy_with_logits(centre.squeeze(-1), batch.centre)
        for at, kind in enumerate(kinds):
            loss = loss + F.cross_entropy(kind.flatten(0, 1), batch.shown[:, at].flatten())
        mentioned = batch.mentioned.clamp_min(0)
        loss = loss + 3.0 * _by_phrase(self.found, layers, batch, mentioned)
        if told:
            loss = loss + self._counts_and_places(layers[FINDS[-1]][:, 0], batch)
            loss = loss + self._where(layers, chosen, patches)
            # Of the things that each phrase describes, the middles: what there is to count.
            middles = mentioned * batch.centre.unsqueeze(1)
            loss = loss + 5.0 * _by_phrase(self.middles, layers, batch, middles)
        return loss

    def _where(
        self, layers: Mapping[int, Tensor], chosen: Tensor | None, patches: int
    ) -> Tensor | float:
        loss: Tensor | float = 0.0
        for probe, layer in zip(self.where, FINDS, strict=True):
            tokens = layers[layer][:, -patches:]
            at = torch.arange(patches).expand(len(tokens), -1) if chosen is None else chosen
            rows, columns = probe(tokens).float().flatten(0, 1).split(GRID, dim=-1)
            loss = loss + 0.25 * F.cross_entropy(rows, at.flatten() // GRID)
            loss = loss + 0.25 * F.cross_entropy(columns, at.flatten() % GRID)
        return loss

    def _counts_and_places(self, token: Tensor, batch: Batch) -> Tensor:
        read = self.told(token).float().unflatten(1, (PHRASES, -1)).flatten(0, 1)
        counts, rows, columns = read.split([MOST + 1, GRID, GRID], dim=-1)
        places = batch.places.flatten(0, 1)
        # Most phrases describe one thing; several are what has to be learnt.
        weight = torch.tensor([1.0, 1.0, 4.0, 4.0, 4.0, 4.0])
        return (
            F.cross_entropy(counts, batch.counts.flatten(), weight, ignore_index=-1)
            + 0.5 * F.cross_entropy(rows, places[:, 0], ignore_index=-1)
            + 0.5 * F.cross_entropy(columns, places[:, 1], ignore_index=-1)
        )


def _by_phrase(
    probes: nn.ModuleList, layers: Mapping[int, Tensor], batch: Batch, wanted: Tensor
) -> Tensor:
    """Binary cross entropy of what each phrase's probe reads in the patches, summed over layers.

    Args:
        wanted: (N, phrases, patches), 0 or 1; phrases that a text lacks do not count.
    """
    asked = (batch.mentioned >= 0).float()
    losses = []
    for probe, layer in zip(probes, FINDS, strict=True):
        found = probe(layers[layer][:, -wanted.shape[2] :]).float().transpose(1, 2)
        error = F.binary_cross_entropy_with_logits(found, wanted, reduction="none")
        losses.append((error * asked).sum() / asked.sum().clamp_min(1))
    return torch.stack(losses).sum()


def masked(batch: Batch, patches: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """A batch of fewer patches, and which: those with things first, then some of the others.

    Returns:
        The batch, its patch arrays cut down, and the patches' indexes (N, patches).
    """
    draw = torch.rand(batch.centre.shape, generator=generator)
    chosen = (draw + (batch.shown[:, 0] > 0)).argsort(dim=1, descending=True)[:, :patches]
    chosen = chosen.sort(dim=1).values

    def cut(of: Tensor) -> Tensor:
        return of.gather(2, chosen[:, None].expand(-1, of.shape[1], -1))

    return (
        batch._replace(
            shown=cut(batch.shown),
            centre=batch.centre.gather(1, chosen),
            mentioned=cut(batch.mentioned),
        ),
        chosen,
    )


def normalised(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float, channels last in memory."""
    x = pixels.permute(0, 3, 1, 2).float().div(255).sub(MEAN[0]).div(STD[0])
    return x.contiguous(memory_format=torch.channels_last)


class Answers(NamedTuple):
    """Logits of each task's texts (K, classes), and which answers they belong to (K)."""

    logits: dict[PairTask, Tensor]
    of: dict[PairTask, Tensor]


def answers(
    model: Vilt,
    batch: Batch,
    *,
    plan: Plan | None = None,
    method: Literal["pumer", "tome"] = "pumer",
    weighted: bool = True,
    chosen: Tensor | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Answers:
    """Ask a batch.

    Args:
        plan: the method's counts; None reduces nothing.
        chosen: (N, patches) indexes of the patches to see; None for all.
        watch: told of the tokens behind each layer; only unreduced.
    """
    texts = len(batch.tasks)
    many = batch.tasks.count("reason")
    grid = (GRID, GRID)
    image = model.embed_image(model.patch_embed(normalised(batch.pixels)), grid)
    if chosen is not None:
        index = (chosen + 1).unsqueeze(-1).expand(-1, -1, image.shape[-1])
        image = torch.cat([image[:, :1], image.gather(1, index)], dim=1)
    depth = model.config.depth
    matchers: list[Matcher | PuMer | None] | None = None
    if plan is not None:
        matchers = [PuMer() if method == "pumer" else ToMe() for _ in range(depth)]
    pooled = []
    for second, part in ((False, slice(0, texts)), (True, slice(texts, texts + many))):
        if part.start == part.stop:
            continue
        seen: dict[int, Tensor] = {}
        hooks = [
            block.register_forward_hook(_keep(seen, layer))
            for layer, block in enumerate(model.blocks)
            if watch is not None
        ]
        fused = model.fuse(
            image[part],
            batch.ids[part],
            batch.size[part],
            second=second,
            plan=plan,
            matchers=matchers,
            weighted=weighted,
            run=MixedPrecision(),
        )
        pooled.append(fused.pooled)
        for hook in hooks:
            hook.remove()
        if watch is not None:
            for layer, tokens in seen.items():
                watch(layer, tokens)
    logits: dict[PairTask, Tensor] = {}
    of: dict[PairTask, Tensor] = {}
    for task in dict.fromkeys(batch.tasks):
        rows = torch.tensor([at for at, one in enumerate(batch.tasks) if one == task])
        left = pooled[0][rows]
        joined = torch.cat([left, pooled[1]], dim=-1) if task == "reason" else left
        logits[task] = model.heads.logits(joined, task).float()
        of[task] = rows
    return Answers(logits, of)


def _keep(seen: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: object, output: Tokens) -> None:
        seen[layer] = output.x

    return hook


def teacher_loss(
    model: Vilt, probes: Probes, batch: Batch, chosen: Tensor | None, told: bool
) -> tuple[Tensor, Tensor]:
    """The loss of the answers, and of the probes."""
    layers: dict[int, list[Tensor]] = {}

    def watch(layer: int, tokens: Tensor) -> None:
        layers.setdefault(layer, []).append(tokens)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers(model, batch, chosen=chosen, watch=watch)
        joined = {layer: torch.cat(parts) for layer, parts in layers.items()}
        dense = probes(joined, batch, chosen, told)
    return task_loss(found, batch), dense


def task_loss(found: Answers, batch: Batch) -> Tensor:
    """Cross entropy, mean over the texts of all tasks."""
    total = sum(
        F.cross_entropy(logits, batch.answers[found.of[task]], reduction="sum")
        for task, logits in found.logits.items()
    )
    return cast(Tensor, total) / len(batch.tasks)


def student_loss(
    model: Vilt, teacher: Vilt, batch: Batch, plan: Plan, weighted: bool
) -> tuple[Tensor, Tensor]:
    """The loss of the answers, and the distance from the teacher's (KL, batch mean)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers(model, batch, plan=plan, weighted=weighted)
        with torch.no_grad():
            wanted = answers(teacher, batch)
    distance = sum(
        F.kl_div(
            logits.log_softmax(-1),
            wanted.logits[task].log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        for task, logits in found.logits.items()
    )
    return task_loss(found, batch), cast(Tensor, distance) / len(batch.tasks)
