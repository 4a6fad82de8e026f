"""Answers as HTTP: whole, or as server-sent events; a client that goes gives its texts up."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kdexport.serve.engine import Engine
from kdexport.serve.forms import Form, Written
from kdexport.serve.jobs import Answer
from kdexport.serve.metrics import Metrics, Watch
from kdexport.serve.refusals import RefusedError, refusal_of

LARGEST_BODY = 8_000_000  # bytes
LOG = logging.getLogger("kdexport.serve")


async def read_body(request: Request, largest: int = LARGEST_BODY) -> bytes:
    """The body of a request. Raises RefusedError for one that is too large."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > largest:
            raise RefusedError(413, f"the body is larger than the {largest} bytes that are taken")
    return bytes(body)


async def read_json(request: Request) -> Any:
    """An object from a request's body. Raises RefusedError for one that is too large or is none."""
    body = await read_body(request)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise RefusedError(400, "the body is no JSON object")
    return value


async def respond(request: Request, engine: Engine, form: Form, metrics: Metrics) -> Response:
    """Have a form's jobs done and answer with what comes of them."""
    answer = engine.submit(form.jobs)
    watch = metrics.watch(answer)
    if form.streams:
        return _Streaming(answer, form, watch)
    texts = await _until_gone(request, _collected(answer, form, watch))
    return JSONResponse(await asyncio.to_thread(form.whole, texts))


async def _collected(answer: Answer, form: Form, watch: Watch) -> list[Written]:
    texts = [Written() for _ in form.jobs]
    async for pieces in answer:
        for piece in pieces:
            watch.note(piece)
            texts[piece.number].add(piece)
    return texts


async def _events(answer: Answer, form: Form, watch: Watch) -> AsyncIterator[str]:
    """Events as JSON. What goes wrong once they have begun is one, too."""
    texts = [Written() for _ in form.jobs]
    try:
        for event in form.first():
            yield _json(event)
        async for pieces in answer:
            for piece in pieces:
                watch.note(piece)
                texts[piece.number].add(piece)
                yield _json(form.event(piece))
        for event in await asyncio.to_thread(lambda: list(form.last(texts))):
            yield _json(event)
    except Exception as error:  # the status has been sent: the client is told in an event
        refusal = refusal_of(error)
        if refusal.status == 500:
            LOG.exception("a stream ends early")
        yield _json(refusal.body)
    yield "[DONE]"


class _Streaming(EventSourceResponse):
    """Server-sent events, whose texts are given up when the client goes."""

    def __init__(self, answer: Answer, form: Form, watch: Watch) -> None:
        super().__init__(_events(answer, form, watch), sep="\n")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _until_gone(request: Request, work: Coroutine[Any, Any, list[Written]]) -> list[Written]:
    """The result of some work, which ends when the client goes."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))
