"""Amazon Bedrock's Converse API through boto3.

boto3 blocks, so every call has a thread of its own while it lasts; its events come to the event loop through a queue. A caller
that leaves shuts the call's socket down, which wakes the thread wherever it waits for the vendor.

What Converse cannot say: seed, penalties and names of messages are not sent, nor is reasoning of earlier turns, which is
refused without the vendor's signature. System messages all go in front. A picture must come as bytes.
"""

import asyncio
import hashlib
import json
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.eventstream import ParserError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EventStreamError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import HTTPResponse

from services.common.chat import (
    Chat,
    Delta,
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    Role,
    TextDelta,
    ToolCallDelta,
)
from services.common.money import Usage
from services.provider.adapters import wire
from services.provider.domain.prompt_cache import LONG_TTL_S, SHORT_TTL_S, CacheHints
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

if TYPE_CHECKING:
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient

_MAX_AHEAD = 256
_LOOK_AGAIN_S = 1.0
_ANY_JSON = "Answer with one JSON object and nothing else: no prose, no code fence."
_FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_TTL_S = {"5m": SHORT_TTL_S, "1h": LONG_TTL_S}
_TOOL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_TOO_LONG = re.compile(r"too long|context (length|limit|window)|input tokens exceed", re.IGNORECASE)
_FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "tool_use": FinishReason.TOOL_CALLS,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "guardrail_intervened": FinishReason.CONTENT_FILTER,
    "content_filtered": FinishReason.CONTENT_FILTER,
}
# AWS names its errors; the status of one and the same varies, and an error inside a stream has none.
_STATUS = {
    "accessdenied": 403,
    "expiredtoken": 403,
    "incompletesignature": 403,
    "invalidclienttokenid": 403,
    "invalidsignature": 403,
    "missingauthenticationtoken": 403,
    "signaturedoesnotmatch": 403,
    "unrecognizedclient": 403,
    "modeltimeout": 408,
    "modelerror": 424,
    "modelstreamerror": 424,
    "modelnotready": 429,
    "throttling": 429,
    "toomanyrequests": 429,
    "validation": 400,
    "internalserver": 500,
    "serviceunavailable": 503,
}
_NO_CREDENTIALS = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_NOT_REACHED = urllib3.exceptions.NewConnectionError  # a kind of timeout to urllib3
_BROKEN = (urllib3.exceptions.HTTPError, OSError)


class Bedrock:
    """One region. botocore never retries by itself: attempts are the plan's business."""

    def __init__(self, name: str, *, region: str, endpoint_url: str | None, max_concurrency: int) -> None:
        """`endpoint_url`: address instead of the region's own. `max_concurrency` threads at most; further calls wait."""
        self._name = name
        self._region = region
        self._endpoint_url = endpoint_url
        self._max_concurrency = max_concurrency
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix=f"bedrock-{name}")
        self._lines: set[_Line] = set()
        self._opening = threading.Lock()
        self._opened: _Opened | None = None
        self._look_again_at = 0.0
        # boto3 takes a while to read its descriptions of the API: not during the first call.
        self._threads.submit(self._client)

    async def close(self) -> None:
        """Ends the calls and closes the connections."""
        for line in self._lines:
            line.hang_up()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        if self._opened is not None:
            self._opened.close()

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        request = request_of(call)
        line = _Line(call)
        self._lines.add(line)
        running = self._threads.submit(self._run, call, request, line)
        try:
            while True:
                event = await line.get()
                if isinstance(event, Exception):
                    told = self._vendor_error(event, billed=line.sent)
                    raise told from (None if told is event else event)
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            self._lines.discard(line)
            running.cancel()
            line.hang_up()

    def _run(self, call: Call, request: dict[str, Any], line: "_Line") -> None:
        """The thread of one call."""
        _line.set(line)
        with suppress(_HungUp):
            try:
                with closing(self._events(call, request, line)) as events:
                    for event in events:
                        line.put(event)
            except Exception as error:  # whatever it is: the caller waits for it
                line.let_go()
                line.put(error)

    def _events(self, call: Call, request: dict[str, Any], line: "_Line") -> Generator[Delta | Completion]:
        client = self._client()
        if not call.streaming:
            whole = client.converse(**request)
            line.let_go()
            # All of it, or an error before the first piece: then another candidate may take over.
            deltas = list(_deltas_of_message(whole["output"]["message"]))
            reason = self._finish_reason(whole.get("stopReason"))
            yield from deltas
            yield Completion(reason, usage_of(whole.get("usage")), call.model)
            return
        reading = _StreamReading()
        with closing(client.converse_stream(**request)["stream"]) as stream:
            try:
                for event in stream:
                    yield from reading.read(event)
            except (*_BROKEN, ParserError, EventStreamError):
                if reading.reason is None:
                    raise
                # The vendor had said that the answer is whole; only the usage is lost, and is estimated.
        line.let_go()
        yield Completion(self._finish_reason(reading.reason), reading.usage, call.model)

    def _client(self) -> "BedrockRuntimeClient":
        """The client; made in a thread: finding the credentials may take seconds. Without them the next call looks again."""
        with self._opening:
            if self._opened is None:
                if time.monotonic() < self._look_again_at:
                    raise NoCredentialsError
                session = botocore.session.get_session()
                if session.get_credentials() is None and not _has_token(session):
                    self._look_again_at = time.monotonic() + _LOOK_AGAIN_S
                    raise NoCredentialsError
                self._opened = _Opened(session, self._region, self._endpoint_url, self._max_concurrency)
            return self._opened.client

    def _finish_reason(self, reason: object) -> FinishReason:
        """Why the answer ended. Raises VendorError for an answer that does not say that it is whole.

        Half an answer must not be served, or stored, as a whole one: an unknown reason ("malformed_tool_use") breaks it off.
        """
        if not reason:
            raise VendorError(Reason.CUT, f"{self._name} ended the answer without a stop reason", billed=True)
        known = _FINISH.get(reason) if isinstance(reason, str) else None
        if known is None:
            raise VendorError(Reason.CUT, f"{self._name} broke the answer off{wire.identifier(reason)}", billed=True)
        return known

    def _vendor_error(self, error: Exception, *, billed: bool) -> Exception:
        match error:
            case VendorError():
                return error
            case ClientError():  # and EventStreamError
                return refusal_of(self._name, error)
            case ParamValidationError():
                return VendorError(Reason.INVALID_INPUT, f"does not fit into a request of {self._name}")
            case ParserError() | ResponseParserError():
                return wire.nonsense(self._name)
            case _ if isinstance(error, _NO_CREDENTIALS):
                return VendorError(Reason.CREDENTIAL, f"{self._name} has no AWS credentials")
            case _ if isinstance(error, _BROKEN):
                timed_out = isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(error, _NOT_REACHED)
                return wire.unreachable(self._name, timed_out=timed_out, billed=billed)
            case BotoCoreError():  # no address for the region, no way to who gives out credentials
                return VendorError(Reason.UNAVAILABLE, f"{self._name} cannot be called")
            case _ if isinstance(error, wire.NONSENSE):
                return wire.nonsense(self._name)
        return error


def _has_token(session: botocore.session.Session) -> bool:
    """Whether there is a bearer token for Bedrock instead of credentials."""
    return session.get_auth_token(signing_name="bedrock") is not None  # type: ignore[call-arg] # its stub lags behind


class _Opened:
    """The client, and the connections that it sends by."""

    def __init__(
        self, session: botocore.session.Session, region: str, endpoint_url: str | None, max_connections: int
    ) -> None:
        config = Config(retries={"total_max_attempts": 1})
        self.client: BedrockRuntimeClient = boto3.Session(botocore_session=session).client(
            "bedrock-runtime", region_name=region, endpoint_url=endpoint_url, config=config
        )
        tls = ssl.create_default_context(cafile=get_cert_path(session.get_config_variable("ca_bundle") or True))
        self._connections = _connections(self.client.meta.endpoint_url, tls, max_connections)
        self.client.meta.events.register("before-send.bedrock-runtime", self._send)  # type: ignore[arg-type] # says None

    def close(self) -> None:
        self.client.close()
        self._connections.clear()

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Sends instead of botocore, whose timeouts are the client's and whose sockets nobody can get at."""
        response = self._connections.urlopen(
            request.method,
            request.url,
            body=request.body,
            headers=request.headers,
            timeout=_line.get().timeout,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        return AWSResponse(request.url, response.status, response.headers, response)  # type: ignore[arg-type] # as botocore


def _connections(url: str, tls: ssl.SSLContext, size: int) -> urllib3.PoolManager:
    """Connections that a line can cut, through the environment's proxy if there is one for the address."""
    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    manager: urllib3.PoolManager
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        user = urllib3.util.parse_url(proxy).auth
        headers = urllib3.util.make_headers(proxy_basic_auth=user) if user else None
        manager = urllib3.ProxyManager(proxy, proxy_headers=headers, maxsize=size, ssl_context=tls)
    else:
        manager = urllib3.PoolManager(maxsize=size, ssl_context=tls)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return manager


class _HungUp(Exception):
    """The caller has left; nobody waits for the rest."""


class _Line:
    """Between the thread of one call and its caller: events go one way, the hang-up the other.

    Made, read and hung up on the event loop, which it never blocks. The thread is at most _MAX_AHEAD events ahead.
    """

    def __init__(self, call: Call) -> None:
        self.timeout = urllib3.Timeout(connect=wire.connect_timeout_s(call), read=call.timeout_s)
        self.sent = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Delta | Completion | Exception] = asyncio.Queue()
        self._room = threading.Semaphore(_MAX_AHEAD)
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._hung_up = False

    async def get(self) -> Delta | Completion | Exception:
        """The next event, or why there is none."""
        event = await self._events.get()
        self._room.release()
        return event

    def hang_up(self) -> None:
        """Wakes the thread and ends the call at the vendor; does nothing to a call that is over."""
        with self._lock:
            self._hung_up = True
            if self._connection is not None:
                self._connection.shut_down(self)
        self._room.release()
        self._events.put_nowait(ConnectionAbortedError())

    def put(self, event: Delta | Completion | Exception) -> None:
        """In the thread: hands an event over, when there is room. Raises _HungUp when nobody wants it."""
        self._room.acquire()
        if self._hung_up:
            self._room.release()
            raise _HungUp
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def use(self, connection: "_Connection") -> None:
        """In the thread: from now on the hang-up cuts this connection."""
        with self._lock:
            if self._hung_up:
                raise _HungUp
            self._connection = connection
            connection.line = self

    def let_go(self) -> None:
        """In the thread: the response is read, and the connection is free for the next call."""
        with self._lock:
            self._connection = None


_line: ContextVar[_Line] = ContextVar("_line")


class _Connection(HTTPConnection):
    """A connection that knows whose call it carries."""

    line: _Line | None = None

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:
        line = _line.get()
        if self.sock is None:
            self.connect()
        line.use(self)
        # Sending a long prompt may take longer than connecting.
        self.sock.settimeout(line.timeout.read_timeout)
        super().putrequest(method, url, skip_host, skip_accept_encoding)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # urllib3's own has it too
        _line.get().sent = True
        return super().getresponse()

    def shut_down(self, line: _Line) -> None:
        """Ends what the socket waits for, if the line still uses it: the next call may have got the connection."""
        if self.line is line and self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


class _SecureConnection(_Connection, HTTPSConnection):
    """The same with TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _StreamReading:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.reason: object = None
        self.usage: Usage | None = None
        self._calls: dict[object, _OpenCall] = {}

    def read(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        if opened := event.get("contentBlockStart"):
            yield from self._start(opened)
        elif more := event.get("contentBlockDelta"):
            yield from self._delta(more["contentBlockIndex"], more["delta"])
        elif stop := event.get("messageStop"):
            self.reason = stop.get("stopReason")
            # A tool without parameters gets no piece of arguments at all.
            for call in self._calls.values():
                if not call.begun:
                    yield ToolCallDelta(call.index, arguments_json="{}")
        elif metadata := event.get("metadata"):
            self.usage = usage_of(metadata.get("usage"))

    def _start(self, block: Mapping[str, Any]) -> Iterator[Delta]:
        if tool := block["start"].get("toolUse"):
            name = wire.text(tool["name"])
            if not name:
                raise ValueError("a tool call without a name")
            call = self._calls[block["contentBlockIndex"]] = _OpenCall(len(self._calls))
            yield ToolCallDelta(call.index, wire.text(tool.get("toolUseId")) or wire.made_up_id(), name)

    def _delta(self, block: object, delta: Mapping[str, Any]) -> Iterator[Delta]:
        if text := wire.text(delta.get("text")):
            yield TextDelta(text)
        if reasoning := wire.text((delta.get("reasoningContent") or {}).get("text")):
            yield ReasoningDelta(reasoning)
        if "toolUse" in delta:
            call = self._calls[block]
            if arguments := wire.text(delta["toolUse"].get("input")):
                call.begun = True
                yield ToolCallDelta(call.index, arguments_json=arguments)


@dataclass(slots=True)
class _OpenCall:
    index: int
    begun: bool = False


def _deltas_of_message(message: Mapping[str, Any]) -> Iterator[Delta]:
    index = 0
    for block in message["content"]:
        if reasoning := wire.text(((block.get("reasoningContent") or {}).get("reasoningText") or {}).get("text")):
            yield ReasoningDelta(reasoning)
        if text := wire.text(block.get("text")):
            yield TextDelta(text)
        if (tool := block.get("toolUse")) is not None:
            name, arguments = wire.text(tool["name"]), wire.arguments(tool["input"])
            if not name:
                raise ValueError("a tool call without a name")
            yield ToolCallDelta(index, wire.text(tool.get("toolUseId")) or wire.made_up_id(), name, arguments)
            index += 1


def usage_of(reported: Mapping[str, Any] | None) -> Usage | None:
    """Normalised token counts; None unless input and output are there.

    Converse counts apart what was read from and written to the cache. Of the writes it tells the lifetimes.
    """
    counts = SimpleNamespace(**reported or {})
    plain, output = wire.count(counts, "inputTokens"), wire.count(counts, "outputTokens")
    if plain is None or output is None:
        return None
    details = [SimpleNamespace(**detail) for detail in getattr(counts, "cacheDetails", None) or ()]
    writes = tuple(
        (_TTL_S[detail.ttl], tokens)
        for detail in details
        if detail.ttl in _TTL_S and (tokens := wire.count(detail, "inputTokens"))
    )
    read = wire.count(counts, "cacheReadInputTokens") or 0
    written = max(wire.count(counts, "cacheWriteInputTokens") or 0, sum(tokens for _, tokens in writes))
    return Usage(
        input_tokens=plain + read + written,
        output_tokens=output,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        cache_writes=writes,
    )


def refusal_of(vendor: str, error: ClientError) -> VendorError:
    """Why the vendor refused, before its answer or inside it. The vendor's message is read, and never passed on."""
    told, about = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    status, code = about.get("HTTPStatusCode", 0), str(told.get("Code", ""))
    in_stream = isinstance(error, EventStreamError)
    known = _STATUS.get(code.lower().removesuffix("exception"), 0)
    if known == 424 or (in_stream and known in (0, 408, 500, 503)):
        # The model failed while it answered.
        message = f"{vendor} broke the answer off{wire.identifier(code)}"
        return VendorError(Reason.UNAVAILABLE, message, billed=in_stream)
    return wire.refused(
        vendor,
        known or status,
        None if code == str(status) else code,
        about.get("HTTPHeaders", {}),
        too_long=_TOO_LONG.search(str(told.get("Message", ""))) is not None,
    )


def request_of(call: Call) -> dict[str, Any]:
    """The call as arguments of Converse. Raises VendorError (INVALID_INPUT) for what Converse cannot say.

    JSON without a schema is asked for in words. The tool choice "none" leaves the tools out, but where the conversation has
    tool calls already Converse demands the tools, and the model may call them.
    """
    chat, points = call.chat, _cache_points(call.hints)
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for index, message in enumerate(chat.messages):
        blocks = _blocks(index, message)
        if message.role is Role.SYSTEM:
            # A later one moves to the front, and what ends behind it is no longer the prefix that was meant.
            system += blocks + ([points[index]] if blocks and index in points and not messages else [])
            continue
        if blocks and index in points:
            blocks.append(points[index])
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    if chat.response_format.kind == "json_object":
        system.append({"text": _ANY_JSON})
    request = {
        "modelId": call.model,
        "messages": messages,
        "system": system,
        "inferenceConfig": _inference_config(chat),
        "toolConfig": _tool_config(chat, points.get(None)),
        "outputConfig": _output_config(chat),
    }
    return {name: value for name, value in request.items() if value}


def _cache_points(hints: CacheHints) -> dict[int | None, dict[str, Any]]:
    """A cache point by the index of the message that it follows; None is the tools'. Five minutes are the default."""
    return {
        point.message: {"cachePoint": {"type": "default"} | ({"ttl": "1h"} if point.ttl_s >= LONG_TTL_S else {})}
        for point in hints.breakpoints
    }


def _inference_config(chat: Chat) -> dict[str, Any]:
    sampling = chat.sampling
    if sampling.temperature is not None and not 0 <= sampling.temperature <= 1:
        raise _invalid("chat.sampling.temperature", "must be between 0 and 1")
    config = {
        "maxTokens": sampling.max_output_tokens,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "stopSequences": list(sampling.stop) or None,
    }
    return {name: value for name, value in config.items() if value is not None}


def _output_config(chat: Chat) -> dict[str, Any]:
    form, effort = chat.response_format, chat.sampling.reasoning_effort
    config: dict[str, Any] = {"effort": effort} if effort else {}
    if form.kind == "json_schema":
        schema = {"name": form.name or "answer", "schema": form.json_schema}
        config["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    return config


def _tool_config(chat: Chat, cache_point: dict[str, Any] | None) -> dict[str, Any]:
    called = {call.name: None for message in chat.messages for call in message.tool_calls}
    if chat.tool_choice.mode == "none" and not called:
        return {}
    tools = [_tool(tool.name, tool.description, tool.parameters_json_schema, tool.strict) for tool in chat.tools]
    # Converse demands the tools of calls in the conversation, also where they are not offered any more.
    tools = tools or [_tool(name, "", "") for name in called]
    if not tools:
        return {}
    if cache_point is not None:
        tools.append(cache_point)
    match chat.tool_choice.mode:
        case "auto":
            return {"tools": tools, "toolChoice": {"auto": {}}}
        case "required":
            return {"tools": tools, "toolChoice": {"any": {}}}
        case "named":
            return {"tools": tools, "toolChoice": {"tool": {"name": chat.tool_choice.name}}}
    return {"tools": tools}


def _tool(name: str, description: str, schema: str, strict: bool = False) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": name, "inputSchema": {"json": _document(schema or '{"type": "object"}')}}
    if description:
        spec["description"] = description
    if strict:
        spec["strict"] = True
    return {"toolSpec": spec}


def _blocks(index: int, message: Message) -> list[dict[str, Any]]:
    """The message's content without blank texts, which Converse refuses."""
    field = f"chat.messages[{index}].parts"
    if message.role is Role.SYSTEM and any(isinstance(part, ImagePart) for part in message.parts):
        raise _invalid(field, "a system message takes no images")
    blocks = [
        _image(part, field) if isinstance(part, ImagePart) else {"text": part.text}
        for part in message.parts
        if isinstance(part, ImagePart) or part.text.strip()
    ]
    if message.role is Role.TOOL:
        return [{"toolResult": {"toolUseId": _tool_id(message.tool_call_id), "content": blocks}}]
    calls = [
        {"toolUseId": _tool_id(call.id), "name": call.name, "input": _document(call.arguments_json or "{}")}
        for call in message.tool_calls
    ]
    return blocks + [{"toolUse": call} for call in calls]


def _image(part: ImagePart, field: str) -> dict[str, Any]:
    if not part.data:
        raise _invalid(field, "an image must come as bytes")
    if (form := _FORMATS.get(part.media_type)) is None:
        raise _invalid(field, "an image must be PNG, JPEG, GIF or WebP")
    return {"image": {"format": form, "source": {"bytes": part.data}}}


def _tool_id(given: str) -> str:
    """An id that Converse takes; other vendors' ids may be longer or have other letters."""
    return given if _TOOL_ID.fullmatch(given) else f"call_{hashlib.sha256(given.encode()).hexdigest()[:24]}"


def _document(text: str) -> Any:
    """The JSON value of a text. Raises VendorError for one that cannot be written again."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise VendorError(Reason.INVALID_INPUT, "cannot be written as JSON") from error
    return value


def _invalid(field: str, message: str) -> VendorError:
    return VendorError(Reason.INVALID_INPUT, message, field=field)
