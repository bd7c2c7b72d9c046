"""Routes of the API."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from tuneline.serve.api import texts
from tuneline.serve.api.bodies import read_body
from tuneline.serve.api.errors import unknown_model
from tuneline.serve.api.formats import ChatFormat, CompletionFormat, Format
from tuneline.serve.api.front import Front
from tuneline.serve.api.plans import Plan, check_choices, plan_chat, plan_completion
from tuneline.serve.api.record import Record, get_record
from tuneline.serve.api.responses import GenerationResponse, WorkResponse
from tuneline.serve.api.schemas import ChatRequest, CompletionRequest, Generation, Strict
from tuneline.serve.api.text_schemas import EmbeddingRequest, ScoreEvaluationRequest, ScoreRequest, TokenizeRequest
from tuneline.serve.deploy.interface import ModelEntry, ServedVersion

Endpoint = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=Strict)


def add_routes(app: FastAPI, front: Front) -> None:
    """Add all routes to an app."""
    posts: list[tuple[str, type[Strict], Endpoint]] = [
        ("/v1/chat/completions", ChatRequest, partial(answer_chat, front)),
        ("/v1/completions", CompletionRequest, partial(answer_completion, front)),
        ("/v1/embeddings", EmbeddingRequest, partial(answer_texts, front, EmbeddingRequest, texts.embed)),
        ("/v1/score", ScoreRequest, partial(answer_texts, front, ScoreRequest, texts.score)),
        (
            "/v1/score/evaluation",
            ScoreEvaluationRequest,
            partial(answer_texts, front, ScoreEvaluationRequest, texts.score_texts),
        ),
        ("/v1/tokenize", TokenizeRequest, partial(answer_texts, front, TokenizeRequest, texts.tokenize)),
    ]
    for path, schema, endpoint in posts:
        add_route(app, path, "POST", endpoint, schema)
    describe_bodies(app, [schema for _, schema, _ in posts])
    gets: list[tuple[str, Endpoint]] = [
        ("/v1/models", partial(list_models, front)),
        ("/v1/models/{model:path}", partial(show_model, front)),
        ("/health", partial(show_health, front)),
        ("/metrics", partial(show_metrics, front)),
    ]
    for path, endpoint in gets:
        add_route(app, path, "GET", endpoint, None)


def add_route(app: FastAPI, path: str, method: str, endpoint: Endpoint, schema: type[Strict] | None) -> None:
    """Add a route; its body is read and validated by the endpoint, and described in the OpenAPI document."""

    async def handle(request: Request) -> Response:
        return await endpoint(request)

    extra = None
    if schema is not None:
        reference = {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}}
        extra = {"requestBody": {"content": {"application/json": reference}, "required": True}}
    app.add_api_route(path, handle, methods=[method], response_class=Response, openapi_extra=extra, name=path)


def describe_bodies(app: FastAPI, schemas: Sequence[type[Strict]]) -> None:
    """Add the schemas of request bodies to the OpenAPI document."""
    build = app.openapi
    _, definitions = models_json_schema(
        [(schema, "validation") for schema in schemas], ref_template="#/components/schemas/{model}"
    )

    def describe() -> dict[str, Any]:
        document = build()
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return document

    app.openapi = describe  # type: ignore[method-assign]


async def answer_chat(front: Front, request: Request) -> Response:
    """Answer `/v1/chat/completions`."""
    body = await read_body(request, ChatRequest)
    keep_prompts(front, request, body.messages)

    async def prepare(version: ServedVersion) -> tuple[Plan, Format]:
        check_choices(front, version, body.n or 1, "n")
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return await plan_chat(front, version, body), ChatFormat(version, top_logprobs, wants_usage(body))

    return GenerationResponse(front, body.model, prepare, bool(body.stream), wants_usage(body))


async def answer_completion(front: Front, request: Request) -> Response:
    """Answer `/v1/completions`."""
    body = await read_body(request, CompletionRequest)
    keep_prompts(front, request, body.prompts)

    async def prepare(version: ServedVersion) -> tuple[Plan, Format]:
        check_choices(front, version, len(body.prompts) * (body.n or 1), "n" if len(body.prompts) == 1 else "prompt")
        plan = await plan_completion(front, version, body)
        return plan, CompletionFormat(version, body.logprobs, wants_usage(body))

    return GenerationResponse(front, body.model, prepare, bool(body.stream), wants_usage(body))


async def answer_texts(
    front: Front,
    schema: type[Body],
    function: Callable[[Front, Record, Body], Awaitable[dict[str, Any]]],
    request: Request,
) -> Response:
    """Answer a route that does not generate."""
    body = await read_body(request, schema)
    keep_prompts(front, request, [body.model_dump(exclude_unset=True)] if front.settings.log_prompts else [])
    return WorkResponse(front, lambda record: function(front, record, body))


def wants_usage(body: Generation) -> bool:
    """Return whether a stream ends with the token counts."""
    return body.stream_options is not None and body.stream_options.include_usage


def keep_prompts(front: Front, request: Request, prompts: list[Any]) -> None:
    """Keep the prompts for the access log, if they are logged."""
    if front.settings.log_prompts:
        get_record(request.scope).prompts = prompts


async def list_models(front: Front, request: Request) -> Response:
    """Answer `/v1/models`."""
    return json_response({"object": "list", "data": [format_model(entry) for entry in front.deployment.models()]})


async def show_model(front: Front, request: Request) -> Response:
    """Answer `/v1/models/{model}`."""
    name = request.path_params["model"]
    entries = {entry.id: entry for entry in front.deployment.models()}
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise unknown_model(ValueError(f"Unknown model {name!r}. Served models: {known}."))
    return json_response(format_model(entries[name]))


def format_model(entry: ModelEntry) -> dict[str, Any]:
    """Return an entry of `/v1/models`."""
    model = {"id": entry.id, "object": "model", "created": entry.created, "owned_by": "tuneline"}
    return {**model, "resolved": entry.resolved, "metadata": entry.metadata}


async def show_health(front: Front, request: Request) -> Response:
    """Answer `/health`: 200 if the default model can answer."""
    is_ready = front.deployment.is_ready()
    headers = {} if is_ready else {"Retry-After": str(front.settings.retry_after_seconds)}
    return json_response({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503, headers)


async def show_metrics(front: Front, request: Request) -> Response:
    """Answer `/metrics`."""
    return Response(await front.scrape(), media_type=CONTENT_TYPE_LATEST)


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(orjson.dumps(data), status, headers, media_type="application/json")
