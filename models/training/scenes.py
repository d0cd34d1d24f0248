"""Train the embedded vision-language default: a tiny ViLT on the world of scenes.

    python -m tokenfold.models.training.scenes teacher
    python -m tokenfold.models.training.scenes compare
    python -m tokenfold.models.training.scenes student
    python -m tokenfold.models.training.scenes checkpoint

The teacher learns unreduced. Beside the answers it is told, patch by patch, what is shown there and
whether the text mentions it, and later how many things each phrase of the text describes, and
where: a dense signal that makes attention find things in minutes instead of days. For most of its
steps it sees all the patches with things but only some of the others (masking as in FLIP, Li et al.
2023), which costs half as much.

`compare` asks the teacher, which never saw a reduced image, with PuMer and ToMe, merging by plain
mean and by size.

The student begins as the teacher and learns to answer at random reductions, with PuMer in the loop,
from the teacher's answers and the right ones (PuMer, section 3.4).

Both are seeded, save as they go, and go on from there when started again. `checkpoint` writes the
student for export, with held-out scenes and texts to measure it on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokenfold import scenes
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import plan_for
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.checkpoints.native import save
from tokenfold.models.training.run import Run, Settings
from tokenfold.models.training.scenes_data import (
    LABELS,
    Batch,
    Batches,
    Mix,
    evaluation,
    write_held_out,
)
from tokenfold.models.training.scenes_losses import (
    MEAN,
    STD,
    Probes,
    answers,
    masked,
    student_loss,
    teacher_loss,
)
from tokenfold.models.training.scenes_network import CONFIG, initialised
from tokenfold.models.vilt import Vilt

MIX = Mix(vqa=18, entail=9, match=7, reason=8)
TEACHER = Settings(steps=9000, rate=1e-3, seed=0, patches=72, masked=7500, told=3000, harder=4500)
STUDENT = Settings(steps=900, rate=3e-4, seed=1, reductions=(0.0, 0.75))
WEIGHTED = True
REPORTED = 0.4
EVERY = 500
Method = Literal["pumer", "tome"]


@torch.no_grad()
def accuracy(
    model: Vilt,
    reduction: float,
    *,
    method: Method = "pumer",
    weighted: bool = WEIGHTED,
    texts: int = 256,
) -> dict[PairTask, float]:
    """Share of right answers of each task on held-out scenes, 0 to 1, at a reduction."""
    model.eval()
    right = dict.fromkeys(LABELS, 0)
    total = dict.fromkeys(LABELS, 0)
    for batch in evaluation(texts):
        plan = None
        if reduction:
            plan = plan_for(model.config.workload(method, text=batch.ids.shape[1]), reduction)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = answers(model, batch, plan=plan, method=method, weighted=weighted)
        for task, logits in found.logits.items():
            right[task] += int((logits.argmax(-1) == batch.answers[found.of[task]]).sum())
            total[task] += len(logits)
    return {task: right[task] / total[task] for task in LABELS}


def train(run: Run[Vilt], losses: Callable[[Batch, int], tuple[Tensor, Tensor]]) -> None:
    """Bring a run to its end.

    Args:
        losses: of a batch and the step: the answers', and another that is added to it.
    """
    settings = run.settings
    loader = DataLoader(
        Batches(MIX, settings.seed, run.step, settings.steps, settings.harder),
        batch_size=None,
        num_workers=1,
        prefetch_factor=8,
    )
    begun, sums, counted = time.monotonic(), np.zeros(2), 0
    for batch in loader:
        run.model.train()
        first, second = losses(batch, run.step)
        run.update(first + second)
        sums += np.array([first.item(), second.item()])
        counted += 1
        if run.step % 100 == 0:
            said = {"step": run.step, "seconds": round(time.monotonic() - begun)}
            print(json.dumps({**said, "losses": (sums / counted).round(3).tolist()}), flush=True)
            sums, counted = np.zeros(2), 0
        if run.step % EVERY == 0 or run.step == settings.steps:
            run.save()
            for reduction in (0.0, REPORTED):
                _say(f"{reduction:.0%} fewer FLOPs", accuracy(run.averaged, reduction))


def _say(what: str, found: dict[PairTask, float]) -> None:
    shares = "  ".join(f"{task} {100 * share:.1f}" for task, share in found.items())
    print(f"{what}: {shares}", flush=True)


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

    train(run, losses)


def trained_teacher(out: Path) -> Vilt:
    """The teacher's averaged weights."""
    return Run(initialised(), Probes(), TEACHER, out / "teacher.pt").averaged.eval()


def compare(out: Path) -> None:
    """Say how the methods do without training."""
    teacher = trained_teacher(out)
    ways: list[tuple[Method, bool]] = [("pumer", True), ("pumer", False), ("tome", True)]
    _say("unreduced", accuracy(teacher, 0.0))
    for reduction in (0.2, 0.4):
        for method, weighted in ways:
            found = accuracy(teacher, reduction, method=method, weighted=weighted)
            merging = "by size" if weighted else "plain mean"
            _say(f"{method}, {merging}, {reduction:.0%} fewer FLOPs", found)


def train_student(out: Path) -> None:
    """Teach the reduced network what the unreduced one answers."""
    teacher = trained_teacher(out)
    run = Run(copy.deepcopy(teacher), nn.Identity(), STUDENT, out / "student.pt")
    low, high = STUDENT.reductions

    def losses(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng((STUDENT.seed, step, 1)).uniform(low, high)
        workload = CONFIG.workload("pumer", text=batch.ids.shape[1])
        plan = plan_for(workload, float(draw))
        return student_loss(run.model, teacher, batch, plan, WEIGHTED)

    train(run, losses)


def write_checkpoint(out: Path) -> None:
    """Write `checkpoint/` and `held-out.zip`, both for export."""
    run = Run(initialised(), nn.Identity(), STUDENT, out / "student.pt")
    side = (scenes.SIZE, scenes.SIZE)
    labels: dict[PairTask, tuple[str, ...]] = {**LABELS, "match": ("no match", "match")}
    save(
        out / "checkpoint",
        PairCheckpoint(
            run.averaged.eval(),
            Preprocess(size=side, interpolation="bicubic", mean=MEAN, std=STD),
            labels,
            word_level(scenes.WORDS, CONFIG.most_text),
            WEIGHTED,
        ),
    )
    told = {"teacher": TEACHER._asdict(), "student": STUDENT._asdict()}
    (out / "checkpoint" / "training.json").write_text(json.dumps(told, indent=2) + "\n")
    write_held_out(out / "held-out.zip")


PHASES = {
    "teacher": train_teacher,
    "compare": compare,
    "student": train_student,
    "checkpoint": write_checkpoint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--out", type=Path, default=Path("build/scenes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    PHASES[options.phase](options.out)


if __name__ == "__main__":
    main()
