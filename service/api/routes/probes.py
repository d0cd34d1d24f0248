"""Probes for orchestrators, and the metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from tokenfold.service.api.openapi import problems
from tokenfold.service.core import Core
from tokenfold.service.scheduling.backends.status import EngineStatus

router = APIRouter(tags=["operations"])


class Status(BaseModel):
    """The answer of a probe that succeeds; one that fails answers with a problem."""

    status: Literal["ok"] = "ok"


class StartupStatus(Status):
    """The answer of the startup probe."""

    engines: list[EngineStatus] | None = Field(
        None,
        description="TensorRT engines that were not built when the server started, if any.",
    )


@router.get("/livez", operation_id="live", summary="Is it alive?", responses=problems(503))
async def live(request: Request) -> Status:
    """Check that every worker thread is alive. If not, only a restart helps."""
    core: Core = request.app.state.core
    core.check_alive()
    return Status()


@router.get("/readyz", operation_id="ready", summary="Is it ready?", responses=problems(503))
async def ready(request: Request) -> Status:
    """Check that requests are accepted: the models are warm, and the server is not stopping."""
    core: Core = request.app.state.core
    core.check_open()
    core.check_alive()
    return Status()


@router.get(
    "/startupz",
    operation_id="started",
    summary="Has it started?",
    response_model_exclude_none=True,
    responses=problems(503),
)
async def started(request: Request) -> StartupStatus:
    """Check that every model has been loaded and warmed up; this remains true.

    The answer includes the progress of TensorRT engines that are built in the background.
    """
    core: Core = request.app.state.core
    core.check_started()
    return StartupStatus(engines=core.preparation.statuses or None)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus, as OpenMetrics if the scraper accepts it."""
    # In a thread: a GPU in trouble may be slow to answer.
    core: Core = request.app.state.core
    body, media_type = core.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})
