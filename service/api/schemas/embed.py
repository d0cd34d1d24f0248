"""Schemas of the embedding route."""

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
    """Images or texts to embed."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["text"]}]}
    )

    image: Images = Field(default=[], description="One image or several; not together with `text`.")
    text: Texts = Field(default=[], description="One text or several; not together with `image`.")
    encoding: Encoding = Field(
        "float",
        description="Encoding of the vectors: numbers with nine decimals, or base64 of "
        "little-endian float32.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.image) == bool(self.text):
            given = "both" if self.image else "neither"
            raise ValueError(f"send either image or text; the request has {given}")
        return self


class VectorOf(BaseModel):
    """A vector of length 1. Vectors of one model can be compared."""

    vector: list[float] | str
    reduction: Reduction | None = Field(None, description="For an image.")
    text: Text | None = Field(None, description="For a text: its tokens.")


class EmbedResult(ImageSlots, Run, VectorOf):
    """The vector of an image or of a text."""


class EmbedResponse(BaseModel):
    """One result for each image or text, in order."""

    model: str = Field(examples=["scenes-retrieval"])
    results: list[EmbedResult | ItemProblem]
