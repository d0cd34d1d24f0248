"""What goes in and comes out of the route that makes vectors."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenfold.inference.outputs import Encoding
from tokenfold.service.api.problems import ItemProblem
from tokenfold.service.api.schemas.inference import (
    Images,
    ImageSlots,
    InferenceBody,
    Reduction,
    Run,
    Texts,
)
from tokenfold.service.api.schemas.pairs import Text


class EmbedRequest(InferenceBody):
    """Images or texts to make vectors of."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["text"]}]}
    )

    image: Images = Field(default=[], description="One image or several, and no text.")
    text: Texts = Field(default=[], description="One text or several, and no image.")
    encoding: Encoding = Field(
        "float",
        description="Of the vectors: numbers of nine decimals, or base64 of little-endian float32.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.image) == bool(self.text):
            given = "both" if self.image else "neither"
            raise ValueError(f"send either image or text; there is {given}")
        return self


class VectorOf(BaseModel):
    """An image, or a text, as a vector of length 1; those of one model can be compared."""

    vector: list[float] | str
    reduction: Reduction | None = Field(None, description="Of an image.")
    text: Text | None = Field(None, description="How a text was read.")


class EmbedResult(ImageSlots, Run, VectorOf):
    """The vector of an image or of a text."""


class EmbedResponse(BaseModel):
    """One result for each image or text, in order."""

    model: str = Field(examples=["scenes-retrieval"])
    results: list[EmbedResult | ItemProblem]
