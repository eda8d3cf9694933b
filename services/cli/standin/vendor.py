"""The stand-in's API: any model name is accepted and echoed, all are answered by the one small model."""

import hmac
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from services.cli.standin.http import Reply, Request
from services.cli.standin.wire import BadRequest, Writer, chat_from
from services.common.chat import AnswerBuilder
from services.common.errors import InvalidInput, MeshError
from services.engine.domain.backend import Piece
from services.engine.domain.engine import AnswerCut, Busy, Engine, Finished, NotLoaded, Started


class StandIn:
    """Answers HTTP requests out of an engine. `api_key` None lets everyone in."""

    def __init__(self, engine: Engine, *, api_key: str | None, max_output_tokens: int) -> None:
        self._engine = engine
        self._api_key = api_key
        self._max_output_tokens = max_output_tokens

    async def handle(self, request: Request) -> Reply:
        """Routes one request."""
        if request.path == "/health":
            missing = await self._engine.missing()
            return Reply(200, {"status": "ok"}) if missing is None else Reply(503, {"status": missing})
        expected, given = f"Bearer {self._api_key}", request.headers.get("authorization", "")
        if self._api_key is not None and not hmac.compare_digest(expected.encode(), given.encode()):
            return _error(401, "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key")
        match request.method, request.path:
            case "GET", "/v1/models":
                model = self._engine.status().model
                entry = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "local"}
                return Reply(200, {"object": "list", "data": [entry]})
            case "POST", "/v1/chat/completions":
                return await self._complete(request.body)
            case _:
                return _error(404, "Unknown request URL.", "invalid_request_error", code="unknown_url")

    async def _complete(self, body: bytes) -> Reply:
        try:
            wanted = json.loads(body)
            if not isinstance(wanted, dict):
                raise BadRequest("The body must be a JSON object.", "body")
            model = wanted.get("model")
            if not isinstance(model, str) or not model:
                raise BadRequest("You must provide a model parameter.", "model")
            chat = chat_from(wanted, self._max_output_tokens)
        except BadRequest as error:
            return _error(400, str(error), "invalid_request_error", param=error.param)
        except ValueError:
            return _error(400, "The body is not JSON.", "invalid_request_error")
        writer = Writer(model)
        events = self._engine.stream(chat)
        try:
            await anext(events)  # Started, or a refusal while a status can still be sent
            if not wanted.get("stream"):
                return Reply(200, await _whole(events, writer))
            first = await anext(events)
        except Busy:
            return _error(429, "Too many requests.", "requests", code="rate_limit_exceeded", retry_after_s=1)
        except NotLoaded:
            return _error(503, "The model is loading.", "server_error", retry_after_s=1)
        except InvalidInput as error:
            too_long = error.violations[0].field == "chat.messages"
            code = "context_length_exceeded" if too_long else None
            return _error(400, error.message, "invalid_request_error", param="messages", code=code)
        except (MeshError, AnswerCut):
            return _error(500, "The server had an error while processing your request.", "server_error")
        with_usage = bool((wanted.get("stream_options") or {}).get("include_usage"))
        return Reply(200, _stream(first, events, writer, with_usage))


Event = Started | Piece | Finished


async def _whole(events: AsyncGenerator[Event], writer: Writer) -> dict[str, Any]:
    answer = AnswerBuilder()
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Piece):
                answer.add(event.delta)
            elif isinstance(event, Finished):
                return writer.completion(answer.build(event.finish_reason), event.usage)
    raise AnswerCut("the model stopped before the answer was complete")


async def _stream(first: Event, events: AsyncGenerator[Event], writer: Writer, with_usage: bool) -> AsyncGenerator[str]:
    async def all_events() -> AsyncGenerator[Event]:
        yield first
        async for event in events:
            yield event

    async with aclosing(events):
        yield writer.first()
        async for event in all_events():
            if isinstance(event, Piece):
                yield writer.delta(event.delta)
            elif isinstance(event, Finished):
                yield writer.last(event.finish_reason)
                if with_usage:
                    yield writer.usage(event.usage)
                yield "[DONE]"


def _error(
    status: int,
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: int | None = None,
) -> Reply:
    headers: Mapping[str, str] = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Reply(status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers)
