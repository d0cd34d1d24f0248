"""What goes in and comes out of the routes of galleries."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic_core import from_json

from tokenfold.inference.levels import Selector
from tokenfold.inference.texts import readable
from tokenfold.service.api.problems import ItemProblem
from tokenfold.service.api.schemas.inference import (
    Images,
    Reduction,
    Selected,
    bounded,
    optional,
    whole,
)
from tokenfold.service.galleries.record import NAME

# In a URL as it is written, and never a dot alone, which a client would resolve.
ID = r"^[A-Za-z0-9_][A-Za-z0-9._~:@+=-]{0,199}$"
LARGEST_METADATA = 65_536  # characters of JSON


def _as_object(value: Any) -> Any:
    """A JSON object: as such in JSON, written out in a form or a query."""
    if isinstance(value, str):
        if len(value) > LARGEST_METADATA:
            raise ValueError(f"is longer than {LARGEST_METADATA} characters")
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError as error:
            raise ValueError(f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError('is no JSON object, such as {"year": 2024}')
    return value


def _as_objects(value: Any) -> Any:
    listed = bounded(value) if isinstance(value, list) else [value]
    found = [_as_object(one) for one in listed]
    for one in found:
        if len(json.dumps(one, ensure_ascii=False)) > LARGEST_METADATA:
            raise ValueError(f"is longer than {LARGEST_METADATA} characters")
    return found


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else bounded(value)


ImageId = Annotated[str, Field(pattern=ID)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_as_object)]

_NAME = Field(
    pattern=NAME, description="Lower case letters, digits and . _ -", examples=["holiday"]
)
_METADATA = Field(description="As it was given.", examples=[{"album": "2024", "stars": 4}])


class GalleryCreate(BaseModel):
    """A gallery to be made: its model and level stay."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: Annotated[str, _NAME]
    model: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="What makes its vectors; by default the server's default.",
    )
    level: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="At which its images are embedded. This or `reduction`, or neither.",
    )
    reduction: Annotated[float | None, optional] = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Fraction of the FLOPs to remove then."
    )

    @property
    def selector(self) -> Selector:
        """How the level is chosen."""
        return Selector(self.level, self.reduction)


class GalleryDescription(BaseModel):
    """A gallery."""

    name: Annotated[str, _NAME]
    model: str = Field(description="That made its vectors.", examples=["scenes-retrieval"])
    level: str = Field(description="At which they were made.", examples=["balanced"])
    reduction: float = Field(description="Fraction of FLOPs removed then.", examples=[0.4])
    width: int = Field(description="Numbers of a vector.", examples=[512])
    created: AwareDatetime
    images: int = Field(ge=0, examples=[500])
    indexed: int = Field(
        ge=0, description="Images that its index covers; 0 without one: searches are exact then."
    )
    bytes: int = Field(ge=0, description="On disk.")
    served: bool = Field(
        description="Whether the model is served as it was then. If not, the gallery can be read, "
        "and searched by id, and that is all."
    )


class GalleryList(BaseModel):
    """Every gallery, by name."""

    galleries: list[GalleryDescription]


class ImagesAdd(BaseModel):
    """Images for a gallery."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    image: Images = Field(description="One image or several.")
    id: Annotated[list[ImageId], BeforeValidator(_as_list)] = Field(
        default=[],
        description="One for each image, in order. By default the SHA-256 of its bytes, so that "
        "the same image is kept once.",
    )
    metadata: Annotated[list[str | dict[str, Any]], BeforeValidator(_as_objects)] = Field(
        default=[],
        description="A JSON object for each image, in order; or one for all of them. By default "
        "an empty one; or, where the same content is there already, what is said of it stays.",
    )
    model: Annotated[str | None, optional] = Field(
        None, max_length=128, description="Refused if it is not the gallery's."
    )


class Kept(BaseModel):
    """What became of an image."""

    id: str = Field(description="By which it is found again.", examples=["beach-1"])
    status: Literal["added", "replaced", "unchanged"] = Field(
        description="`unchanged`: this content was there, with this metadata."
    )
    reduction: Reduction | None = Field(None, description="If it was embedded.")
    timings_ms: dict[str, float] | None = Field(None, description="Of its embedding, by stage.")


class ImagesAdded(BaseModel):
    """One result for each image, in order. What is acknowledged is on disk."""

    gallery: str
    model: str
    results: list[Kept | ItemProblem]
    timings_ms: dict[str, float] = Field(
        description="`embed` all images, their thumbnails included, and `store` them."
    )


class GalleryImage(BaseModel):
    """An image as a gallery keeps it."""

    id: str = Field(examples=["beach-1"])
    metadata: dict[str, Any] = _METADATA
    width: int = Field(description="Of the original, in pixels.")
    height: int
    added: AwareDatetime
    sha256: str = Field(description="Of the original's bytes.")
    thumbnail: str = Field(description="The path of a JPEG of 384 pixels at most.")
    vector: list[float] | None = Field(None, description="If it was asked for.")


class ImagePage(BaseModel):
    """Images of a gallery, by id."""

    gallery: str
    images: list[GalleryImage]
    next: str | None = Field(None, description="For `after`, if there are more.")


class ImagesDelete(BaseModel):
    """Images to be removed."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[ImageId], BeforeValidator(_as_list)] = Field(
        min_length=1, max_length=1000, description="Of the images; 1 or more."
    )


class ImagesDeleted(BaseModel):
    """How many there were."""

    deleted: int = Field(ge=0)


class SearchRequest(Selected):
    """What to look for: exactly one of `text`, `image` and `id`.

    The level is that of an image's embedding (by default the gallery's), and of `rerank`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [by]} for by in ("text", "image", "id")],
            "dependentRequired": {"rerank": ["text"]},
        }
    )

    text: Annotated[str | None, optional, AfterValidator(readable)] = Field(
        None, description="What the images show.", examples=["two dogs on a beach"]
    )
    image: Annotated[Images, Field(max_length=1)] = Field(
        default=[], description="An image that the others look like."
    )
    id: Annotated[str | None, optional] = Field(
        None, pattern=ID, description="An image of the gallery that the others look like."
    )
    top_k: Annotated[int, BeforeValidator(whole)] = Field(
        10, ge=1, le=1000, description="Images to find."
    )
    offset: Annotated[int, BeforeValidator(whole)] = Field(
        0, ge=0, le=10_000, description="Of the best images leave out so many."
    )
    filter: Annotated[JsonObject | None, optional] = Field(
        None,
        description="Of the metadata. A value must be equal; an object says more: `ne`, `gt`, "
        "`gte`, `lt`, `lte`, `in`, `contains`, `exists`.",
        examples=[{"album": "2024", "stars": {"gte": 4}}],
    )
    exact: bool = Field(
        False, description="Compare with every image, even where there is an index."
    )
    rerank: Annotated[int | None, optional, BeforeValidator(whole)] = Field(
        None,
        ge=1,
        description="So many of the best are looked at again, together with the text, by a network "
        "that sees both.",
    )
    rerank_model: Annotated[str | None, optional] = Field(
        None, max_length=128, description="That network; by default the server's default."
    )


class Found(BaseModel):
    """An image that was found."""

    id: str = Field(examples=["beach-1"])
    score: float = Field(
        description="What it is ranked by: the cosine, -1 to 1; plus `match`, if there is one."
    )
    similarity: float | None = Field(
        None, description="Where it was looked at again: the cosine by which it was found."
    )
    match: float | None = Field(
        None, ge=0, le=1, description="Where it was looked at again: how well the text fits."
    )
    metadata: dict[str, Any] = _METADATA
    width: int = Field(description="Of the original, in pixels.")
    height: int
    added: AwareDatetime
    thumbnail: str = Field(description="The path of a JPEG of 384 pixels at most.")


class Reranked(BaseModel):
    """How the best were ranked again."""

    model: str = Field(examples=["scenes"])
    candidates: int = Field(description="Images that it looked at.")
    reduction: Reduction = Field(description="Of all of them together.")


class SearchResponse(BaseModel):
    """Images, best first."""

    gallery: str
    model: str
    results: list[Found]
    reduction: Reduction | None = Field(None, description="Of the image that was sent.")
    rerank: Reranked | None = None
    timings_ms: dict[str, float] = Field(
        description="`embed` what was sent, `search`, and `rerank`."
    )
