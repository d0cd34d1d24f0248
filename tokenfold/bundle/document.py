"""What the documents of a bundle have in common. No torch in here."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Document(BaseModel):
    """What is kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")
