"""The FastAPI application: core, galleries, routes and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from tokenfold.service.api import openapi, problems
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
from tokenfold.service.galleries.keeper import Keeper
from tokenfold.service.scheduling.backends.kinds import BackendKind
from tokenfold.service.settings import Settings
from tokenfold.service.zero_shot import LabelEncoder


def create_app(
    settings: Settings,
    *,
    kinds: Sequence[BackendKind] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Create an app that loads its models when it starts.

    Args:
        settings: the settings.
        kinds: kinds of backends to choose from, the best first; by default all.
        on_failure: called, from another thread, when a model cannot be loaded.

    Raises:
        BundleError, UnknownLevel: the bundles cannot be served.
        BackendError: the backend that the settings name cannot run them.
    """
    core = Core(settings, kinds=kinds, on_failure=on_failure)
    keeper = Keeper(settings.data_dir, core.metrics.galleries)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        core.start()
        keeper.start()
        async with AsyncExitStack() as stack:
            if settings.sample_gallery:
                filling = sample.filling(core.dispatcher, keeper, core.wait_started)
                await stack.enter_async_context(filling)
            yield
        await keeper.stop()
        core.stop()

    app = FastAPI(
        title="Tokenfold",
        summary="Vision transformers whose tokens merge on the way.",
        version=openapi.version(),
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.core = core
    app.state.keeper = keeper
    app.state.labels = LabelEncoder(core.dispatcher)
    modules = (
        *(classify, embed, vqa, entail, reason, match),
        *(galleries, gallery_images, gallery_search),
        *(models, probes),
    )
    for module in modules:
        app.include_router(module.router)
        _answer_head(app, module.router.routes)
    page.install(app)
    problems.install(app, [route for module in modules for route in module.router.routes])
    openapi.install(app, core)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, total=settings.bodies_bytes)
    app.add_middleware(RequestContext, log=settings.access_log)
    return app


def _answer_head(app: FastAPI, routes: Iterable[BaseRoute]) -> None:
    """Answer HEAD like GET on every route. The server leaves the body out."""
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
