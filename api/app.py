"""The application: routes, errors, tokens; store, launcher and supervisor for as long as it runs."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from importlib import metadata

from anyio import to_thread
from fastapi import Depends, FastAPI

from api import docs, errors
from api.auth import require_token
from api.middleware import BodyLimit, RequestMetrics
from api.routes import children, history, jobs, reports, studies, system
from api.services import Metrics, opened
from api.settings import Settings
from service.launcher import Launcher

PREFIX = "/api/v1"
THREADS = 64
"""Requests and stream look-ups that may wait for the store at once."""


def create_app(settings: Settings, *, service_url: str, launcher: Launcher | None = None) -> FastAPI:
    """``service_url``: how workers reach this application. ``launcher``: in place of the one that ``settings`` name."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        with ExitStack() as stack:
            app.state.services = opened(settings, metrics, service_url, launcher, stack)
            yield

    app = FastAPI(
        title="Manta",
        summary="Elastic distributed training on Ray",
        version=metadata.version("manta"),
        lifespan=lifespan,
        # Swagger and ReDoc load their scripts from a CDN; any OpenAPI viewer can read the document.
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
    )
    app.state.settings = settings
    guarded = [Depends(require_token)]
    for router in (jobs.router, studies.router, history.router, history.streams):
        app.include_router(router, prefix=PREFIX, dependencies=guarded, responses=docs.problems(401, 403, 503))
    for router in (reports.router, children.router):
        app.include_router(router, prefix=PREFIX, responses=docs.problems(503))
    app.include_router(system.router)
    errors.install(app)
    docs.install(app)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(RequestMetrics, registry=metrics.registry)
    return app
