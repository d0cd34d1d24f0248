"""The application: the core, the routes, and what is around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from tokenfold.service import errors
from tokenfold.service.api import openapi
from tokenfold.service.api.middleware import BodyLimit, RequestContext
from tokenfold.service.api.routes import (
    classify,
    embed,
    entail,
    galleries,
    gallery_images,
    gallery_search,
    match,
    models,
    page,
    probes,
    reason,
    vqa,
)
from tokenfold.service.core import Core
from tokenfold.service.galleries import sample
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.settings import Settings


def create_app(
    settings: Settings,
    *,
    kinds: Sequence[BackendKind] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """An app that loads its models when it is started.

    Args:
        kinds: backends to choose from, the best first; by default all that there are.
        on_failure: called, from another thread, when a model cannot be loaded.

    Raises:
        BundleError, UnknownLevel: the bundles cannot be served.
        BackendError: not by the backend that the settings name.
    """
    core = Core(settings, kinds=kinds, on_failure=on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        core.start()
        core.keeper.start()
        async with sample.filling(core):
            yield
        await core.keeper.stop()
        core.stop()

    app = FastAPI(
        title="Tokenfold",
        summary="Vision transformers whose tokens merge on the way.",
        version=openapi.version(),
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.core = core
    modules = (
        *(classify, embed, vqa, entail, reason, match),
        *(galleries, gallery_images, gallery_search),
        *(models, probes),
    )
    for module in modules:
        app.include_router(module.router)
        _answer_head(app, module.router.routes)
    page.install(app)
    errors.install(app, [route for module in modules for route in module.router.routes])
    openapi.install(app, core)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, total=settings.bodies_bytes)
    app.add_middleware(RequestContext, log=settings.access_log)
    return app


def _answer_head(app: FastAPI, routes: Iterable[BaseRoute]) -> None:
    """Like GET, wherever that is answered. The server leaves the body out."""
    for route in routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                include_in_schema=False,
                response_model=route.response_model,
                response_model_exclude_none=route.response_model_exclude_none,
            )
