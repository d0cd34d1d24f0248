"""What goes in and comes out of the inference routes; the parts that every task shares."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from tokenfold.bundle.text import Template
from tokenfold.inference.levels import Selector
from tokenfold.inference.texts import readable
from tokenfold.service.api.problems import ItemProblem


def _given(value: Any) -> Any:
    # A null is neither a choice nor the lack of one: the schema has no nulls.
    if value is None:
        raise ValueError("must not be null; leave it out instead")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | bytes) else bounded(value)


def bounded(value: Any) -> Any:
    """A list of not too many items."""
    # Before they are looked at: pydantic would describe what is wrong with each of millions.
    if isinstance(value, list) and len(value) > 1024:
        raise ValueError("has more than 1024 items")
    return value


def whole(value: Any) -> Any:
    """For JSON, which knows one kind of number: 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


optional = BeforeValidator(_given)

# Bytes from a form; base64, perhaps as a data URL, from JSON.
Images = Annotated[list[str | bytes], BeforeValidator(_listed), Field(min_length=1)]
Texts = Annotated[
    list[Annotated[str, AfterValidator(readable)]], BeforeValidator(_listed), Field(min_length=1)
]


MOST_LABELS = 1000


class Selected(BaseModel):
    """The fields that choose a model and its level."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="Name of the model; by default the server's default.",
    )
    level: Annotated[str | None, optional] = Field(
        None, max_length=128, description="A level of the model by name. One selector at most."
    )
    reduction: Annotated[float | None, optional] = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Fraction of the FLOPs to remove; the closest plan is taken.",
    )
    max_latency_ms: Annotated[float | None, optional] = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Takes the most accurate level that is expected to answer in this time: "
        "waiting and running, without decoding.",
    )
    min_accuracy: Annotated[float | None, optional] = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Takes the fastest level whose measured quality at the task reaches this.",
    )

    @property
    def selector(self) -> Selector:
        """How the level is chosen."""
        return Selector(self.level, self.reduction, self.max_latency_ms, self.min_accuracy)


class InferenceBody(Selected):
    """The fields of every inference request."""

    include: Annotated[list[Literal["slots"]], BeforeValidator(bounded)] = Field(
        default=[],
        description="Further parts of the answer. `slots`: where each token ended up.",
    )


class Reduction(BaseModel):
    """How much was left out."""

    method: str = Field(description="How tokens were chosen.", examples=["tome"])
    level: str = Field(description="The level used, or `custom`.", examples=["fast"])
    requested: float = Field(description="Fraction of FLOPs to remove.", examples=[0.55])
    flops_ratio: float = Field(description="FLOPs spent, of the unreduced network's.")
    tokens_in: int = Field(
        description="Tokens before the first layer: of image and text; of both images of a pair, "
        "each with the text; of a whole row of a matrix."
    )
    tokens_out: int = Field(description="Tokens after the last layer.")


class Timings(BaseModel):
    """Milliseconds of one result."""

    decode: float
    queue: float = Field(description="Waiting for a decoder and for a worker.")
    infer: float = Field(description="Its runs, each of the whole batch.")
    post: float


class Run(BaseModel):
    """The parts of every answer."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(description="Items of the run that answered this one.")
    timings_ms: Timings


class Circumstances(Run):
    """The parts of an answer that every task on images shares."""

    reduction: Reduction


class ImageSlots(BaseModel):
    """Where the tokens of an image ended up, if that was asked for."""

    slots: list[int] | None = Field(
        None,
        description="For each input token its position among the tokens that are left, or -1 "
        "where it was dropped. The first `protected` are no patches; the others are the cells of "
        "`grid`, row by row.",
    )
    grid: tuple[int, int] | None = Field(None, description="Rows and columns of patches.")
    protected: int | None = Field(None, description="Leading tokens that are no patches.")


# The last base's fields come first: an answer before its circumstances.
class Result(ImageSlots, Circumstances):
    """The parts of an answer about an image without a text."""


class Prediction(BaseModel):
    """A class and its probability."""

    label: str = Field(examples=["frog"])
    index: int = Field(description="The class, counted from 0.", examples=[6])
    score: float = Field(ge=0, le=1, examples=[0.93])


class ClassifyRequest(InferenceBody):
    """Images to classify."""

    image: Images = Field(description="One image or several.")
    labels: Annotated[Texts, Field(max_length=MOST_LABELS)] = Field(
        default=[],
        description="Classes of the request's own, with a dual encoder; by default those of the "
        "model.",
    )
    template: Annotated[Annotated[Template, AfterValidator(readable)] | None, optional] = Field(
        None,
        max_length=512,
        pattern=r"\{\}",
        description="How a label becomes a text, at its `{}`; by default the model's way.",
        examples=["a photo of a {}."],
    )
    top_k: Annotated[int, BeforeValidator(whole)] = Field(
        5, ge=1, le=1000, description="Predictions of each image."
    )

    @model_validator(mode="after")
    def _template_for_labels(self) -> Self:
        if self.template is not None and not self.labels:
            raise ValueError("template says how labels become texts, and there are no labels")
        return self


class Predictions(BaseModel):
    """Classes, likeliest first."""

    predictions: list[Prediction]


# The last base's fields come first: the answer before its circumstances.
class ClassifyResult(Result, Predictions):
    """The likeliest classes of an image."""


class ClassifyResponse(BaseModel):
    """One result for each image, in order."""

    model: str = Field(examples=["cifar10"])
    results: list[ClassifyResult | ItemProblem]
