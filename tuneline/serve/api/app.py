"""The app: routes behind the guards.

Order of the middlewares, from the outside: access log and errors, Host and Origin, keys and rates, bodies. All of them
are plain ASGI: a stream passes through them token by token.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tuneline.serve.api.access import Access
from tuneline.serve.api.errors import ApiError
from tuneline.serve.api.front import Front
from tuneline.serve.api.guards import BodyGuard, HostGuard, KeyGuard
from tuneline.serve.api.routes import add_routes
from tuneline.serve.api.settings import ApiSettings
from tuneline.serve.deploy.interface import Deployment


def create_app(deployment: Deployment, settings: ApiSettings) -> FastAPI:
    """Return the API of a deployment. The app closes the deployment when its server stops."""
    front = Front(deployment, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await front.close()

    app = FastAPI(title="Tuneline", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.front = front
    add_routes(app, front)
    app.add_exception_handler(HTTPException, answer_http_error)
    routes = frozenset(path for route in app.routes if isinstance(path := getattr(route, "path", None), str))
    # The middleware that is added last is the outermost.
    app.add_middleware(
        BodyGuard,
        max_bytes=settings.max_body_bytes,
        read_timeout=settings.read_timeout_seconds,
        total_timeout=settings.max_request_seconds,
    )
    app.add_middleware(KeyGuard, keys=settings.keys)
    app.add_middleware(
        HostGuard,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
        max_header_bytes=settings.max_header_bytes,
    )
    app.add_middleware(
        Access,
        metrics=front.metrics,
        routes=routes,
        retry_after=settings.retry_after_seconds,
        log_prompts=settings.log_prompts,
    )
    return app


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or a wrong method in the shape of OpenAI."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{path} does not accept {request.method}. Use {allowed or 'another method'}."
    else:
        message = f"Unknown path {path!r}. The routes are listed in /openapi.json."
    api_error = ApiError(
        error.status_code, message, code="method_not_allowed" if error.status_code == 405 else "not_found"
    )
    api_error.headers |= error.headers or {}
    return api_error.response()
