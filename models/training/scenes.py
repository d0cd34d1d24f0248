"""Train the embedded vision-language default: a tiny ViLT on the world of scenes.

    python -m models.training.scenes teacher --out build/scenes
    python -m models.training.scenes student --out build/scenes

The teacher learns unreduced. Beside the answers it is told, patch by patch, what is shown there and
whether the text mentions it, and later how many things each phrase of the text describes, and
where: a dense signal that makes attention find things in minutes instead of days. For most of its
steps it sees all the patches with things but only some of the others (masking as in FLIP, Li et al.
2023), which costs half as much.

The student begins as the teacher and learns to answer at random reductions, with PuMer in the loop,
from the teacher's answers and the right ones (PuMer, section 3.4).

Both are seeded, save as they go, and go on from there when started again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from models.demo import scenes
from models.operators import Tokens
from models.pair import HeadConfig
from models.reduction.pumer import PuMer
from models.reduction.schedule import plan_for
from models.reduction.workload import Plan
from models.tasks import PairTask
from models.training.cifar import MixedPrecision
from models.training.scenes_data import (
    GRID,
    LABELS,
    PATCH,
    PHRASES,
    SPECIAL,
    Batch,
    Batches,
    Mix,
    evaluation,
)
from models.vilt import Vilt, ViltConfig

MEAN = STD = (0.5, 0.5, 0.5)
WIDTH = 160
CONFIG = ViltConfig(
    image_size=(scenes.SIZE, scenes.SIZE),
    patch_size=PATCH,
    dim=WIDTH,
    depth=6,
    heads_per_layer=5,
    mlp_dim=480,
    stem=((32, 2), (64, 2), (128, 2)),
    vocabulary=len(SPECIAL) + len(scenes.WORDS),
    most_text=32,
    modalities=3,
    heads={task: HeadConfig(classes=len(LABELS[task]), hidden=2 * WIDTH) for task in LABELS},
    layers=(1, 2, 3, 4),
    rates=(0.1, 0.3, 0.2),
)
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
MIX = Mix(vqa=18, entail=9, match=7, reason=8)


class Settings(NamedTuple):
    """What a run is; a run can only go on with the same.

    Attributes:
        patches: of each image that the masked steps see.
        masked: steps that are masked, from the first.
        told: the step from which on the text's token is told of counts and places.
        reductions: of the student's random one.
    """

    steps: int
    rate: float
    seed: int
    patches: int = GRID * GRID
    masked: int = 0
    told: int = 0
    reductions: tuple[float, float] = (0.0, 0.0)


TEACHER = Settings(steps=5000, rate=1e-3, seed=0, patches=72, masked=4300, told=3000)
STUDENT = Settings(steps=1200, rate=3e-4, seed=1, reductions=(0.1, 0.75))


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

    def forward(self, layers: Mapping[int, Tensor], batch: Batch, told: bool) -> Tensor:
        """The loss.

        Args:
            layers: tokens (N, T + 1 + patches, D) behind some layers.
            told: whether the text's first token is asked for counts and places, too.
        """
        patches = batch.centre.shape[1]
        read = self.shown(layers[SHOWS][:, -patches:]).float()
        *kinds, centre = read.split([*KINDS, 1], dim=-1)
        loss = F.binary_cross_entropy_with_logits(centre.squeeze(-1), batch.centre)
        for at, kind in enumerate(kinds):
            loss = loss + F.cross_entropy(kind.flatten(0, 1), batch.shown[:, at].flatten())
        asked = (batch.mentioned >= 0).float()
        for probe, layer in zip(self.found, FINDS, strict=True):
            found = (
                probe(layers[layer][:, -patches:]).float().transpose(1, 2)
            )  # (N, phrases, patches)
            error = F.binary_cross_entropy_with_logits(
                found, batch.mentioned.clamp_min(0), reduction="none"
            )
            loss = loss + 3.0 * (error * asked).sum() / asked.sum().clamp_min(1)
        return loss + self._counts_and_places(layers[FINDS[-1]][:, 0], batch) if told else loss

    def _counts_and_places(self, token: Tensor, batch: Batch) -> Tensor:
        read = self.told(token).float().unflatten(1, (PHRASES, -1)).flatten(0, 1)
        counts, rows, columns = read.split([MOST + 1, GRID, GRID], dim=-1)
        places = batch.places.flatten(0, 1)
        return (
            F.cross_entropy(counts, batch.counts.flatten(), ignore_index=-1)
            + 0.5 * F.cross_entropy(rows, places[:, 0], ignore_index=-1)
            + 0.5 * F.cross_entropy(columns, places[:, 1], ignore_index=-1)
        )


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
    weighted: bool = True,
    chosen: Tensor | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Answers:
    """Ask a batch.

    Args:
        plan: PuMer's counts; None reduces nothing.
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
    matchers = [PuMer()] * CONFIG.depth if plan is not None else None
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


@torch.no_grad()
def accuracy(
    model: Vilt, reduction: float, *, weighted: bool = True, texts: int = 256
) -> dict[PairTask, float]:
    """Share of right answers of each task on held-out scenes, 0 to 1, at a reduction."""
    model.eval()
    right = dict.fromkeys(LABELS, 0)
    total = dict.fromkeys(LABELS, 0)
    for batch in evaluation(texts):
        plan = None
        if reduction:
            workload = CONFIG.workload("pumer", text=batch.ids.shape[1])
            plan = plan_for(workload, reduction)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = answers(model, batch, plan=plan, weighted=weighted)
        for task, logits in found.logits.items():
            right[task] += int((logits.argmax(-1) == batch.answers[found.of[task]]).sum())
            total[task] += len(logits)
    return {task: right[task] / total[task] for task in LABELS}


def teacher_loss(
    model: Vilt, probes: Probes, batch: Batch, chosen: Tensor | None, told: bool
) -> tuple[Tensor, Tensor]:
    """The loss of the answers, and of the probes."""
    layers: dict[int, list[Tensor]] = {}

    def watch(layer: int, tokens: Tensor) -> None:
        layers.setdefault(layer, []).append(tokens)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = answers(model, batch, chosen=chosen, watch=watch)
        dense = probes({layer: torch.cat(parts) for layer, parts in layers.items()}, batch, told)
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


def initialised() -> Vilt:
    """A new network."""
    model = Vilt(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in (
        model.cls_token,
        model.pos_embed,
        model.modality.weight,
        model.text_embed.words.weight,
        model.text_embed.positions.weight,
    ):
        nn.init.trunc_normal_(parameter, std=0.02)
    return cast(Vilt, model)


class Run:
    """Weights, their average, the optimiser and the step of a training run, kept in one file."""

    def __init__(self, model: Vilt, extra: nn.Module, settings: Settings, file: Path) -> None:
        """Begin, or go on with what the file holds.

        Raises:
            ValueError: the file holds a run of other settings.
        """
        self.model, self.extra, self.settings, self.file = model, extra, settings, file
        self.average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=True
        )
        self._parameters = [*model.parameters(), *extra.parameters()]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )
        self.step = 0
        self._parts: dict[str, Any] = {
            "model": model,
            "extra": extra,
            "average": self.average,
            "optimiser": self._optimiser,
        }
        if file.exists():
            state = torch.load(file, weights_only=True)
            if state["settings"] != settings._asdict():
                raise ValueError(f"{file} holds a run with {state['settings']}, not {settings}")
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            self.step = state["step"]

    @property
    def averaged(self) -> Vilt:
        """The network of averaged weights."""
        return cast(Vilt, self.average.module)

    def save(self) -> None:
        """Write the file; whole or not at all."""
        part = self.file.with_suffix(".part")
        state = {name: kept.state_dict() for name, kept in self._parts.items()}
        torch.save({"settings": self.settings._asdict(), "step": self.step, **state}, part)
        part.replace(self.file)

    def update(self, loss: Tensor) -> None:
        """One step down a loss."""
        warm_up = max(1, self.settings.steps // 20)
        progress = max(0.0, (self.step - warm_up) / max(1, self.settings.steps - warm_up))
        factor = min(1.0, (self.step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in self._optimiser.param_groups:
            group["lr"] = self.settings.rate * max(factor, 0.01)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self.average.update_parameters(self.model)
        self.step += 1


def train(run: Run, losses: Callable[[Batch, int], tuple[Tensor, Tensor]], report: float) -> None:
    """Bring a run to its end.

    Args:
        losses: of a batch and the step: the answers', and another that is added to it.
        report: a reduction to report beside the unreduced accuracy.
    """
    settings = run.settings
    loader = DataLoader(
        Batches(MIX, settings.seed, run.step, settings.steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=8,
    )
    begun, sums = time.monotonic(), np.zeros(2)
    every = 100
    for batch in loader:
        run.model.train()
        first, second = losses(batch, run.step)
        run.update(first + second)
        sums += (first.item(), second.item())
        if run.step % every == 0:
            said = {"step": run.step, "seconds": round(time.monotonic() - begun)}
            print(json.dumps({**said, "losses": (sums / every).round(3).tolist()}), flush=True)
            sums[:] = 0
        if run.step % 500 == 0 or run.step == settings.steps:
            run.save()
            for reduction in (0.0, report):
                found = accuracy(run.averaged, reduction)
                print(reduction, {task: round(share, 3) for task, share in found.items()})


def train_teacher(out: Path) -> None:
    """Train the unreduced network."""
    torch.manual_seed(TEACHER.seed)
    probes = Probes()
    run = Run(initialised(), probes, TEACHER, out / "teacher.pt")

    def losses(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        chosen = None
        if step < TEACHER.masked:
            generator = torch.Generator().manual_seed(step)
            batch, chosen = masked(batch, TEACHER.patches, generator)
        return teacher_loss(run.model, probes, batch, chosen, step >= TEACHER.told)

    train(run, losses, report=0.4)


def train_student(out: Path, weighted: bool) -> None:
    """Teach the reduced network what the unreduced one answers."""
    teacher = Run(initialised(), Probes(), TEACHER, out / "teacher.pt").averaged.eval()
    run = Run(copy.deepcopy(teacher), nn.Identity(), STUDENT, out / "student.pt")
    low, high = STUDENT.reductions

    def losses(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng((STUDENT.seed, step, 1)).uniform(low, high)
        workload = CONFIG.workload("pumer", text=batch.ids.shape[1])
        plan = plan_for(workload, float(draw))
        return student_loss(run.model, teacher, batch, plan, weighted)

    train(run, losses, report=0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("phase", choices=("teacher", "student"))
    parser.add_argument("--out", type=Path, default=Path("build/scenes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.phase == "teacher":
        train_teacher(options.out)
    else:
        train_student(options.out, weighted=True)


if __name__ == "__main__":
    main()
