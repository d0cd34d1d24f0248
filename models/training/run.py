"""A training run that can stop at any time and go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class Settings(NamedTuple):
    """What a run is; a run can only go on with the same.

    Attributes:
        patches: of each image that the masked steps see.
        masked: steps that are masked, from the first.
        told: the step from which on the text's token is told of counts and places.
        harder: the step from which on hard texts are drawn more often.
        reductions: of the student's random one.
    """

    steps: int
    rate: float
    seed: int
    patches: int = 0
    masked: int = 0
    told: int = 0
    harder: int = 0
    reductions: tuple[float, float] = (0.0, 0.0)


class Run(Generic[M]):
    """Weights, their average, the optimiser and the step of a training run, kept in one file."""

    def __init__(self, model: M, extra: nn.Module, settings: Settings, file: Path) -> None:
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
    def averaged(self) -> M:
        """The network of averaged weights."""
        return cast(M, self.average.module)

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
