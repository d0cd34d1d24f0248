"""Probes for whoever keeps the server running, and the metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from tokenfold.service.api.openapi import problems
from tokenfold.service.core import Core
from tokenfold.service.scheduling.backends.status import EngineStatus

router = APIRouter(tags=["operations"])


class Status(BaseModel):
    """A probe's good news; bad news is a problem."""

    status: Literal["ok"] = "ok"


class StartupStatus(Status):
    """The good news of a start."""

    engines: list[EngineStatus] | None = Field(
        None,
        description="Of models whose engines were not built when the server started, if there are "
        "any.",
    )


@router.get("/livez", operation_id="live", summary="Is it alive?", responses=problems(503))
async def live(request: Request) -> Status:
    """Whether every worker thread lives. If not, only a restart helps."""
    core: Core = request.app.state.core
    core.check_alive()
    return Status()


@router.get("/readyz", operation_id="ready", summary="Is it ready?", responses=problems(503))
async def ready(request: Request) -> Status:
    """Whether requests are taken: the models are warm, and the server is not shutting down."""
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
    """Whether every model was loaded and warmed up. Stays so.

    And how far engines are that a model waits for: where another backend runs it meanwhile, the
    server has started without them.
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
    """The Prometheus exposition, or OpenMetrics where it is accepted."""
    # In a thread: a GPU that is in trouble may take its time to answer.
    core: Core = request.app.state.core
    body, media_type = core.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})
