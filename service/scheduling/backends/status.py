"""State of TensorRT engines that were not built when the server started."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["waiting", "building", "testing", "serving", "failed"]


class EngineStatus(BaseModel):
    """The engines of a model on a backend."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(examples=["vit-base"])
    backend: str = Field(examples=["tensorrt"])
    state: State = Field(
        description="`waiting` for the engines of other models, `building`, `testing`, `serving` "
        "the model, or `failed`: then another backend runs it."
    )
    done: float = Field(ge=0, le=1, description="Fraction of the build that is done.")
    engine: str | None = Field(None, description="The engine being built.", examples=["model"])
    phase: str | None = Field(None, description="The builder's current phase.")
    why: str | None = Field(None, description="Reason of a failure.")
