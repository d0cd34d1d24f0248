"""What is told of engines that a backend needs, and that are not built yet when a server starts."""

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
        description="Waiting for those of other models, being built, loaded and tested, running "
        "the model, or failed: then another backend runs it."
    )
    done: float = Field(ge=0, le=1, description="Share of the building that is done.")
    engine: str | None = Field(None, description="The one that is being built.", examples=["model"])
    phase: str | None = Field(None, description="What its builder does.")
    why: str | None = Field(None, description="Why it failed.")
