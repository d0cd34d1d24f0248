"""GET /v1/models: the served models, their levels and their measurements."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from tokenfold.bundle.document import Name, Share
from tokenfold.bundle.manifest import Similarity
from tokenfold.bundle.profile import Latency, Quality
from tokenfold.bundle.tasks import Task
from tokenfold.inference.texts import MAX_CHARACTERS
from tokenfold.runtime.libraries import native_ops
from tokenfold.service.api.openapi import problems
from tokenfold.service.core import Core
from tokenfold.service.scheduling.catalog import ServedModel

router = APIRouter(tags=["models"])


class LevelInfo(BaseModel):
    """A level and its measurements.

    Quality, latency, throughput and memory come from the bundle's profile, and were measured where
    the profile was made.
    """

    name: str = Field(examples=["fast"])
    reduction: float = Field(description="Fraction of FLOPs to remove.")
    plan: list[int] = Field(
        description="Tokens that each layer removes. For a model with texts, this and the numbers "
        "below hold for its image size and its longest text."
    )
    flops: int = Field(description="Multiply-accumulates of one image.")
    flops_ratio: float = Field(description="FLOPs relative to the unreduced network.")
    tokens_in: int
    tokens_out: int
    expected_ms: float = Field(
        description="Expected duration of a run of one image on this server."
    )
    quality: dict[Task, Quality] = Field(default={}, description="Measured quality by task.")
    neighbours: dict[Name, Share] | None = Field(
        None,
        description="For a dual encoder: overlap of the ten nearest images with those of a query "
        "at the gallery's level, by the level of the gallery.",
    )
    latency: list[Latency] = Field(default=[])
    images_per_second: float | None = None
    peak_memory_mb: float | None = None


class ProfileInfo(BaseModel):
    """The circumstances of the measurements."""

    measured: str
    machine: str
    runtime: str
    texts_per_second: float | None = Field(
        None, description="For a dual encoder: throughput of texts of maximum length."
    )


class TaskInfo(BaseModel):
    """A task of a model."""

    name: Task = Field(description="Also its route, /v1/...", examples=["classify"])
    label_count: int = Field(
        description="Number of labels; 0 for a task with a single score.", examples=[10]
    )
    labels: list[str] | None = Field(
        None, description="Labels by their index; omitted from the list of all models."
    )


class TextInfo(BaseModel):
    """Limits of a model's texts."""

    most_tokens: int = Field(
        description="Tokens of a text, special tokens included; longer texts are cut."
    )
    most_characters: int = Field(description="Characters of a text; longer texts are refused.")


class ModelInfo(BaseModel):
    """A served model."""

    name: str = Field(examples=["cifar10"])
    tasks: list[TaskInfo]
    source: str = Field(description="The checkpoint that was exported.")
    method: str = Field(description="The reduction method.", examples=["tome"])
    precision: str = Field(examples=["fp32"])
    input_size: tuple[int, int] = Field(description="Height and width in pixels.")
    resize: Literal["stretch", "shorter", "bounded"] = Field(
        description="Resizing to `input_size`. `stretch`: to the exact size. `shorter`: the "
        "shorter side to `shorter_side`, then a centre crop. `bounded`: at the same aspect ratio, "
        "the shorter side becomes `shorter_side` unless the longer one would exceed `longest`."
    )
    shorter_side: int | None = None
    longest: int | None = None
    text: TextInfo | None = None
    similarity: Similarity | None = Field(
        None, description="For a dual encoder: its vectors, and how two of them become a score."
    )
    grid: tuple[int, int] = Field(description="Rows and columns of patches.")
    protected: int = Field(description="Leading tokens that are never merged.")
    weights_bytes: int
    backend: str = Field(description="The backend in use.", examples=["cuda", "cpu"])
    device: str = Field(description="The device of the backend.", examples=["cuda", "cpu"])
    native_ops: bool = Field(
        description="Whether the compiled reduction ops run, rather than their portable bodies."
    )
    portable_ops_reason: str | None = Field(
        None, description="Reason why the CPU runs the portable bodies, which are slower."
    )
    default_level: str
    levels: list[LevelInfo] = Field(description="From the least reduced to the most.")
    profile: ProfileInfo | None = None


class ModelList(BaseModel):
    """Every served model."""

    default: dict[str, str] = Field(
        description="The default model of each task.",
        examples=[{"classify": "cifar10"}],
    )
    models: list[ModelInfo]


@router.get(
    "/v1/models",
    operation_id="listModels",
    summary="List the models",
    response_model_exclude_none=True,
    responses=problems(503),
)
async def list_models(request: Request) -> ModelList:
    """List every model with its levels."""
    core: Core = request.app.state.core
    core.check_started()
    tasks = {task for model in core.catalog for task in model.tasks}
    return ModelList(
        default={task: core.catalog.find(None, task).name for task in sorted(tasks)},
        models=[_describe(model, labels=False) for model in core.catalog],
    )


@router.get(
    "/v1/models/{name}",
    operation_id="getModel",
    summary="Describe a model",
    response_model_exclude_none=True,
    responses=problems(404, 422, 503),
)
async def get_model(request: Request, name: Annotated[str, Path(max_length=128)]) -> ModelInfo:
    """Describe one model with its levels."""
    core: Core = request.app.state.core
    core.check_started()
    return _describe(core.catalog.get(name), labels=True)


def _describe(model: ServedModel, *, labels: bool) -> ModelInfo:
    manifest, profile = model.manifest, model.bundle.profile
    return ModelInfo(
        name=manifest.name,
        tasks=[
            TaskInfo(name=task, label_count=len(names), labels=list(names) if labels else None)
            for task, names in model.tasks.items()
        ],
        source=manifest.source,
        method=manifest.workload.method,
        precision=manifest.precision,
        input_size=manifest.preprocess.size,
        resize=manifest.preprocess.resize,
        shorter_side=manifest.preprocess.shorter_side,
        longest=manifest.preprocess.longest,
        text=None
        if manifest.text is None
        else TextInfo(most_tokens=manifest.text.most_tokens, most_characters=MAX_CHARACTERS),
        similarity=manifest.similarity,
        grid=model.grid,
        protected=model.protected,
        weights_bytes=model.weights,
        backend=model.backend.kind.name,
        device=model.backend.kind.device,
        native_ops=model.backend.native,
        portable_ops_reason=native_ops().reason if model.backend.kind.device == "cpu" else None,
        default_level=model.levels.default,
        levels=[_level(model, name) for name in model.levels.levels],
        profile=None
        if profile is None
        else ProfileInfo(
            measured=profile.measured.isoformat(),
            machine=profile.machine,
            runtime=profile.runtime,
            texts_per_second=profile.texts_per_second,
        ),
    )


def _level(model: ServedModel, name: str) -> LevelInfo:
    level = model.levels.levels[name]
    work = model.levels.work(level.plan)
    profile = model.bundle.profile
    measured = profile.levels.get(name) if profile else None
    return LevelInfo(
        name=name,
        reduction=level.reduction,
        plan=list(level.plan),
        flops=work.flops,
        flops_ratio=round(work.ratio, 6),
        tokens_in=work.tokens_in,
        tokens_out=work.tokens_out,
        expected_ms=round(model.costs.seconds((work,)) * 1000, 3),
        quality=dict(measured.quality) if measured else {},
        neighbours=(measured.neighbours or None) if measured else None,
        latency=list(measured.latency) if measured else [],
        images_per_second=measured.images_per_second if measured else None,
        peak_memory_mb=measured.peak_memory_mb if measured else None,
    )
