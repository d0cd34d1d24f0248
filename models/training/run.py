"""Resumable training: the state of a run, its loop, and the scripts' command line."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from tokenfold.models.networks.operators import EagerOperators

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")


class MixedPrecision(EagerOperators):
    """Operators that keep attention in float32 under autocast.

    On a CPU, the backward pass of bfloat16 attention is four times slower.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().attend(q.float(), k.float(), v.float(), size, heads)


class TrainingSettings(NamedTuple):
    """Settings that identify a run; a run can only be resumed with the same ones.

    Attributes:
        steps: number of steps.
        rate: peak learning rate.
        patches: patches of each image that the network sees in the masked steps.
        masked: number of masked steps, which come first.
        text_probe: first step in which the text's first token is probed for counts and places.
        harder: first step in which hard texts are drawn more often.
        reductions: range of the random reductions.
    """

    steps: int
    rate: float
    seed: int
    patches: int = 0
    masked: int = 0
    text_probe: int = 0
    harder: int = 0
    reductions: tuple[float, float] = (0.0, 0.0)


class Run(Generic[M]):
    """Weights, their average, the optimiser and the step of a training run, kept in one file."""

    def __init__(self, model: M, extra: nn.Module, settings: TrainingSettings, file: Path) -> None:
        """Start a run, or resume the one in the file.

        Args:
            extra: module that is trained with the model but is not part of its checkpoint.

        Raises:
            ValueError: the file contains a run with other settings.
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
                raise ValueError(f"{file} contains a run with {state['settings']}, not {settings}")
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            self.step = state["step"]

    @property
    def averaged(self) -> M:
        """The network with averaged weights."""
        return cast(M, self.average.module)

    def save(self) -> None:
        """Write the file atomically."""
        temporary = self.file.with_suffix(".part")
        state = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({"settings": self.settings._asdict(), "step": self.step, **state}, temporary)
        temporary.replace(self.file)

    def update(self, loss: Tensor) -> None:
        """Take one optimiser step."""
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


class StepResult(NamedTuple):
    """Result of one training step.

    Attributes:
        loss: the loss to minimise.
        metrics: numbers to log, the same ones in each step.
    """

    loss: Tensor
    metrics: Sequence[float]


def train(
    run: Run[M],
    batches: IterableDataset[B],
    step: Callable[[B, int], StepResult],
    report: Callable[[], None],
    *,
    log_every: int,
    save_every: int,
) -> None:
    """Train until the run has taken all of its steps.

    Args:
        batches: the batches from the run's current step on.
        step: maps a batch and the number of the step to the loss.
        report: prints measurements; called after each save.
        log_every: steps between two lines with the mean metrics.
        save_every: steps between two saves; the last step is saved too.
    """
    loader: Iterable[B] = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8)
    start = time.monotonic()
    logged: list[Sequence[float]] = []
    for batch in loader:
        run.model.train()
        result = step(batch, run.step)
        run.update(result.loss)
        logged.append(result.metrics)
        if run.step % log_every == 0:
            line = {
                "step": run.step,
                "seconds": round(time.monotonic() - start),
                "losses": np.mean(logged, axis=0).round(3).tolist(),
            }
            print(json.dumps(line), flush=True)
            logged = []
        if run.step % save_every == 0 or run.step == run.settings.steps:
            run.save()
            report()


def run_phase(description: str | None, phases: Mapping[str, Callable[[Path], None]]) -> None:
    """Run the phase that the command line names.

    Args:
        description: docstring of the script.
        phases: functions that take the output folder, by name.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("phase", choices=phases)
    parser.add_argument("--out", type=Path, default=Path("build/scenes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    phases[options.phase](options.out)
