"""Schemas of the gallery routes."""

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

# Safe in a URL without escaping, and never a lone dot, which clients would resolve.
ID = r"^[A-Za-z0-9_][A-Za-z0-9._~:@+=-]{0,199}$"
MAX_METADATA = 65_536  # characters of JSON


def _as_object(value: Any) -> Any:
    """Parse a JSON object; in a form or a query it is a string."""
    if isinstance(value, str):
        if len(value) > MAX_METADATA:
            raise ValueError(f"is longer than {MAX_METADATA} characters")
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError as error:
            raise ValueError(f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError('is no JSON object, such as {"year": 2024}')
    return value


def _as_objects(value: Any) -> Any:
    listed = bounded(value) if isinstance(value, list) else [value]
    objects = [_as_object(value) for value in listed]
    for value in objects:
        if len(json.dumps(value, ensure_ascii=False)) > MAX_METADATA:
            raise ValueError(f"is longer than {MAX_METADATA} characters")
    return objects


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else bounded(value)


ImageId = Annotated[str, Field(pattern=ID)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_as_object)]

_NAME = Field(
    pattern=NAME, description="Lower case letters, digits and . _ -", examples=["holiday"]
)
_METADATA = Field(description="Metadata of the image.", examples=[{"album": "2024", "stars": 4}])


class GalleryCreate(BaseModel):
    """A gallery to create. Its model and level are fixed."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: Annotated[str, _NAME]
    model: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="The model that makes its vectors; by default the server's default.",
    )
    level: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="Level of its images. At most one of `level` and `reduction`.",
    )
    reduction: Annotated[float | None, optional] = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Fraction of the FLOPs to remove."
    )

    @property
    def selector(self) -> Selector:
        """The selector of the level."""
        return Selector(self.level, self.reduction)


class GalleryDescription(BaseModel):
    """A gallery."""

    name: Annotated[str, _NAME]
    model: str = Field(description="The model of its vectors.", examples=["scenes-retrieval"])
    level: str = Field(description="The level of its vectors.", examples=["balanced"])
    reduction: float = Field(description="Fraction of the FLOPs removed.", examples=[0.4])
    width: int = Field(description="Components of a vector.", examples=[512])
    created: AwareDatetime
    images: int = Field(ge=0, examples=[500])
    indexed: int = Field(
        ge=0,
        description="Images covered by the index; 0 if searches are exact.",
    )
    bytes: int = Field(ge=0, description="Bytes on disk.")
    served: bool = Field(
        description="Whether the model is served unchanged. If not, the gallery can only be read, "
        "and searched by id."
    )


class GalleryList(BaseModel):
    """Every gallery, by name."""

    galleries: list[GalleryDescription]


class ImagesAdd(BaseModel):
    """Images to add to a gallery."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    image: Images = Field(description="One image or several.")
    id: Annotated[list[ImageId], BeforeValidator(_as_list)] = Field(
        default=[],
        description="One for each image, in order. By default the SHA-256 of its bytes, so that "
        "the same image is stored once.",
    )
    metadata: Annotated[list[str | dict[str, Any]], BeforeValidator(_as_objects)] = Field(
        default=[],
        description="A JSON object for each image, in order, or one for all images. By default an "
        "empty object; the metadata of a known image stays as it is.",
    )
    model: Annotated[str | None, optional] = Field(
        None,
        max_length=128,
        description="Must be the gallery's model, if given.",
    )


class Kept(BaseModel):
    """The result of adding an image."""

    id: str = Field(description="Id of the image.", examples=["beach-1"])
    status: Literal["added", "replaced", "unchanged"] = Field(
        description="`unchanged`: the same content with the same metadata was there already."
    )
    reduction: Reduction | None = Field(None, description="If the image was embedded.")
    timings_ms: dict[str, float] | None = Field(None, description="Of its embedding, by stage.")


class ImagesAdded(BaseModel):
    """One result for each image, in order. Acknowledged images are on disk."""

    gallery: str
    model: str
    results: list[Kept | ItemProblem]
    timings_ms: dict[str, float] = Field(
        description="Milliseconds to `embed` all images, thumbnails included, and to `store` them."
    )


class GalleryImage(BaseModel):
    """A stored image."""

    id: str = Field(examples=["beach-1"])
    metadata: dict[str, Any] = _METADATA
    width: int = Field(description="Width of the original in pixels.")
    height: int
    added: AwareDatetime
    sha256: str = Field(description="SHA-256 of the original file.")
    thumbnail: str = Field(description="Path of a JPEG of at most 384 pixels a side.")
    vector: list[float] | None = Field(None, description="If it was requested.")


class ImagePage(BaseModel):
    """A page of images, ordered by id."""

    gallery: str
    images: list[GalleryImage]
    next: str | None = Field(None, description="`after` of the next page, if there is one.")


class ImagesDelete(BaseModel):
    """Images to delete."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[list[ImageId], BeforeValidator(_as_list)] = Field(
        min_length=1, max_length=1000, description="Ids of the images; 1 or more."
    )


class ImagesDeleted(BaseModel):
    """The number of deleted images."""

    deleted: int = Field(ge=0)


class SearchRequest(Selected):
    """A query: exactly one of `text`, `image` and `id`.

    The level applies to the embedding of `image` (by default the gallery's level), and to `rerank`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [by]} for by in ("text", "image", "id")],
            "dependentRequired": {"rerank": ["text"]},
        }
    )

    text: Annotated[str | None, optional, AfterValidator(readable)] = Field(
        None, description="Description of the images.", examples=["two dogs on a beach"]
    )
    image: Annotated[Images, Field(max_length=1)] = Field(
        default=[], description="An image; the most similar images are returned."
    )
    id: Annotated[str | None, optional] = Field(
        None,
        pattern=ID,
        description="Id of an image; the most similar images are returned.",
    )
    top_k: Annotated[int, BeforeValidator(whole)] = Field(
        10, ge=1, le=1000, description="Number of images to return."
    )
    offset: Annotated[int, BeforeValidator(whole)] = Field(
        0, ge=0, le=10_000, description="Number of the best images to skip."
    )
    filter: Annotated[JsonObject | None, optional] = Field(
        None,
        description="Filter on the metadata. A plain value must be equal; an object has operators: "
        "`ne`, `gt`, `gte`, `lt`, `lte`, `in`, `contains`, `exists`.",
        examples=[{"album": "2024", "stars": {"gte": 4}}],
    )
    exact: bool = Field(False, description="Compare with every image, even if there is an index.")
    rerank: Annotated[int | None, optional, BeforeValidator(whole)] = Field(
        None,
        ge=1,
        description="Number of the best images to re-rank with a network that reads image and text "
        "together.",
    )
    rerank_model: Annotated[str | None, optional] = Field(
        None, max_length=128, description="The re-ranking model; by default the server's default."
    )


class SearchResult(BaseModel):
    """An image of a search result."""

    id: str = Field(examples=["beach-1"])
    score: float = Field(
        description="The cosine, -1 to 1, plus `match` if the image was re-ranked."
    )
    similarity: float | None = Field(None, description="If re-ranked: the cosine.")
    match: float | None = Field(None, ge=0, le=1, description="If re-ranked: the match score.")
    metadata: dict[str, Any] = _METADATA
    width: int = Field(description="Width of the original in pixels.")
    height: int
    added: AwareDatetime
    thumbnail: str = Field(description="Path of a JPEG of at most 384 pixels a side.")


class Reranked(BaseModel):
    """The re-ranking."""

    model: str = Field(examples=["scenes"])
    candidates: int = Field(description="Number of re-ranked images.")
    reduction: Reduction = Field(description="Of all re-ranked images together.")


class SearchResponse(BaseModel):
    """Images, best first."""

    gallery: str
    model: str
    results: list[SearchResult]
    reduction: Reduction | None = Field(None, description="For a query image.")
    rerank: Reranked | None = None
    timings_ms: dict[str, float] = Field(
        description="Milliseconds to `embed` the query, to `search`, and to `rerank`."
    )
