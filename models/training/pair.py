"""Train the demo vision-language network: a small ViLT that answers questions about scenes.

    python -m tokenfold.models.training.pair teacher
    python -m tokenfold.models.training.pair compare
    python -m tokenfold.models.training.pair student
    python -m tokenfold.models.training.pair checkpoint

The teacher is trained without reduction. Besides the answers, it learns what each patch shows and
whether the text mentions it, and later how many things each phrase of the text describes, and where
they are. This dense supervision makes attention find things in minutes instead of days. Most steps
see all patches with things but only some of the others (masking as in FLIP, Li et al. 2023), which
halves the cost.

`compare` measures the teacher, which was never trained on reduced images, with PuMer and ToMe, and
with merging by plain mean and by size.

The student starts from the teacher and is trained at random reductions by PuMer, on the teacher's
answers and the correct ones (PuMer, section 3.4).

Both runs are seeded, save regularly, and resume from the last save. `checkpoint` writes the student
for export, with held-out scenes and texts to measure it on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tokenfold import scenes
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import plan_for
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.checkpoints.native import save
from tokenfold.models.networks.vilt import Vilt
from tokenfold.models.training.pair_data import (
    LABELS,
    PairBatch,
    PairBatches,
    TaskCounts,
    evaluation,
    write_held_out,
)
from tokenfold.models.training.pair_losses import (
    MEAN,
    STD,
    PairProbes,
    answer,
    mask,
    student_loss,
    teacher_loss,
)
from tokenfold.models.training.pair_network import CONFIG, initialise
from tokenfold.models.training.run import Run, StepResult, TrainingSettings, run_phase, train

BATCH = TaskCounts(vqa=18, entail=9, match=7, reason=8)
TEACHER = TrainingSettings(
    steps=9000, rate=1e-3, seed=0, patches=72, masked=7500, text_probe=3000, harder=4500
)
STUDENT = TrainingSettings(steps=900, rate=3e-4, seed=1, reductions=(0.0, 0.75))
WEIGHTED = True
REPORTED_REDUCTIONS = (0.0, 0.4)
LOG_EVERY, SAVE_EVERY = 100, 500
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
    """Return the accuracy of each task on held-out scenes, 0 to 1, at a reduction."""
    model.eval()
    correct = dict.fromkeys(LABELS, 0)
    total = dict.fromkeys(LABELS, 0)
    for batch in evaluation(texts):
        plan = None
        if reduction:
            plan = plan_for(model.config.workload(method, text=batch.ids.shape[1]), reduction)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers = answer(model, batch, plan=plan, method=method, weighted=weighted)
        for task, logits in answers.logits.items():
            correct[task] += int((logits.argmax(-1) == batch.answers[answers.rows[task]]).sum())
            total[task] += len(logits)
    return {task: correct[task] / total[task] for task in LABELS}


def _train(run: Run[Vilt], losses: Callable[[PairBatch, int], tuple[Tensor, Tensor]]) -> None:
    """Train until the end of a run.

    Args:
        losses: maps a batch and the number of the step to the loss of the answers, and to another
            loss that is added.
    """
    settings = run.settings

    def step(batch: PairBatch, number: int) -> StepResult:
        first, second = losses(batch, number)
        return StepResult(first + second, (first.item(), second.item()))

    def report() -> None:
        for reduction in REPORTED_REDUCTIONS:
            _print_accuracies(f"{reduction:.0%} fewer FLOPs", accuracy(run.averaged, reduction))

    batches = PairBatches(BATCH, settings.seed, run.step, settings.steps, settings.harder)
    train(run, batches, step, report, log_every=LOG_EVERY, save_every=SAVE_EVERY)


def _print_accuracies(title: str, accuracies: dict[PairTask, float]) -> None:
    percentages = "  ".join(f"{task} {100 * value:.1f}" for task, value in accuracies.items())
    print(f"{title}: {percentages}", flush=True)


def train_teacher(out: Path) -> None:
    """Train the unreduced network."""
    torch.manual_seed(TEACHER.seed)
    probes = PairProbes()
    run = Run(initialise(), probes, TEACHER, out / "teacher.pt")

    def losses(batch: PairBatch, step: int) -> tuple[Tensor, Tensor]:
        indexes = None
        if step < TEACHER.masked:
            generator = torch.Generator().manual_seed(step)
            batch, indexes = mask(batch, TEACHER.patches, generator)
        return teacher_loss(run.model, probes, batch, indexes, step >= TEACHER.text_probe)

    _train(run, losses)


def trained_teacher(out: Path) -> Vilt:
    """Return the teacher with averaged weights."""
    return Run(initialise(), PairProbes(), TEACHER, out / "teacher.pt").averaged.eval()


def compare(out: Path) -> None:
    """Print the accuracy of each method on a network that was trained without reduction."""
    teacher = trained_teacher(out)
    variants: list[tuple[Method, bool]] = [("pumer", True), ("pumer", False), ("tome", True)]
    _print_accuracies("unreduced", accuracy(teacher, 0.0))
    for reduction in (0.2, 0.4):
        for method, weighted in variants:
            accuracies = accuracy(teacher, reduction, method=method, weighted=weighted)
            merging = "by size" if weighted else "plain mean"
            _print_accuracies(f"{method}, {merging}, {reduction:.0%} fewer FLOPs", accuracies)


def train_student(out: Path) -> None:
    """Train the reduced network on the answers of the unreduced one."""
    teacher = trained_teacher(out)
    run = Run(copy.deepcopy(teacher), nn.Identity(), STUDENT, out / "student.pt")
    low, high = STUDENT.reductions

    def losses(batch: PairBatch, step: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng((STUDENT.seed, step, 1)).uniform(low, high)
        workload = CONFIG.workload("pumer", text=batch.ids.shape[1])
        plan = plan_for(workload, float(draw))
        return student_loss(run.model, teacher, batch, plan, WEIGHTED)

    _train(run, losses)


def write_checkpoint(out: Path) -> None:
    """Write `checkpoint/` and `held-out.zip`, both for export."""
    run = Run(initialise(), nn.Identity(), STUDENT, out / "student.pt")
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
    settings = {"teacher": TEACHER._asdict(), "student": STUDENT._asdict()}
    (out / "checkpoint" / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    write_held_out(out / "held-out.zip")


PHASES = {
    "teacher": train_teacher,
    "compare": compare,
    "student": train_student,
    "checkpoint": write_checkpoint,
}


def main() -> None:
    run_phase(__doc__, PHASES)


if __name__ == "__main__":
    main()
