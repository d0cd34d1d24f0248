"""JSON documents of a bundle: their base classes and their format number."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

FORMAT = 2
"""Format number that this version writes; it reads the previous one, too."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Document(BaseModel):
    """Immutable data that is stored as JSON; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionedDocument(Document):
    """A document in a separate file, with a format number.

    A subclass declares the field `format` and converts documents of the previous format.
    """

    current_format: ClassVar[int] = FORMAT

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Convert the JSON object of a document in the previous format to the current one."""
        raise NotImplementedError

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a document in the current or the previous format.

        Raises:
            ValueError: the document has another format, or the text is not such a document.
        """
        content = from_json(text)
        current, previous = cls.current_format, cls.current_format - 1
        number = content.get("format") if isinstance(content, dict) else None
        # Anything but a number is left to the schema, which names the field.
        if type(number) is int and number != current:
            if number != previous:
                advice = (
                    "install a newer version of Tokenfold"
                    if number > current
                    else "export the model again"
                )
                raise ValueError(
                    f"the file has format {number}; this version reads formats {previous} and "
                    f"{current}: {advice}"
                )
            try:
                content = {**cls.upgrade(content), "format": current}
            except (AttributeError, TypeError) as error:
                raise ValueError(f"the file is not a document of format {number}") from error
        return cls.model_validate(content)
