"""Routes of the HTTP door, each inside a span, with a deadline, and with what it raises as OpenAI's errors."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from services.common import metrics, telemetry
from services.common.deadline import set_remaining
from services.common.errors import InvalidInput, MeshError, TooLarge, UnknownModel, Violation
from services.common.money import Bill, CostItem, Usage
from services.common.tokens import estimate_tokens
from services.edge.convert import REQUEST_ID, REQUEST_ID_FORM
from services.edge.domain.ledger import Spool, UsageRecord
from services.edge.domain.ports import Embedded, Embedder
from services.edge.domain.trip import Began, Ended, Event
from services.edge.door import Door, describe
from services.edge.http import errors, openai_answer, openai_request

log = structlog.get_logger()
T = TypeVar("T")

MAX_EMBEDDED = 256
"""Texts of one embeddings request."""
EMBEDDED_AT_ONCE = 16
MAX_TIMEOUT_S = 3600.0

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """OpenAI's API over the door."""

    def __init__(
        self,
        door: Door,
        models: Sequence[str],
        embedder: Embedder,
        spool: Spool,
        missing: Callable[[], Awaitable[str | None]],
        max_body_bytes: int,
    ) -> None:
        """`models` are the names that a request may ask for; `missing` says what of the edge's stores is not there."""
        self._door = door
        self._models = models
        self._embedder = embedder
        self._spool = spool
        self._missing = missing
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        return [
            Route("/v1/chat/completions", _guarded(self.chat), methods=["POST"]),
            Route("/v1/embeddings", _guarded(self.embeddings), methods=["POST"]),
            Route("/v1/models", _guarded(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", _guarded(self.model), methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        key = await self._door.admit(request.headers.get("authorization"))
        body = await self._body(request)
        streaming = openai_request.is_stream(body)
        asked = openai_request.request_from_json(body, request.headers)
        question = self._door.question(asked, key.tenant, request.headers.get("x-request-id"), _seconds_left(request))
        if not streaming:
            done = await _unless_gone(request, self._door.complete(question))
            told = openai_answer.completion(done, int(time.time()))
            return JSONResponse(told, headers=openai_answer.headers_of(done.receipt))
        events = self._door.walk.stream(question)
        try:
            first = await _unless_gone(request, _first(events))
        except BaseException:
            await events.aclose()
            raise
        span = trace.get_current_span()
        return EventStream(first, events, with_usage=openai_request.wants_usage(body), span=span)

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`: vectors of the mesh's own embedding model, whatever model is named."""
        key = await self._door.admit(request.headers.get("authorization"))
        body = await self._body(request)
        request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
        texts = _texts_of(body, request_id)
        self._door.keep_time(_seconds_left(request))
        found = await _unless_gone(request, self._embed(texts))
        tokens = sum(estimate_tokens(text) for text in texts)
        model = found[0].vector.model_id
        cost = sum(one.cost for one in found)
        self._spool.append(
            UsageRecord(
                uuid.uuid4().hex,
                request_id,
                time.time(),
                key.tenant,
                request.headers.get("x-llmmesh-namespace") or "default",
                request.headers.get("x-llmmesh-endpoint", "")[:64],
                request.headers.get("x-llmmesh-user", "")[:128],
                model,
                "",
                "embedding",
                Usage(input_tokens=tokens, estimated=True),
                Bill(cost, cost, items=(CostItem("embedder", model, cost),) if cost else ()),
                kind="embedding",
            )
        )
        as_base64 = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(one.vector.values, as_base64)}
            for index, one in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        headers = {"x-request-id": request_id, "x-llmmesh-model": model, "x-llmmesh-cost-nanousd": str(cost)}
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage}, headers=headers)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        self._door.identify(request.headers.get("authorization"))
        return JSONResponse(openai_answer.models(self._models))

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{name}`."""
        self._door.identify(request.headers.get("authorization"))
        name = request.path_params["name"]
        if name not in self._models:
            raise UnknownModel(f"no tier and no model is named {name!r}")
        return JSONResponse(openai_answer.model(name))

    async def healthz(self, _: Request) -> Response:
        """`GET /healthz`: the door is open; what is missing beside it does not keep answers away."""
        return JSONResponse({"status": "ok", "missing": await self._missing()})

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics` for Prometheus."""
        return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.CONTENT_TYPE)

    async def _embed(self, texts: Sequence[str]) -> list[Embedded]:
        few = asyncio.Semaphore(EMBEDDED_AT_ONCE)

        async def one(text: str) -> Embedded:
            async with few:
                return await self._embedder.embed(text)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(text)) for text in texts]
        return [task.result() for task in tasks]

    async def _body(self, request: Request) -> Any:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_body_bytes:
                raise TooLarge(f"the body is larger than {self._max_body_bytes:,} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidInput(violations=(Violation("body", "must be JSON in UTF-8"),)) from None


class EventStream(Response):
    """Server-sent events of one answer. A stream that breaks ends with an error and without [DONE]."""

    def __init__(self, first: Began, events: AsyncGenerator[Event, None], *, with_usage: bool, span: Span) -> None:
        self._first = first
        self._events = events
        self._with_usage = with_usage
        self._span = span
        headers = openai_answer.headers_of(first.receipt)
        super().__init__(headers=headers | {"cache-control": "no-cache"}, media_type="text/event-stream")
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writing = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((writing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, gone):
                task.cancel()
            await asyncio.gather(writing, gone, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        receipt = self._first.receipt
        chunks = openai_answer.Chunks(receipt.request_id, receipt.model, int(time.time()))

        async def say(*told: dict[str, Any]) -> None:
            body = b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in told)
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            # Closed with us: what was streamed to someone who left is settled at once.
            async with aclosing(self._events) as events:
                await say(chunks.first())
                async for event in events:
                    match event:
                        case Began():
                            continue
                        case Ended(reason, usage, receipt):
                            describe(receipt)
                            await say(*chunks.end(reason, usage, receipt, with_usage=self._with_usage))
                        case _:
                            await say(chunks.piece(event))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
        except Exception as error:
            await say(errors.body_of(_named(self._span, "chat", error)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_app(api: Api, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The door's application; `more` are routes beside OpenAI's."""
    return Starlette(routes=[*api.routes(), *more], exception_handlers={HTTPException: _no_route})


async def _no_route(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = "this method is not allowed here" if status == 405 else "there is nothing at this address"
    told = {"error": {"message": what, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(told, status, headers=getattr(error, "headers", None))


def _guarded(handler: Handler) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """The handler inside a span and with a deadline; what it raises becomes a response."""

    async def guarded(request: Request) -> Response:
        parent = request.headers.get("traceparent")
        remote = telemetry.extract(parent, request.headers.get("tracestate")) if parent else None
        above = trace.set_span_in_context(NonRecordingSpan(remote)) if remote else otel_context.Context()
        tracer = trace.get_tracer("llmmesh")
        span = tracer.start_span(f"{request.method} {request.scope['route'].path}", context=above, kind=SpanKind.SERVER)
        otel_context.attach(trace.set_span_in_context(span, above))
        set_remaining(None)
        try:
            response = await handler(request)
        except Exception as error:
            named = _named(span, request.url.path, error)
            response = JSONResponse(errors.body_of(named), errors.status_of(named), headers=errors.headers_of(named))
        except BaseException:
            span.set_attribute(telemetry.ERROR_TYPE, "CANCELLED")
            span.set_status(Status(StatusCode.ERROR, "CANCELLED"))
            span.end()
            raise
        return _SpanEnds(response, span)

    return guarded


class _SpanEnds(Response):
    """A response whose span ends with its last byte."""

    def __init__(self, response: Response, span: Span) -> None:
        self._response = response
        self._span = span
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._span.end()


def _named(span: Span, where: str, error: Exception) -> MeshError:
    """The error for the caller; what nobody expected is logged and told as nothing but that."""
    if isinstance(error, ExceptionGroup):
        error = next((e for e in error.exceptions if isinstance(e, MeshError)), error)
    if isinstance(error, ClientGone):
        span.set_attribute(telemetry.ERROR_TYPE, "CANCELLED")
        return MeshError("the caller hung up")
    if isinstance(error, MeshError):
        named = error
    else:
        log.error("unexpected_error", method=where, exc_info=error)
        named = MeshError("an internal error occurred; its trace id finds it in the log")
    span.set_status(Status(StatusCode.ERROR, named.reason))
    span.set_attribute(telemetry.ERROR_TYPE, named.reason)
    return named


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; it is cancelled when the caller hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnect(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the caller hung up")
        return await task
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(events: AsyncGenerator[Event, None]) -> Began:
    first = await anext(events)
    if not isinstance(first, Began):
        raise MeshError("a stream began without its beginning")
    return first


def _seconds_left(request: Request) -> float | None:
    """The caller's deadline, which is set; None where it has none."""
    wrong: list[Violation] = []
    name = "x-llmmesh-timeout"
    seconds = openai_request.number_of(lambda n, d: wrong.append(Violation(n, d)), request.headers, name)
    if seconds is not None and not 0 < seconds <= MAX_TIMEOUT_S:
        wrong.append(Violation(name, f"seconds, above 0, up to {MAX_TIMEOUT_S:g}"))
    if wrong:
        raise InvalidInput(violations=wrong)
    if seconds is not None:
        set_remaining(seconds)
    return seconds


def _texts_of(body: Any, request_id: str) -> list[str]:
    wrong: list[Violation] = []
    if not REQUEST_ID.fullmatch(request_id):
        wrong.append(Violation("x-request-id", REQUEST_ID_FORM))
    given = body.get("input") if isinstance(body, dict) else None
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        wrong.append(Violation("input", "must be a text or texts, none empty; token numbers are not taken"))
    elif len(texts) > MAX_EMBEDDED:
        wrong.append(Violation("input", f"at most {MAX_EMBEDDED} texts"))
    if isinstance(body, dict):
        if body.get("encoding_format", "float") not in ("float", "base64"):
            wrong.append(Violation("encoding_format", "must be float or base64"))
        if body.get("dimensions") is not None:
            wrong.append(Violation("dimensions", "is not supported: vectors keep their length"))
    if wrong:
        raise InvalidInput(violations=wrong)
    return list(texts or ())


def _vector(values: bytes, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(values).decode()
    return [float(value) for value in np.frombuffer(values, dtype="<f4")]
