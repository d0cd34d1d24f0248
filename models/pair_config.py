"""What the configurations of vision-language networks have in common."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenfold.bundle.pair_workload import Rates
from tokenfold.bundle.tasks import PairTask
from tokenfold.models.pair import HeadConfig


class PairConfig(BaseModel):
    """Sizes in pixels, widths in channels.

    Attributes:
        image_size: of the position embedding; other images get it resized.
        dim: width of every token, of text and image.
        depth: layers in which text and image meet.
        vocabulary: word embeddings; texts have at most `most_text` tokens.
        modalities: modality embeddings: text, image, and perhaps second image.
        heads: by task.
        layers, rates: PuMer's own: which layers reduce, and by which (prune, merge, text) shares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[int, int] = (384, 384)
    patch_size: int = Field(ge=1)
    dim: int = Field(default=768, ge=1)
    depth: int = Field(ge=1)
    heads_per_layer: int = Field(default=12, ge=1)
    mlp_dim: int = Field(default=3072, ge=1)
    vocabulary: int = Field(ge=1)
    most_text: int = Field(default=40, ge=1)
    modalities: int = Field(default=2, ge=2, le=3)
    heads: dict[PairTask, HeadConfig] = Field(min_length=1)
    layers: tuple[int, ...]
    rates: Rates

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(side < 1 or side % self.patch_size for side in self.image_size):
            raise ValueError(f"patches of {self.patch_size} do not tile {self.image_size}")
        if self.dim % self.heads_per_layer:
            raise ValueError(
                f"the width {self.dim} does not divide into {self.heads_per_layer} heads"
            )
        if any(not 0 <= layer < self.depth for layer in self.layers):
            raise ValueError(f"reducing layers are 0 to {self.depth - 1}, not {self.layers}")
        if "reason" in self.heads and self.modalities < 3:
            raise ValueError("to reason about two images, three modality embeddings are needed")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the position embedding."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]
