"""Losses of the ViLT for scenes: answers, probes of the image tokens, and distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold import scenes
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import Plan
from tokenfold.models.networks.operators import Tokens
from tokenfold.models.networks.pair import PairReduction
from tokenfold.models.networks.vilt import Vilt
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.training.pair_data import GRID, PHRASES, PairBatch
from tokenfold.models.training.pair_network import WIDTH
from tokenfold.models.training.run import MixedPrecision

MEAN = STD = (0.5, 0.5, 0.5)
# Layers whose patches are probed for their content, and for whether the text mentions it.
CONTENT_LAYER, MENTION_LAYERS = 1, (2, 4)
ATTRIBUTE_VALUES = (
    1 + len(scenes.SHAPES),
    1 + len(scenes.COLOURS),
    1 + len(scenes.SIZES),
    1 + len(scenes.TEXTURES),
)
MAX_THINGS = 5
"""Maximum number of things in a scene."""


class PairProbes(nn.Module):
    """Dense supervision: linear probes of the image tokens, not part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(ATTRIBUTE_VALUES) + 1))
        self.mentioned = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PHRASES)) for _ in MENTION_LAYERS
        )
        self.text = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PHRASES * (MAX_THINGS + 1 + 2 * GRID))
        )
        self.centres = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PHRASES)) for _ in MENTION_LAYERS
        )
        self.position = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * GRID)) for _ in MENTION_LAYERS
        )

    def forward(
        self,
        layers: Mapping[int, Tensor],
        batch: PairBatch,
        indexes: Tensor | None,
        text: bool,
    ) -> Tensor:
        """Return the loss.

        Args:
            layers: tokens (N, T + 1 + patches, D) after some of the layers.
            indexes: (N, patches), indexes of the patches in the image; None for all.
            text: whether to probe the text's first token for counts and places too, and each patch
                for its position.
        """
        patches = batch.centre.shape[1]
        logits = self.shown(layers[CONTENT_LAYER][:, -patches:]).float()
        *attributes, centre = logits.split([*ATTRIBUTE_VALUES, 1], dim=-1)
        loss = F.binary_cross_entropy_with_logits(centre.squeeze(-1), batch.centre)
        for index, values in enumerate(attributes):
            loss = loss + F.cross_entropy(values.flatten(0, 1), batch.shown[:, index].flatten())
        mentioned = batch.mentioned.clamp_min(0)
        loss = loss + 3.0 * _by_phrase(self.mentioned, layers, batch, mentioned)
        if text:
            loss = loss + self._counts_and_places(layers[MENTION_LAYERS[-1]][:, 0], batch)
            loss = loss + self._position_loss(layers, indexes, patches)
            # The centres of the things that each phrase describes are what has to be counted.
            centres = mentioned * batch.centre.unsqueeze(1)
            loss = loss + 5.0 * _by_phrase(self.centres, layers, batch, centres)
        return loss

    def _position_loss(
        self, layers: Mapping[int, Tensor], indexes: Tensor | None, patches: int
    ) -> Tensor | float:
        loss: Tensor | float = 0.0
        for probe, layer in zip(self.position, MENTION_LAYERS, strict=True):
            tokens = layers[layer][:, -patches:]
            index = torch.arange(patches).expand(len(tokens), -1) if indexes is None else indexes
            rows, columns = probe(tokens).float().flatten(0, 1).split(GRID, dim=-1)
            loss = loss + 0.25 * F.cross_entropy(rows, index.flatten() // GRID)
            loss = loss + 0.25 * F.cross_entropy(columns, index.flatten() % GRID)
        return loss

    def _counts_and_places(self, token: Tensor, batch: PairBatch) -> Tensor:
        logits = self.text(token).float().unflatten(1, (PHRASES, -1)).flatten(0, 1)
        counts, rows, columns = logits.split([MAX_THINGS + 1, GRID, GRID], dim=-1)
        places = batch.places.flatten(0, 1)
        # Most phrases describe one thing, so several things count more.
        weight = torch.tensor([1.0, 1.0, 4.0, 4.0, 4.0, 4.0])
        return (
            F.cross_entropy(counts, batch.counts.flatten(), weight, ignore_index=-1)
            + 0.5 * F.cross_entropy(rows, places[:, 0], ignore_index=-1)
            + 0.5 * F.cross_entropy(columns, places[:, 1], ignore_index=-1)
        )


def _by_phrase(
    probes: nn.ModuleList, layers: Mapping[int, Tensor], batch: PairBatch, targets: Tensor
) -> Tensor:
    """Return the binary cross entropy of each phrase's probe of the patches, summed over layers.

    Args:
        targets: (N, phrases, patches), 0 or 1; phrases that a text lacks do not count.
    """
    weight = (batch.mentioned >= 0).float()
    losses = []
    for probe, layer in zip(probes, MENTION_LAYERS, strict=True):
        logits = probe(layers[layer][:, -targets.shape[2] :]).float().transpose(1, 2)
        error = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        losses.append((error * weight).sum() / weight.sum().clamp_min(1))
    return torch.stack(losses).sum()


def mask(batch: PairBatch, patches: int, generator: torch.Generator) -> tuple[PairBatch, Tensor]:
    """Keep only some patches of a batch: those with things, then random others.

    Returns:
        The batch with smaller patch arrays, and the indexes (N, patches) of the patches.
    """
    draw = torch.rand(batch.centre.shape, generator=generator)
    indexes = (draw + (batch.shown[:, 0] > 0)).argsort(dim=1, descending=True)[:, :patches]
    indexes = indexes.sort(dim=1).values

    def cut(values: Tensor) -> Tensor:
        return values.gather(2, indexes[:, None].expand(-1, values.shape[1], -1))

    return (
        batch._replace(
            shown=cut(batch.shown),
            centre=batch.centre.gather(1, indexes),
            mentioned=cut(batch.mentioned),
        ),
        indexes,
    )


def normalise(pixels: Tensor) -> Tensor:
    """Map pixels (N, H, W, 3) uint8 to (N, 3, H, W) float32, channels last in memory."""
    x = pixels.permute(0, 3, 1, 2).float().div(255).sub(MEAN[0]).div(STD[0])
    return x.contiguous(memory_format=torch.channels_last)


class TaskLogits(NamedTuple):
    """Answers of a batch, by task.

    Attributes:
        logits: (K, classes), logits of the K texts of the task.
        rows: (K) int64, indexes of these texts in the batch.
    """

    logits: dict[PairTask, Tensor]
    rows: dict[PairTask, Tensor]


def answer(
    model: Vilt,
    batch: PairBatch,
    *,
    plan: Plan | None = None,
    method: Literal["pumer", "tome"] = "pumer",
    weighted: bool = True,
    indexes: Tensor | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> TaskLogits:
    """Run the network on a batch.

    Args:
        plan: counts of the method; None reduces nothing.
        indexes: (N, patches), indexes of the patches to keep; None for all.
        watch: called with the number and the output tokens of each layer; only without a plan.
    """
    texts = len(batch.tasks)
    pairs = batch.tasks.count("reason")
    grid = (GRID, GRID)
    image = model.embed_image(model.patch_embed(normalise(batch.pixels)), grid)
    if indexes is not None:
        index = (indexes + 1).unsqueeze(-1).expand(-1, -1, image.shape[-1])
        image = torch.cat([image[:, :1], image.gather(1, index)], dim=1)
    reduction = None
    if plan is not None:
        matcher: Matcher | PuMer = PuMer() if method == "pumer" else ToMe()
        reduction = PairReduction(plan, [matcher] * model.config.depth, weighted)
    pooled = []
    for second, part in ((False, slice(0, texts)), (True, slice(texts, texts + pairs))):
        if part.start == part.stop:
            continue
        outputs: dict[int, Tensor] = {}
        hooks = [
            block.register_forward_hook(_record(outputs, layer))
            for layer, block in enumerate(model.blocks)
            if watch is not None
        ]
        fused = model.fuse(
            image[part],
            batch.ids[part],
            batch.size[part],
            second=second,
            reduction=reduction,
            ops=MixedPrecision(),
        )
        pooled.append(fused.pooled)
        for hook in hooks:
            hook.remove()
        if watch is not None:
            for layer, tokens in outputs.items():
                watch(layer, tokens)
    logits: dict[PairTask, Tensor] = {}
    rows_by_task: dict[PairTask, Tensor] = {}
    for task in dict.fromkeys(batch.tasks):
        rows = torch.tensor([row for row, name in enumerate(batch.tasks) if name == task])
        left = pooled[0][rows]
        joined = torch.cat([left, pooled[1]], dim=-1) if task == "reason" else left
        logits[task] = model.heads.logits(joined, task).float()
        rows_by_task[task] = rows
    return TaskLogits(logits, rows_by_task)


def _record(outputs: dict[int, Tensor], layer: int) -> Callable[..., None]:
    """Return a forward hook that stores the output tokens of a layer."""

    def hook(_module: nn.Module, _inputs: object, output: Tokens) -> None:
        outputs[layer] = output.x

    return hook


def teacher_loss(
    model: Vilt, probes: PairProbes, batch: PairBatch, indexes: Tensor | None, text: bool
) -> tuple[Tensor, Tensor]:
    """Return the losses of the answers and of the probes; see `PairProbes.forward`."""
    layers: dict[int, list[Tensor]] = {}

    def watch(layer: int, tokens: Tensor) -> None:
        layers.setdefault(layer, []).append(tokens)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = answer(model, batch, indexes=indexes, watch=watch)
        joined = {layer: torch.cat(parts) for layer, parts in layers.items()}
        dense = probes(joined, batch, indexes, text)
    return task_loss(answers, batch), dense


def task_loss(answers: TaskLogits, batch: PairBatch) -> Tensor:
    """Return the cross entropy, averaged over the texts of all tasks."""
    total = sum(
        F.cross_entropy(logits, batch.answers[answers.rows[task]], reduction="sum")
        for task, logits in answers.logits.items()
    )
    return cast(Tensor, total) / len(batch.tasks)


def student_loss(
    model: Vilt, teacher: Vilt, batch: PairBatch, plan: Plan, weighted: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss of the answers, and their mean KL divergence from the teacher's."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = answer(model, batch, plan=plan, weighted=weighted)
        with torch.no_grad():
            targets = answer(teacher, batch)
    divergence = sum(
        F.kl_div(
            logits.log_softmax(-1),
            targets.logits[task].log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        for task, logits in answers.logits.items()
    )
    return task_loss(answers, batch), cast(Tensor, divergence) / len(batch.tasks)
