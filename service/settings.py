"""Settings of `tokenfold serve`: flags, or environment variables TOKENFOLD_<NAME>."""

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
    """Return the user's data directory, by the XDG base directory specification."""
    home = os.environ.get("XDG_DATA_HOME", "")
    # The specification says to ignore a relative path.
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
        None,
        description="Model for requests that name none. By default the first by folder name.",
    )
    default_level: str | None = Field(
        None,
        description="Level for requests that select none. By default the one of each bundle.",
    )

    data_dir: str = Field(
        default_factory=data_home,
        min_length=1,
        description="Folder of the galleries, or a URI of an object store such as "
        "s3://bucket/tokenfold that several servers share. By default in the home directory.",
    )
    sample_gallery: bool = Field(
        False,
        description="Create a gallery of drawn scenes at the start, for a first search.",
    )
    max_rerank: int = Field(100, ge=1, le=1000, description="Images that a search may re-rank.")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")

    backend: Literal["auto", "tensorrt", "cuda", "cpu"] = Field(
        "auto",
        description="Backend of the models. `auto` uses the fastest that is available and agrees "
        "with the CPU, and the next one if it fails later; a named backend runs all models. "
        "Missing TensorRT engines are built in the background while the next backend runs the "
        "models, or before the start if TensorRT is named.",
    )
    engines: Path = Field(
        default_factory=engines_folder,
        description="Folder of the TensorRT engines, which servers with the same GPU may share. By "
        "default in the home directory.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads that run the models: one image each on a CPU, a batch each on a GPU. "
        "By default one per core, and at least two with a GPU.",
    )
    decoders: int = Field(
        default_factory=cores,
        ge=1,
        le=1024,
        description="Threads that decode images. By default one per core.",
    )
    queue_limit: int = Field(
        512, ge=1, description="Runs that may wait. Further requests are refused with 503."
    )
    request_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds that a request may take after its last byte."
    )
    drain_timeout: float = Field(
        20.0, gt=0, le=3600, description="Seconds to answer admitted requests after SIGTERM."
    )

    body_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds to receive the body of a request."
    )
    max_body_bytes: int = Field(32 * MEBI, ge=1, description="Largest size of a body, in bytes.")
    max_bodies_bytes: int | None = Field(
        None,
        ge=1,
        description="Largest size of all bodies in memory, in bytes. Further requests are refused "
        "with 503. By default 8 times the largest body, and at least 256 MiB.",
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Largest width times height of an image; checked before decoding.",
    )
    max_items: int = Field(
        32, ge=1, le=1024, description="Largest number of images, and of texts, of a request."
    )
    max_pairs: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Largest number of images times texts of a request to match.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the log lines to write."
    )
    log_format: Literal["json", "text"] = Field(
        "json", description="JSON objects or plain text, one per line."
    )
    access_log: bool = Field(True, description="Log a line for each request.")

    @property
    def bodies_bytes(self) -> int:
        """`max_bodies_bytes`, or its default."""
        return self.max_bodies_bytes or max(8 * self.max_body_bytes, 256 * MEBI)

    @field_validator("engines", mode="before")
    @classmethod
    def _names_a_folder(cls, named: str | Path) -> Path:
        if not str(named):
            raise ValueError("must not be empty")
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
