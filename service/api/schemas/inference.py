"""Schemas of the inference routes: the fields that every task shares, and classification."""

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
    # The schema has no nulls: a field is given or left out.
    if value is None:
        raise ValueError("must not be null; leave it out instead")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | bytes) else bounded(value)


def bounded(value: Any) -> Any:
    """Check that a list has at most 1024 items."""
    # Checked before the items are: pydantic would report errors of millions of items.
    if isinstance(value, list) and len(value) > 1024:
        raise ValueError("has more than 1024 items")
    return value


def whole(value: Any) -> Any:
    """Convert 3.0 to 3: JSON has one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


optional = BeforeValidator(_given)

# Bytes from a form; base64, perhaps as a data URL, from JSON.
Images = Annotated[list[str | bytes], BeforeValidator(_listed), Field(min_length=1)]
Texts = Annotated[
    list[Annotated[str, AfterValidator(readable)]], BeforeValidator(_listed), Field(min_length=1)
]


MAX_LABELS = 1000


class Selected(BaseModel):
    """The fields that choose a model and its level."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="Name of the model; by default the server's default.",
    )
    level: Annotated[str | None, optional] = Field(
        None, max_length=128, description="Name of a level. Pass at most one selector."
    )
    reduction: Annotated[float | None, optional] = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Fraction of the FLOPs to remove; the closest plan is used.",
    )
    max_latency_ms: Annotated[float | None, optional] = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Selects the most accurate level that is expected to answer within this time: "
        "queue and run, without decoding.",
    )
    min_accuracy: Annotated[float | None, optional] = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Selects the fastest level whose measured quality at the task reaches this.",
    )

    @property
    def selector(self) -> Selector:
        """The selector of the level."""
        return Selector(self.level, self.reduction, self.max_latency_ms, self.min_accuracy)


class InferenceBody(Selected):
    """The fields of every inference request."""

    include: Annotated[list[Literal["slots"]], BeforeValidator(bounded)] = Field(
        default=[],
        description="Additional parts of the answer. `slots`: the final position of each token.",
    )


class Reduction(BaseModel):
    """The level that was used, and its cost."""

    method: str = Field(description="The reduction method.", examples=["tome"])
    level: str = Field(description="The level used, or `custom`.", examples=["fast"])
    requested: float = Field(description="Fraction of the FLOPs to remove.", examples=[0.55])
    flops_ratio: float = Field(description="FLOPs relative to the unreduced network.")
    tokens_in: int = Field(
        description="Tokens before the first layer: of image and text; of both images of a pair, "
        "each with the text; of all pairs of a row of a matrix."
    )
    tokens_out: int = Field(description="Tokens after the last layer.")


class Timings(BaseModel):
    """Milliseconds of one result."""

    decode: float
    queue: float = Field(description="Wait for a decoder and a worker.")
    infer: float = Field(description="Duration of its runs, each of a whole batch.")
    post: float


class Run(BaseModel):
    """The fields of every answer."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(description="Items of the run that answered this item.")
    timings_ms: Timings


class SharedFields(Run):
    """The fields that the answers of every task on images share."""

    reduction: Reduction


class ImageSlots(BaseModel):
    """Final positions of the tokens of an image, if requested."""

    slots: list[int] | None = Field(
        None,
        description="For each input token its position among the remaining tokens, or -1 if it was "
        "dropped. The first `protected` tokens are no patches; the others are the cells of `grid`, "
        "row by row.",
    )
    grid: tuple[int, int] | None = Field(None, description="Rows and columns of patches.")
    protected: int | None = Field(None, description="Leading tokens that are no patches.")


# The last base's fields come first: an answer before the fields that all tasks share.
class Result(ImageSlots, SharedFields):
    """The fields of an answer about an image without a text."""


class Prediction(BaseModel):
    """A class and its probability."""

    label: str = Field(examples=["frog"])
    index: int = Field(description="Index of the class, counted from 0.", examples=[6])
    score: float = Field(ge=0, le=1, examples=[0.93])


class ClassifyRequest(InferenceBody):
    """Images to classify."""

    image: Images = Field(description="One image or several.")
    labels: Annotated[Texts, Field(max_length=MAX_LABELS)] = Field(
        default=[],
        description="Classes, for a dual encoder; by default those of the model.",
    )
    template: Annotated[Annotated[Template, AfterValidator(readable)] | None, optional] = Field(
        None,
        max_length=512,
        pattern=r"\{\}",
        description="Text of a label, which replaces `{}`; by default the model's.",
        examples=["a photo of a {}."],
    )
    top_k: Annotated[int, BeforeValidator(whole)] = Field(
        5, ge=1, le=1000, description="Number of predictions of each image."
    )

    @model_validator(mode="after")
    def _template_for_labels(self) -> Self:
        if self.template is not None and not self.labels:
            raise ValueError("template needs labels")
        return self


class Predictions(BaseModel):
    """Classes, the most probable first."""

    predictions: list[Prediction]


# The last base's fields come first: the answer before the fields that all tasks share.
class ClassifyResult(Result, Predictions):
    """The most probable classes of an image."""


class ClassifyResponse(BaseModel):
    """One result for each image, in order."""

    model: str = Field(examples=["cifar10"])
    results: list[ClassifyResult | ItemProblem]
