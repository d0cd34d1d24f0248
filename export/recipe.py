"""Export recipes: the options of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenfold.bundle.document import Name, Share
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.pair_workload import Rates
from tokenfold.bundle.schedule import DEFAULT_LEVELS, Ramp
from tokenfold.bundle.workload import Method, Shape

AnyMethod = Literal["none", "tome", "pitome", "pumer"]


class Shares(NamedTuple):
    """PuMer's amounts: fractions of the tokens that enter each reducing layer.

    Attributes:
        prune: fraction of image tokens to drop.
        merge: fraction of image tokens to merge.
        text: fraction of text tokens to merge.
    """

    prune: float
    merge: float
    text: float


Amount = Share | Ramp | Shares | tuple[int, ...]
"""Amount that a level reduces: a fraction of the FLOPs, ToMe's (r, inflect), PuMer's shares, or an
explicit plan."""

PUBLISHED = "pumer"
"""Level with the shares that the checkpoint was trained with."""


class RecipeError(ValueError):
    """A recipe that does not fit the checkpoint; the message gives the reason."""


class Recipe(BaseModel):
    """Options of an export.

    Attributes:
        name: name of the model in the service.
        method: matcher of the reducing layers; by default `pumer` for image-text networks, `tome`
            for others.
        levels: amount to reduce, by level; by default `levels.default_reductions`, for PuMer
            also the level `PUBLISHED`, and for the method `none` only `exact`.
        default_level: level for requests that choose none; by default `balanced`, or the first
            level where there is no `balanced`.
        shape: distribution of the removed tokens over the layers.
        proportional: whether attention counts token sizes in an image network; False for MAE
            trained without ToMe.
        weighted: whether tokens merge by size and attention counts sizes in an image-text network;
            by default as the checkpoint was trained.
        layers, rates: layers that PuMer reduces and its rates; by default the checkpoint's.
        tower: tokens that ToMe removes in each layer of METER's image tower at every level. The
            reductions of the levels are relative to the network with the reduced tower.
        images: folder or zip file of images to verify and measure on. Folder names are labels of a
            classifier; a file `items.jsonl` holds the questions and answers for an image-text
            network and the descriptions of the images for a dual encoder.
        threads: threads that measure side by side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    method: AnyMethod | None = None
    precision: Precision = "fp32"
    levels: dict[Name, Amount] | None = Field(default=None, min_length=1)
    default_level: Name | None = None
    shape: Shape = "constant"
    proportional: bool = True
    weighted: bool | None = None
    layers: tuple[int, ...] | None = None
    rates: Rates | None = None
    tower: int = Field(default=0, ge=0)
    images: Path | None = None
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [*(DEFAULT_LEVELS if self.levels is None else self.levels), PUBLISHED]
        if self.default_level is not None and self.default_level not in names:
            raise ValueError(
                f"the default level {self.default_level!r} is not among {', '.join(names)}"
            )
        if self.method != "pumer" and self.method is not None and (self.layers or self.rates):
            raise ValueError(
                f"layers and rates are PuMer's; the method {self.method} does not take them"
            )
        return self

    @property
    def image_method(self) -> Method:
        """Method of a network that takes images without texts.

        Raises:
            RecipeError: the recipe has an option for image-text networks.
        """
        if self.method == "pumer":
            raise RecipeError(
                "the method pumer is for image-text networks; this network takes images without "
                "texts: use none, tome or pitome"
            )
        if self.layers or self.rates or self.weighted is not None or self.tower:
            raise RecipeError(
                "--layers, --rates, --weighted, --plain and --tower are for image-text networks; "
                "this network takes images without texts"
            )
        return self.method or "tome"
