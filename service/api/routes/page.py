"""The page at `/`: try the models in a browser. It works offline."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[2] / "page"

# No content of other origins, and no inline scripts.
_POLICY = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"


def install(app: FastAPI) -> None:
    """Serve the page's files, unless the package was built without them."""
    if not FOLDER.is_dir():
        logger.warning("the page is not served: %s is missing", FOLDER)
        return

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(FOLDER / "index.html", headers={"content-security-policy": _POLICY})

    app.mount("/page", StaticFiles(directory=FOLDER), name="page")
