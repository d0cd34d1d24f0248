"""GET /v1/models: what is served, at which levels, and what was measured of each."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from tokenfold.bundle.document import Name, Share
from tokenfold.bundle.manifest import Similarity
from tokenfold.bundle.profile import Latency, Quality
from tokenfold.bundle.tasks import Task
from tokenfold.service.api.openapi import problems
from tokenfold.service.core import Core
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.texts import LONGEST

router = APIRouter(tags=["models"])


class LevelInfo(BaseModel):
    """A level, and what was measured of it.

    The quality, latency, throughput and memory are the bundle's: measured where it was exported.
    """

    name: str = Field(examples=["fast"])
    reduction: float = Field(description="Fraction of FLOPs to remove.")
    plan: list[int] = Field(
        description="Tokens that each layer removes; of a model with texts, at its image size and "
        "longest text. Likewise what follows from it."
    )
    flops: int = Field(description="Multiply-accumulates of one image.")
    flops_ratio: float = Field(description="Of the unreduced network's.")
    tokens_in: int
    tokens_out: int
    expected_ms: float = Field(description="A run of one image on this server, as of now.")
    quality: dict[Task, Quality] = Field(
        default={}, description="By task, of those that were measured."
    )
    neighbours: dict[Name, Share] | None = Field(
        None,
        description="Of a dual encoder, by the level of a gallery: of the ten images there that "
        "are nearest to an image at the gallery's level, the share that it finds at this one.",
    )
    latency: list[Latency] = Field(default=[])
    images_per_second: float | None = None
    peak_memory_mb: float | None = None


class ProfileInfo(BaseModel):
    """Where the levels' profile was measured."""

    measured: str
    machine: str
    runtime: str
    texts_per_second: float | None = Field(None, description="Of a dual encoder: longest texts.")


class TaskInfo(BaseModel):
    """Something that a model can be asked."""

    name: Task = Field(description="Also its route, /v1/...", examples=["classify"])
    label_count: int = Field(description="0 where it gives one number.", examples=[10])
    labels: list[str] | None = Field(
        None, description="In the order of their index; left out of the list of all models."
    )


class TextInfo(BaseModel):
    """Which texts a model takes."""

    most_tokens: int = Field(description="Special ones included; longer texts are cut.")
    most_characters: int = Field(description="Longer texts are refused.")


class ModelInfo(BaseModel):
    """A served model."""

    name: str = Field(examples=["cifar10"])
    tasks: list[TaskInfo]
    source: str = Field(description="What was exported.")
    method: str = Field(description="How tokens are chosen.", examples=["tome"])
    precision: str = Field(examples=["fp32"])
    input_size: tuple[int, int] = Field(description="Height and width in pixels.")
    resize: Literal["stretch", "shorter", "bounded"] = Field(
        description="How an image becomes `input_size`: stretched, or its shorter side scaled to "
        "`shorter_side` and its centre cut out. `bounded`: it keeps its shape, its shorter side "
        "scaled to `shorter_side` as long as the longer one is at most `longest`."
    )
    shorter_side: int | None = None
    longest: int | None = None
    text: TextInfo | None = None
    similarity: Similarity | None = Field(
        None, description="Of a dual encoder: its vectors, and how two of them become a score."
    )
    grid: tuple[int, int] = Field(description="Rows and columns of patches.")
    protected: int = Field(description="Leading tokens that are never merged.")
    weights_bytes: int
    backend: str = Field(description="What runs it now.", examples=["cuda", "cpu"])
    device: str = Field(description="What that runs on.", examples=["cuda", "cpu"])
    native_ops: bool = Field(description="Whether the compiled reduction ops run.")
    default_level: str
    levels: list[LevelInfo] = Field(description="From the least reduced to the most.")
    profile: ProfileInfo | None = None


class ModelList(BaseModel):
    """Every served model."""

    default: dict[str, str] = Field(
        description="For each task the model that answers if a request names none.",
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
    """Every model with its levels."""
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
    """One model with its levels."""
    core: Core = request.app.state.core
    core.check_started()
    return _describe(core.catalog.get(name), labels=True)


def _describe(model: Model, *, labels: bool) -> ModelInfo:
    manifest, profile = model.manifest, model.bundle.profile
    return ModelInfo(
        name=manifest.name,
        tasks=[
            TaskInfo(name=task, label_count=len(found), labels=list(found) if labels else None)
            for task, found in model.tasks.items()
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
        else TextInfo(most_tokens=manifest.text.most_tokens, most_characters=LONGEST),
        similarity=manifest.similarity,
        grid=model.grid,
        protected=model.protected,
        weights_bytes=model.weights,
        backend=model.backend.kind.name,
        device=model.backend.kind.device,
        native_ops=model.backend.native,
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


def _level(model: Model, name: str) -> LevelInfo:
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
