"""Reduction of PuMer's checkpoints, from their configuration or their name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.bundle.pair_workload import Rates
from tokenfold.models.checkpoints.checkpoint import CheckpointError, parse_settings

# vilt-vqa2-p0.1-r0.3-t0.2-258: shares to prune, merge and merge in the text, then layers of one
# digit each.
NAME = re.compile(r"p(0?\.\d+)-?r(0?\.\d+)-?t(0?\.\d+)-(?:[a-z]+-)*(\d+)(?!\d)")
MEAN_OF_HEADS = ("mean_head", "mh")


class PuMerReduction(NamedTuple):
    """Reducing layers, and the shares of their tokens to prune, merge and merge in the text."""

    layers: tuple[int, ...]
    rates: Rates


class _Settings(BaseModel):
    """Fields of the configuration, with the defaults of the published code."""

    model_config = ConfigDict(extra="ignore")

    reduce_layers: tuple[int, ...] | None = None
    prune_r: float = Field(default=0, ge=0)
    merge_r: float = Field(default=0, ge=0)
    merge_text: float = Field(default=0, ge=0)
    sim_method: str = "mean_head"
    merge_style: str = "tome"
    prune_layers: tuple[int, ...] | None = None


def read(config: Mapping[str, Any], name: str, where: str) -> PuMerReduction | None:
    """Return the reduction that a checkpoint was trained with; None if without.

    Args:
        config: content of `config.json`.
        name: name of the checkpoint, which is used if the configuration has no reduction.
        where: the configuration, for messages.

    Raises:
        CheckpointError: the name and the configuration contradict each other, or the reduction
            differs from the published ones.
    """
    settings = parse_settings(_Settings, config, f"{where}: ")
    reduction_in_name = _parse_name(name)
    if settings.prune_layers:
        raise CheckpointError(f"{where}: prune_layers: learned pruning is not supported")
    rates = (settings.prune_r, settings.merge_r, settings.merge_text)
    if not settings.reduce_layers:
        if any(rates):
            raise CheckpointError(f"{where}: prune_r, merge_r or merge_text without reduce_layers")
        if reduction_in_name is not None:
            _check_rates(reduction_in_name.rates, name)
        return reduction_in_name
    _check_rates(rates, where)
    if settings.sim_method not in MEAN_OF_HEADS:
        raise CheckpointError(
            f"{where}: sim_method is {settings.sim_method!r}; supported is the mean over heads, "
            f"{' or '.join(MEAN_OF_HEADS)}"
        )
    if settings.merge_r and settings.merge_style != "tome":
        raise CheckpointError(
            f"{where}: merge_style is {settings.merge_style!r}; supported is tome"
        )
    reduction = PuMerReduction(settings.reduce_layers, rates)
    if reduction_in_name is not None and reduction_in_name != reduction:
        raise CheckpointError(
            f"{where}: reduces layers {reduction.layers} by {reduction.rates}, but the name {name} "
            f"stands for layers {reduction_in_name.layers} by {reduction_in_name.rates}"
        )
    return reduction


def _check_rates(rates: Rates, where: str) -> None:
    """Check that shares are at most 1 and include pruning; raise CheckpointError otherwise.

    Without pruning, PuMer merges text and image jointly, by a count.
    """
    if max(rates) > 1 or rates[0] == 0:
        raise CheckpointError(
            f"{where}: prune_r, merge_r and merge_text are {rates}; supported are shares up to 1 "
            "with pruning"
        )


def _parse_name(name: str) -> PuMerReduction | None:
    match = NAME.search(name)
    if match is None:
        return None
    prune, merge, text = (float(match[group]) for group in (1, 2, 3))
    return PuMerReduction(tuple(int(layer) for layer in match[4]), (prune, merge, text))
