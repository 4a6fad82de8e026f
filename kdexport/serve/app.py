"""The routes: OpenAI's, copy, page, health, metrics. Knows the engine; no sockets or signals."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kdexport.errors import KdexportError
from kdexport.runtime.constrain import TextForm
from kdexport.runtime.sample import Sampler
from kdexport.serve.copies import CopyForm, Rules, choices
from kdexport.serve.engine import Engine
from kdexport.serve.fields import ChatRequest, CompletionRequest, CopyRequest
from kdexport.serve.forms import ChatForm, CompletionForm, Form
from kdexport.serve.guard import Guard
from kdexport.serve.jobs import UnavailableError
from kdexport.serve.metrics import Metrics
from kdexport.serve.page import FOLDER, page_routes
from kdexport.serve.refusals import RefusedError, refusal_of
from kdexport.serve.responses import read_body, read_json, respond
from kdexport.serve.uploads import LARGEST_FILE, examined

Asked = TypeVar("Asked", bound=BaseModel)
LONGEST_NAME = 200  # characters, of a file


class Api:
    """What the routes share."""

    def __init__(self, engine: Engine, rules: Rules) -> None:
        self.engine = engine
        self._rules = rules
        self.metrics = Metrics(engine)
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        """One model by its name."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model)

    async def completions(self, request: Request) -> Response:
        """OpenAI's older route: prompts as they stand."""
        return await self._write(request, CompletionRequest, self._completion)

    async def chat(self, request: Request) -> Response:
        """OpenAI's chats, through the model's template."""
        return await self._write(request, ChatRequest, self._chat)

    async def copy(self, request: Request) -> Response:
        """Copy for a brief."""
        return await self._write(request, CopyRequest, self._copy)

    async def choices(self, request: Request) -> Response:
        """What a brief may choose from."""
        return JSONResponse(choices(self._rules, self.engine.manifest.name))

    async def briefs(self, request: Request) -> Response:
        """A file of briefs, examined."""
        content = await read_body(request, LARGEST_FILE)
        name = request.query_params.get("name", "")[:LONGEST_NAME]
        return JSONResponse(await asyncio.to_thread(examined, name, content, self._rules.channels))

    async def health(self, request: Request) -> Response:
        """Whether requests are taken, and how many are under way."""
        engine = self.engine
        status = "ok" if engine.is_ready else "loading"
        status = "draining" if engine.is_draining else status
        counts = {"rows": engine.n_rows, "waiting": engine.n_waiting, "room": engine.capacity}
        body = {"status": status, "model": engine.manifest.name, **counts}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def measures(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def _write(
        self, request: Request, kind: type[Asked], form_of: Callable[[Asked], Form]
    ) -> Response:
        body = await read_json(request)
        if not self.engine.is_ready:
            raise UnavailableError("the model is being loaded")
        asked = kind.model_validate(body, context={"channels": self._rules.channels})
        form = await asyncio.to_thread(form_of, asked)  # tokenizing a long text takes a while
        return await respond(request, self.engine, form, self.metrics)

    def _completion(self, asked: CompletionRequest) -> Form:
        self._check_model(asked.model)
        return CompletionForm(asked, self.engine.codec, *self._sizes, self._keep_to)

    def _chat(self, asked: ChatRequest) -> Form:
        self._check_model(asked.model)
        return ChatForm(asked, self.engine.codec, *self._sizes, self._keep_to)

    def _keep_to(self, sampler: Sampler, form: TextForm) -> Sampler:
        return self.engine.grammars.keep_to(sampler, form)

    def _copy(self, asked: CopyRequest) -> Form:
        name = self.engine.manifest.name
        self._check_model(asked.model or name)
        return CopyForm(asked, self.engine.codec, *self._sizes, self._rules, name)

    @property
    def _sizes(self) -> tuple[int, int]:
        """The longest text in tokens, and the size of the vocabulary."""
        model = self.engine.manifest.model
        return model.max_length, model.vocab_size

    @property
    def _model(self) -> dict[str, Any]:
        name = self.engine.manifest.name
        return {"id": name, "object": "model", "created": self._created, "owned_by": "kdexport"}

    def _check_model(self, name: str) -> None:
        if name != self.engine.manifest.name:
            words = f"there is no model {name!r}; this is {self.engine.manifest.name!r}"
            raise RefusedError(404, words, "model", "model_not_found")


def make_app(
    engine: Engine,
    *,
    rules: Rules | None = None,
    key: str | None = None,
    hosts: Collection[str] | None = None,
) -> ASGIApp:
    """The application, which starts the engine and ends it. ``key``, ``hosts``: see `Guard`.

    The guard is around all of it: Starlette answers what nobody caught outside its own middleware.
    """
    api = Api(engine, rules or Rules())
    routes = [
        Route("/health", api.health),
        Route("/metrics", api.measures),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/copy", api.choices),
        Route("/v1/copy", api.copy, methods=["POST"]),
        Route("/v1/briefs", api.briefs, methods=["POST"]),
        *page_routes(),
    ]
    paths = {route.path for route in routes}

    def count(path: str, status: int) -> None:
        path = "/v1/models" if path.startswith("/v1/models/") else path
        known = path if path in paths else "other"
        api.metrics.count_request("/" if known.startswith(f"/{FOLDER}/") else known, status)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.close()

    refused = (
        KdexportError,
        RefusedError,
        ValidationError,
        HTTPException,
        ClientDisconnect,
        Exception,
    )
    app = Starlette(
        routes=routes, lifespan=life, exception_handlers=dict.fromkeys(refused, _refuse)
    )
    return Guard(app, key, hosts, count)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        words = f"{request.method} {request.url.path}: {error.detail.lower()}"
        refusal = RefusedError(error.status_code, words, headers=dict(error.headers or {}))
    elif isinstance(error, ClientDisconnect):
        refusal = RefusedError(499, "the client has gone")
    else:
        refusal = refusal_of(error)
    return JSONResponse(refusal.body, refusal.status, refusal.headers)
