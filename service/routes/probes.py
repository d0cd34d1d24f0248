"""Probes for whoever keeps the server running, and the metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.engine import Engine
from service.openapi import problems
from service.startup_schemas import EngineStatus

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
    engine: Engine = request.app.state.engine
    engine.check_alive()
    return Status()


@router.get("/readyz", operation_id="ready", summary="Is it ready?", responses=problems(503))
async def ready(request: Request) -> Status:
    """Whether requests are taken: the models are warm, and the server is not shutting down."""
    engine: Engine = request.app.state.engine
    engine.check_open()
    engine.check_alive()
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
    engine: Engine = request.app.state.engine
    engine.check_started()
    return StartupStatus(engines=engine.preparation.statuses or None)


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
    engine: Engine = request.app.state.engine
    body, media_type = engine.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})
