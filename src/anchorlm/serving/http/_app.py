from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from anchorlm.records import Messages
from anchorlm.serving._errors import ApiError
from anchorlm.serving._settings import ServerSettings
from anchorlm.serving._state import ServerState
from anchorlm.serving.http._completions import complete
from anchorlm.serving.http._faults import handle_errors
from anchorlm.serving.http._messages import conversation
from anchorlm.serving.http._middleware import Middleware
from anchorlm.serving.http._reading import describe, described, raw_text, read_body
from anchorlm.serving.http._response_ask import ResponseAsk
from anchorlm.serving.http._responses import renamed
from anchorlm.serving.http._schema import ChatAsk, CompletionAsk
from anchorlm.serving.session._model import ServedModel

_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(served: Iterable[ServedModel], settings: ServerSettings | None = None) -> FastAPI:
    """The OpenAI-compatible application around some guards.

    Args:
        served: The guards. The first answers requests that name none. What is no sequence is gone through once the
            application has started: anyone who loads models while they are asked for lets `/health` answer meanwhile.
        settings: Limits and habits.

    Raises:
        UserError: As `ServerState`.
    """
    settings = settings or ServerSettings()
    state = ServerState(served, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = [asyncio.ensure_future(state.start()), asyncio.ensure_future(state.watch_keys())]
        yield
        for each in work:
            each.cancel()
        await state.close()

    app = FastAPI(
        title="AnchorLM",
        version=version("anchorlm"),
        description="Guarded models behind OpenAI's API. The object `anchorlm` in a request sets knobs of the defense "
        "within the operator's limits; in a response it says what was decided.",
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.server = state
    app.add_middleware(Middleware, state=state)
    handle_errors(app)
    _add_endpoints(app, state)
    _add_house(app, state)
    describe(app, ChatAsk, ResponseAsk, *([CompletionAsk] if state.settings.raw_completions else []))
    return app


def _add_endpoints(app: FastAPI, state: ServerState) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": "An error in OpenAI's shape."}
        for status in (400, 401, 403, 404, 405, 408, 413, 429, 503, 504)
    }

    @app.get("/v1/models", responses=errors)
    async def models(request: Request) -> dict[str, Any]:
        """The guards, with the knobs that requests may set."""
        return {
            "object": "list",
            "data": [_model(one) for one in state.models.values()],
            "anchorlm": {"operator": state.may_see_all(request.scope["state"]["caller"])},
        }

    @app.get("/v1/models/{id:path}", responses=errors)
    async def model(id: str) -> dict[str, Any]:
        """One guard."""
        return _model(state.model(id))

    @app.post("/v1/chat/completions", responses=errors, openapi_extra=described(ChatAsk))
    async def chat(request: Request) -> Response:
        """Answers a conversation."""
        body, kind = await request.body(), request.headers.get("content-type", "")

        def read() -> tuple[ChatAsk, list[Messages | str]]:
            ask = read_body(ChatAsk, body, kind)
            images = _images_of(state, ask)
            return ask, [conversation(ask.messages, images=images)]

        ask, prompts = await state.off_the_loop(read)
        return await complete(state, ask, request, prompts, "chat")

    @app.post("/v1/responses", responses=errors, openapi_extra=described(ResponseAsk))
    async def respond(request: Request) -> Response:
        """Answers a conversation. Nothing of it is kept."""
        body, kind = await request.body(), request.headers.get("content-type", "")

        def read() -> tuple[ResponseAsk, list[Messages | str]]:
            ask = read_body(ResponseAsk, body, kind)
            images = _images_of(state, ask)
            return ask, [conversation(ask.messages, images=images)]

        try:
            ask, prompts = await state.off_the_loop(read)
            return await complete(state, ask, request, prompts, "response")
        except ApiError as error:
            raise renamed(error) from None

    if state.settings.raw_completions:

        @app.post("/v1/completions", responses=errors, openapi_extra=described(CompletionAsk))
        async def completion(request: Request) -> Response:
            """Goes on where a text ends. Without a chat template."""
            body, kind = await request.body(), request.headers.get("content-type", "")

            def read() -> tuple[CompletionAsk, list[Messages | str]]:
                ask = read_body(CompletionAsk, body, kind)
                model = state.model(ask.model).guard.defense.target.model
                return ask, [raw_text(model, prompt) for prompt in ask.prompts[: state.settings.max_choices + 1]]

            ask, prompts = await state.off_the_loop(read)
            return await complete(state, ask, request, prompts, "text_completion")


def _images_of(state: ServerState, ask: ChatAsk | ResponseAsk) -> bool:
    """Whether the model of a request takes images. How it calls tools is looked for now, off the loop."""
    model = state.model(ask.model).guard.defense.target.model
    if ask.tools:
        _ = model.tools
    return model.processor is not None


def _add_house(app: FastAPI, state: ServerState) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"description": "Not ready."}})
    async def ready() -> JSONResponse:
        """Whether every guard is loaded and has passed its self-test."""
        if state.ready:
            return JSONResponse({"status": "ready"})
        under_way = "testing" if state.models else "loading"
        return JSONResponse({"status": "failed" if state.wrong else under_way, "wrong": state.wrong}, 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    if state.settings.playground:

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def playground() -> HTMLResponse:
            return HTMLResponse(_page("playground.html"), headers={"Content-Security-Policy": _PAGE_POLICY})

        @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
        async def docs() -> HTMLResponse:
            return HTMLResponse(_page("docs.html"), headers={"Content-Security-Policy": _PAGE_POLICY})


def _page(name: str) -> str:
    return files("anchorlm.serving").joinpath(name).read_text("utf-8")


def _model(served: ServedModel) -> dict[str, Any]:
    settings = served.guard.defense.settings.model_dump()
    return {
        "id": served.id,
        "object": "model",
        "created": 0,
        "owned_by": "anchorlm",
        "anchorlm": {
            "defense": served.guard.defense.name,
            "streams": served.guard.defense.streams,
            "limits": {name: list(bounds) for name, bounds in served.serving.limits.items()},
            "template": {name: list(values) for name, values in served.serving.template.items()},
            "thoughts": served.guard.thoughts.policy,
            "sampling": {name: list(bounds) for name, bounds in served.serving.bounds.items()},
            "knobs": {name: settings[name] for name in served.serving.limits},
            "examples": list(served.serving.examples) or [served.guard.probes.harmless, served.guard.probes.harmful],
        },
    }
