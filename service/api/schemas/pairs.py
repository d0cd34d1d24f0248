"""Schemas of the routes for images with texts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from tokenfold.service.api.problems import ItemProblem
from tokenfold.service.api.schemas.inference import (
    Images,
    InferenceBody,
    SharedFields,
    Texts,
    whole,
)


class Text(BaseModel):
    """The tokens of a text."""

    tokens: int = Field(description="Number of tokens, special tokens included.", examples=[9])
    cut: bool = Field(description="Whether the text was cut at the model's maximum length.")
    pieces: list[str] | None = Field(
        None, description="With `slots`: the string of each token.", examples=[["[CLS]", "what"]]
    )


class PairSlots(BaseModel):
    """Final positions of the tokens of a text and its image.

    A position counts the remaining tokens; -1 marks a dropped token. A single-stream network counts
    the tokens of both together, a two-stream network those of each stream.
    """

    text_slots: list[int]
    image_slots: list[int] = Field(
        description="The first `protected` tokens are no patches; the others are the cells of "
        "`grid`, row by row."
    )
    grid: tuple[int, int] | None = Field(
        None,
        description="Rows and columns of patches. Omitted if the network merges patches before "
        "they meet a text, because its image tokens are no patches then.",
    )
    protected: int


class PairResult(SharedFields):
    """The fields that every answer about an image and a text shares."""

    text: Text
    slots: list[PairSlots] | None = Field(None, description="One for each image of the item.")


class VqaRequest(InferenceBody):
    """Images and questions."""

    image: Images = Field(description="One image or several.")
    question: Texts = Field(
        description="One for each image, one for all images, or several for one image."
    )
    top_k: Annotated[int, BeforeValidator(whole)] = Field(
        5, ge=1, le=1000, description="Number of answers to each question."
    )


class Answer(BaseModel):
    """An answer and its score."""

    answer: str = Field(examples=["blue"])
    index: int = Field(description="Index of the answer, counted from 0.", examples=[3])
    score: float = Field(ge=0, le=1, examples=[0.87])


class Answers(BaseModel):
    """Answers, the most probable first."""

    answers: list[Answer]


# The last base's fields come first: the answer before the fields that all tasks share.
class VqaResult(PairResult, Answers):
    """The most probable answers to a question."""


class VqaResponse(BaseModel):
    """One result for each question and image, in order."""

    model: str = Field(examples=["scenes"])
    results: list[VqaResult | ItemProblem]


class EntailRequest(InferenceBody):
    """Images and hypotheses."""

    image: Images = Field(description="One image or several.")
    hypothesis: Texts = Field(
        description="One for each image, one for all images, or several for one image."
    )


class Entailment(BaseModel):
    """The relation of a text to an image."""

    label: str = Field(description="The most probable label.", examples=["entailment"])
    scores: dict[str, float] = Field(
        examples=[{"entailment": 0.93, "neutral": 0.05, "contradiction": 0.02}]
    )


class EntailResult(PairResult, Entailment):
    """The relation of a hypothesis to an image."""


class EntailResponse(BaseModel):
    """One result for each hypothesis and image, in order."""

    model: str = Field(examples=["scenes"])
    results: list[EntailResult | ItemProblem]


class ReasonRequest(InferenceBody):
    """Pairs of images and statements."""

    image: Annotated[Images, Field(min_length=2)] = Field(
        description="Two images, left and right; or more such pairs."
    )
    statement: Texts = Field(
        description="One for each pair, one for all pairs, or several for one pair."
    )


class Truth(BaseModel):
    """The truth of a statement."""

    answer: bool
    score: float = Field(ge=0, le=1, description="Probability that it is true.", examples=[0.81])


class ReasonResult(PairResult, Truth):
    """The truth of a statement about two images."""


class ReasonResponse(BaseModel):
    """One result for each statement and pair of images, in order."""

    model: str = Field(examples=["scenes"])
    results: list[ReasonResult | ItemProblem]


class MatchRequest(InferenceBody):
    """Images and texts to match."""

    image: Images = Field(description="One image or several.")
    text: Texts = Field(description="One text or several.")


class MatchScores(BaseModel):
    """Match scores of an image with each text."""

    scores: list[float] = Field(description="0 to 1, in the order of the texts.")


class MatchResult(SharedFields, MatchScores):
    """A row of the matrix: one image with every text."""

    slots: list[PairSlots] | None = Field(None, description="One for each text.")


class MatchResponse(BaseModel):
    """A row for each image, in order."""

    model: str = Field(examples=["scenes"])
    texts: list[Text] = Field(description="The tokens of each text.")
    results: list[MatchResult | ItemProblem]


def example(answer: dict[str, Any], *, pairs: int = 1) -> dict[str, Any]:
    """Return an example result of the demo model for texts of 8 tokens.

    Args:
        answer: the fields of the task.
        pairs: number of pairs of an image and a text that it covers.
    """
    return {
        **answer,
        "reduction": {
            "method": "pumer",
            "level": "balanced",
            "requested": 0.4,
            "flops_ratio": 0.602813,
            "tokens_in": 153 * pairs,
            "tokens_out": 43 * pairs,
        },
        "batch_size": 1,
        "timings_ms": {"decode": 0.731, "queue": 0.204, "infer": 3.912, "post": 0.058},
    }
