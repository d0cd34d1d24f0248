"""What goes in and comes out of the routes that look at images with texts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from tokenfold.service.api.problems import ItemProblem
from tokenfold.service.api.schemas.inference import (
    Circumstances,
    Images,
    InferenceBody,
    Texts,
    whole,
)


class Text(BaseModel):
    """How a text was read."""

    tokens: int = Field(description="Special ones included.", examples=[9])
    cut: bool = Field(description="Whether it was longer than the model takes.")
    pieces: list[str] | None = Field(
        None, description="With `slots`: what each token reads as.", examples=[["[CLS]", "what"]]
    )


class PairSlots(BaseModel):
    """Where the tokens of a text and of an image that it was read with ended up.

    Positions among the tokens that are left, or -1 where a token was dropped. A network of one
    stream counts both in it; one of two streams each in its own.
    """

    text_slots: list[int]
    image_slots: list[int] = Field(
        description="The first `protected` are no patches; the others are the cells of `grid`, "
        "row by row."
    )
    grid: tuple[int, int] | None = Field(
        None,
        description="Rows and columns of patches. Left out where the network merges patches before "
        "they meet a text: its image tokens are no patches.",
    )
    protected: int


class PairResult(Circumstances):
    """The parts that every answer about an image and a text shares."""

    text: Text
    slots: list[PairSlots] | None = Field(None, description="One for each image it looks at.")


class VqaRequest(InferenceBody):
    """Images, and questions about them."""

    image: Images = Field(description="One image or several.")
    question: Texts = Field(
        description="One for each image; or one for all images, or several about one image."
    )
    top_k: Annotated[int, BeforeValidator(whole)] = Field(
        5, ge=1, le=1000, description="Answers to each question."
    )


class Answer(BaseModel):
    """An answer and its score."""

    answer: str = Field(examples=["blue"])
    index: int = Field(description="The answer, counted from 0.", examples=[3])
    score: float = Field(ge=0, le=1, examples=[0.87])


class Answers(BaseModel):
    """Answers, likeliest first."""

    answers: list[Answer]


# The last base's fields come first: the answer before its circumstances.
class VqaResult(PairResult, Answers):
    """The likeliest answers to a question."""


class VqaResponse(BaseModel):
    """One result for each question and image, in order."""

    model: str = Field(examples=["scenes"])
    results: list[VqaResult | ItemProblem]


class EntailRequest(InferenceBody):
    """Images, and what may follow from them."""

    image: Images = Field(description="One image or several.")
    hypothesis: Texts = Field(
        description="One for each image; or one for all images, or several about one image."
    )


class Entailment(BaseModel):
    """Whether a text follows from an image."""

    label: str = Field(description="The likeliest.", examples=["entailment"])
    scores: dict[str, float] = Field(
        examples=[{"entailment": 0.93, "neutral": 0.05, "contradiction": 0.02}]
    )


class EntailResult(PairResult, Entailment):
    """Whether a hypothesis follows from an image."""


class EntailResponse(BaseModel):
    """One result for each hypothesis and image, in order."""

    model: str = Field(examples=["scenes"])
    results: list[EntailResult | ItemProblem]


class ReasonRequest(InferenceBody):
    """Pairs of images, and statements about them."""

    image: Annotated[Images, Field(min_length=2)] = Field(
        description="Two images, left and right; or more such pairs."
    )
    statement: Texts = Field(
        description="One for each pair; or one for all pairs, or several about one pair."
    )


class Truth(BaseModel):
    """Whether a statement is true."""

    answer: bool
    score: float = Field(ge=0, le=1, description="Of its being true.", examples=[0.81])


class ReasonResult(PairResult, Truth):
    """Whether a statement is true of two images."""


class ReasonResponse(BaseModel):
    """One result for each statement and pair of images, in order."""

    model: str = Field(examples=["scenes"])
    results: list[ReasonResult | ItemProblem]


class MatchRequest(InferenceBody):
    """Images and texts, to be matched with each other."""

    image: Images = Field(description="One image or several.")
    text: Texts = Field(description="One text or several.")


class MatchScores(BaseModel):
    """How well each text fits an image."""

    scores: list[float] = Field(description="0 to 1, in the order of the texts.")


class MatchResult(Circumstances, MatchScores):
    """A row of the matrix: an image with every text."""

    slots: list[PairSlots] | None = Field(None, description="One for each text.")


class MatchResponse(BaseModel):
    """A row for each image, in order."""

    model: str = Field(examples=["scenes"])
    texts: list[Text] = Field(description="How each text was read.")
    results: list[MatchResult | ItemProblem]


def example(answer: dict[str, Any], *, pairs: int = 1) -> dict[str, Any]:
    """A result as the demo model may give it, of texts of 8 tokens.

    Args:
        answer: what is the task's own in it.
        pairs: of an image with a text, that it is about.
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
