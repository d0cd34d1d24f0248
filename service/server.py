"""`tokenfold serve`: run the app until a signal ends it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from tokenfold.bundle.bundle import BundleError
from tokenfold.inference.errors import RequestError
from tokenfold.service import logs
from tokenfold.service.api.protocol import BoundedHead
from tokenfold.service.app import create_app
from tokenfold.service.core import Core
from tokenfold.service.scheduling.backends.selection import BackendError
from tokenfold.service.settings import Settings

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn with draining: SIGTERM refuses new requests with 503 and answers the admitted ones.

    uvicorn alone would close its socket at once, so that a load balancer that polls /readyz gets no
    answer.
    """

    def __init__(self, config: uvicorn.Config, core: Core) -> None:
        super().__init__(config)
        self._core = core
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain at the first signal; give up the remaining requests at the second."""
        # uvicorn would store the signal and raise it again at the end; a drained server exits
        # normally. The empty context keeps the id of the interrupted request out of the log.
        context = contextvars.Context()
        if self._core.scheduler.draining:
            self._loop.call_soon_threadsafe(self._abort, context=context)
            return
        self._core.scheduler.drain()
        self._loop.call_soon_threadsafe(self._drain, sig, context=context)

    def _drain(self, sig: int) -> None:
        logger.info("draining", extra={"signal": signal.Signals(sig).name})
        self._draining = self._loop.create_task(self._finish())

    def _abort(self) -> None:
        # The requests are answered with 503 (middleware.RequestContext).
        for task in self.server_state.tasks:
            task.cancel()
        self.should_exit = True

    async def _finish(self) -> None:
        await self._core.drain()
        self.should_exit = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server, and return the exit code."""
    try:
        settings = CliApp.run(Settings, cli_args=list(sys.argv[1:] if argv is None else argv))
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            print(f"tokenfold serve: {name}: {problem['msg']}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    server: Server | None = None

    def on_failure() -> None:
        if server is not None:
            server.should_exit = True

    try:
        app = create_app(settings, on_failure=on_failure)
    except (BundleError, BackendError, RequestError) as error:
        print(f"tokenfold serve: {error}", file=sys.stderr)
        return 1
    core: Core = app.state.core
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=BoundedHead,
        ws="none",
        server_header=False,
        proxy_headers=False,
        # Admitted requests are answered by then: this is for callers that never finish sending.
        timeout_graceful_shutdown=3,
    )
    server = Server(config, core)
    try:
        server.run()
    except SystemExit:
        # uvicorn could not listen, and has logged the reason. The threads end below.
        logger.info("the server did not start")
    code = 1 if core.failed is not None or not server.started else 0
    if not core.stop():
        # The runtime aborts if the interpreter exits while one of its threads runs.
        logger.error("a worker is stuck; the process exits without it")
        logging.shutdown()
        os._exit(1)
    if not core.join_loader():
        logger.warning("a model is still being loaded; the process exits without it")
        logging.shutdown()
        os._exit(code)
    return code
