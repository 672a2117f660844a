"""The application: its pages, what guards them, and how it is served."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from labeling_pipeline.labeling import prompt_handover
from labeling_pipeline.service import generations, health, routes
from labeling_pipeline.service.config import ServiceConfig
from labeling_pipeline.service.disconnects import StopWhenGone
from labeling_pipeline.service.problems import answer_with_problems
from labeling_pipeline.service.routes import HEADER
from labeling_pipeline.service.security import DOCS_FILES, Guard
from labeling_pipeline.service.serving import Service
from labeling_pipeline.service.uploads import MAX_FIELD_BYTES, MAX_FIELDS, BodyLimit

_PAGE = Path(__file__).with_name("page.html")
# Longer than clients keep theirs (httpx: 5 s, and so would uvicorn): the one who closes an idle
# connection first must not be the one who is just being asked.
_KEEP_ALIVE_S = 75
_GRACE_S = 5


def create_app(config: ServiceConfig, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """A service that loads its models when it starts, and answers while they load that they do.

    on_failure: called when a model could not be loaded; ``app.state.service.failure`` says why.

    Raises:
        ConfigurationError: no such model, or others could use the service without a key.
    """
    config.check_exposure()
    service = Service(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.load(on_failure))
        with prompt_handover():
            yield
        loading.cancel()
        await asyncio.wait([loading])
        await service.batcher.close()

    app = FastAPIOffline(
        redoc_url=None,
        static_url=DOCS_FILES,
        title="labeling-pipeline",
        summary="Vision-language models label images, one request at a time or a thousand.",
        description=_DESCRIPTION,
        version=version("labeling-pipeline"),
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        swagger_ui_parameters={"defaultModelsExpandDepth": -1, "tryItOutEnabled": True},
        form_limits={
            "max_files": config.max_files,
            "max_fields": MAX_FIELDS,
            "max_part_size": MAX_FIELD_BYTES,
        },
        dependencies=[Depends(HTTPBearer(auto_error=False))] if config.api_key else [],
    )
    app.state.service = service
    answer_with_problems(app)
    for room in (routes, health, generations):
        app.include_router(room.router)

    page = _PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def try_it() -> HTMLResponse:
        return HTMLResponse(page)

    # The last is the first that a request meets.
    app.add_middleware(StopWhenGone)
    app.add_middleware(BodyLimit, config=config)
    app.add_middleware(Guard, config=config)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
            expose_headers=[HEADER, "Retry-After"],
        )
    return app


_DESCRIPTION = """\
The models of the registry, with the prompts, the parsing and the scores of the pipeline. Boxes are
`x0, y0, x1, y1` in pixels of the upright image. Errors are `application/problem+json` (RFC 9457)
and say what to do; 503 comes with `Retry-After`.
"""


def serve(config: ServiceConfig) -> None:
    """Serve until the process is asked to end.

    Raises:
        ConfigurationError: as ``create_app``.
        LabelingError: a model could not be loaded.
    """

    def stop() -> None:
        server.should_exit = True

    app = create_app(config, stop)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    server.run()
    failure = app.state.service.failure
    if failure is not None:
        raise failure
