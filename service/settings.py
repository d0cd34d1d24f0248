"""Every setting of `tokenfold serve`: a flag, or an environment variable TOKENFOLD_<NAME>."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import tokenfold
from tokenfold.runtime.machine import cores
from tokenfold.runtime.tensorrt.store import engines_folder

DEMO = Path(tokenfold.__file__).parent / "models" / "demo" / "bundles"
MEBI = 1024 * 1024


def data_home() -> str:
    """Where a user's own data is kept, by the XDG base directory specification."""
    home = os.environ.get("XDG_DATA_HOME", "")
    # A relative one is to be ignored, says the specification.
    root = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share"
    return str(root / "tokenfold")


class Settings(BaseSettings):
    """Serve the bundles of a folder over HTTP."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENFOLD_",
        extra="forbid",
        frozen=True,
        cli_prog_name="tokenfold serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
    )

    bundles: Path = Field(DEMO, description="A bundle, or a folder of bundles.")
    default_model: str | None = Field(
        None, description="For requests that name no model. By default the first one, by folder."
    )
    default_level: str | None = Field(
        None, description="For requests that choose no level. By default what each bundle says."
    )

    data_dir: str = Field(
        default_factory=data_home,
        min_length=1,
        description="Where galleries are kept: a folder, or a folder of an object store, such as "
        "s3://bucket/tokenfold, that several servers share. By default one in the home directory.",
    )
    sample_gallery: bool = Field(
        False,
        description="Fill a gallery of drawn scenes at the start, if it is not there, for a first "
        "search.",
    )
    max_rerank: int = Field(
        100, ge=1, le=1000, description="Images that a search may look at again with its text."
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")

    backend: Literal["auto", "tensorrt", "cuda", "cpu"] = Field(
        "auto",
        description="What runs the models. By default the first of the others that is here and "
        "answers as the CPU does; and where it fails later, the one after it. A named one runs all "
        "models, or none. TensorRT's engines are built where they are missing: in the background, "
        "while the next one runs the models, or before the start if it is named.",
    )
    engines: Path = Field(
        default_factory=engines_folder,
        description="Where TensorRT's engines are kept: a folder, which servers with the same GPU "
        "may share. By default one in the home directory.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads that run the models; on a CPU one image each, on a GPU two of them "
        "with a batch each. By default one per core, and two where there is a GPU.",
    )
    decoders: int = Field(
        default_factory=cores,
        ge=1,
        le=1024,
        description="Threads that decode images. By default one per core.",
    )
    queue_limit: int = Field(
        512, ge=1, description="Runs that may wait. Beyond it, requests are refused with 503."
    )
    request_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds a request may take from its last byte on."
    )
    drain_timeout: float = Field(
        20.0, gt=0, le=3600, description="Seconds to finish accepted requests after SIGTERM."
    )

    body_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds to receive a request's body in."
    )
    max_body_bytes: int = Field(32 * MEBI, ge=1, description="Size of a request's body.")
    max_bodies_bytes: int | None = Field(
        None,
        ge=1,
        description="Size of all bodies in memory at once. Beyond it, requests are refused with "
        "503. By default that of 8 of the largest, and 256 MiB at least.",
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="Width times height of an image, read before decoding it."
    )
    max_items: int = Field(
        32, ge=1, le=1024, description="Images of one request, and texts, and questions."
    )
    max_pairs: int = Field(
        256, ge=1, le=65_536, description="Images times texts of one request to match."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines to write."
    )
    log_format: Literal["json", "text"] = Field("json", description="One object, or text, a line.")
    access_log: bool = Field(True, description="Log a line for each request.")

    @property
    def bodies_bytes(self) -> int:
        """`max_bodies_bytes`, or what it is by default."""
        return self.max_bodies_bytes or max(8 * self.max_body_bytes, 256 * MEBI)

    @field_validator("engines", mode="before")
    @classmethod
    def _names_a_folder(cls, named: str | Path) -> Path:
        if not str(named):
            raise ValueError("an empty name is no folder")
        try:
            return Path(named).expanduser().absolute()
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _bodies_hold_one(self) -> Self:
        if self.bodies_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_bodies_bytes ({self.max_bodies_bytes}) must hold one whole body: "
                f"max_body_bytes is {self.max_body_bytes}"
            )
        return self

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.queue_limit < self.max_items:
            raise ValueError(
                f"queue_limit ({self.queue_limit}) must hold one whole request: "
                f"max_items is {self.max_items}"
            )
        return self
