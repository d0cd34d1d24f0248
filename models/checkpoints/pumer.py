"""How PuMer's own checkpoints reduce: by their configuration, or by what they are called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenfold.bundle.pair_workload import Rates
from tokenfold.models.checkpoints.checkpoint import CheckpointError

# vilt-vqa2-p0.1-r0.3-t0.2-258: rates to prune, merge, merge text; layers of one digit each.
NAME = re.compile(r"p(0?\.\d+)-?r(0?\.\d+)-?t(0?\.\d+)-(?:[a-z]+-)*(\d+)(?!\d)")
MEAN_OF_HEADS = ("mean_head", "mh")


class Reduction(NamedTuple):
    """Layers, and shares of their tokens (prune, merge, text)."""

    layers: tuple[int, ...]
    rates: Rates


class _Settings(BaseModel):
    """What the configuration says, with the defaults of the published code."""

    model_config = ConfigDict(extra="ignore")

    reduce_layers: tuple[int, ...] | None = None
    prune_r: float = Field(default=0, ge=0)
    merge_r: float = Field(default=0, ge=0)
    merge_text: float = Field(default=0, ge=0)
    sim_method: str = "mean_head"
    merge_style: str = "tome"
    prune_layers: tuple[int, ...] | None = None


def read(config: Mapping[str, Any], name: str, where: str) -> Reduction | None:
    """How a checkpoint was trained to reduce; None if it was not.

    Args:
        config: content of `config.json`.
        name: of the checkpoint, used where the configuration says nothing.
        where: the configuration, for messages.

    Raises:
        CheckpointError: name and configuration contradict each other, or it reduces in another way
            than as published.
    """
    try:
        settings = _Settings.model_validate(config)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{where}: {at}: {problem['msg']}") from error
    named = _named(name)
    if settings.prune_layers:
        raise CheckpointError(f"{where}: prune_layers: learned pruning is not supported")
    rates = (settings.prune_r, settings.merge_r, settings.merge_text)
    if not settings.reduce_layers:
        if any(rates):
            raise CheckpointError(f"{where}: prune_r, merge_r or merge_text without reduce_layers")
        if named is not None:
            _check(named.rates, name)
        return named
    _check(rates, where)
    if settings.sim_method not in MEAN_OF_HEADS:
        raise CheckpointError(
            f"{where}: sim_method is {settings.sim_method!r}; supported is the mean over heads, "
            f"{' or '.join(MEAN_OF_HEADS)}"
        )
    if settings.merge_r and settings.merge_style != "tome":
        raise CheckpointError(
            f"{where}: merge_style is {settings.merge_style!r}; supported is tome"
        )
    found = Reduction(settings.reduce_layers, rates)
    if named is not None and named != found:
        raise CheckpointError(
            f"{where}: reduces layers {found.layers} by {found.rates}, but {name} says layers "
            f"{named.layers} by {named.rates}"
        )
    return found


def _check(rates: Rates, where: str) -> None:
    """Refuse what PuMer does without pruning: it merges text and image jointly, by a count."""
    if max(rates) > 1 or rates[0] == 0:
        raise CheckpointError(
            f"{where}: prune_r, merge_r and merge_text are {rates}; supported are shares up to 1, "
            "with pruning"
        )


def _named(name: str) -> Reduction | None:
    found = NAME.search(name)
    if found is None:
        return None
    prune, merge, text = (float(found[group]) for group in (1, 2, 3))
    return Reduction(tuple(int(layer) for layer in found[4]), (prune, merge, text))
