"""Our own engine, over its gRPC contract."""

from collections.abc import AsyncGenerator

import grpc

from llmmesh.engine.v1 import engine_pb2, engine_pb2_grpc
from services.common.chat import Delta, deltas_of
from services.common.chat_pb import (
    answer_from_pb,
    caller_to_pb,
    chat_to_pb,
    delta_from_pb,
    finish_reason_from_pb,
    usage_from_pb,
)
from services.common.errors import (
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    RateLimited,
    StreamCut,
    UnknownModel,
    from_rpc_error,
)
from services.provider.domain.charge import Compute
from services.provider.domain.vendor import Call, Completion, Reason, VendorError


class EngineVendor:
    """An engine service behind a channel."""

    def __init__(self, name: str, channel: grpc.aio.Channel) -> None:
        self._name = name
        self._stub = engine_pb2_grpc.EngineServiceStub(channel)

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        caller, chat = caller_to_pb(call.caller), chat_to_pb(call.chat)
        try:
            if not call.streaming:
                response = await self._stub.Generate(
                    engine_pb2.GenerateRequest(caller=caller, chat=chat, model=call.model),
                    timeout=call.timeout_s if call.deadline_s is None else min(call.timeout_s, call.deadline_s),
                    metadata=call.trace,
                )
                completion = Completion(
                    finish_reason_from_pb(response.answer.finish_reason),
                    usage_from_pb(response.usage),
                    response.model,
                    _compute_from_pb(response.compute),
                )
                for delta in deltas_of(answer_from_pb(response.answer)):
                    yield delta
                yield completion
                return
            model = call.model
            # The caller's deadline is the only limit of the stream as a whole; closing this generator ends it too.
            events = self._stub.StreamGenerate(
                engine_pb2.StreamGenerateRequest(caller=caller, chat=chat, model=call.model),
                timeout=call.deadline_s,
                metadata=call.trace,
            )
            try:
                async for event in events:
                    match event.WhichOneof("event"):
                        case "started":
                            model = event.started.model
                        case "delta":
                            yield delta_from_pb(event.delta)
                        case "finished":
                            yield Completion(
                                finish_reason_from_pb(event.finished.finish_reason),
                                usage_from_pb(event.finished.usage),
                                model,
                                _compute_from_pb(event.finished.compute),
                            )
                            return
            finally:
                events.cancel()
            raise VendorError(Reason.CUT, f"{self._name} ended the stream without saying that it is complete")
        except grpc.aio.AioRpcError as error:
            raise self._vendor_error(from_rpc_error(error), call) from error
        except StreamCut as error:
            raise VendorError(Reason.CUT, f"{self._name}: {error.message}", billed=True) from error
        except InvalidInput as error:  # what came, not what was asked
            raise VendorError(Reason.UNAVAILABLE, f"{self._name} answered with something that is no answer") from error

    def _vendor_error(self, error: MeshError, call: Call) -> VendorError:
        match error:
            case DeadlineExceeded() if call.deadline_s is not None and (
                call.streaming or call.deadline_s <= call.timeout_s
            ):
                return VendorError(Reason.DEADLINE, "the deadline passed during the call", billed=True)
            case RateLimited():
                return VendorError(Reason.RATE_LIMITED, f"{self._name} is busy", retry_after_s=error.retry_after_s)
            case UnknownModel():
                return VendorError(Reason.REJECTED, f"{self._name} does not serve {call.model}")
            case InvalidInput():
                if not error.violations:
                    return VendorError(Reason.INVALID_INPUT, error.message, field="chat")
                first = error.violations[0]
                return VendorError(Reason.INVALID_INPUT, first.description, field=first.field)
            case StreamCut():
                return VendorError(Reason.CUT, error.message)
            case _:
                return VendorError(Reason.UNAVAILABLE, f"{self._name}: {error.message}")


def _compute_from_pb(pb: engine_pb2.ComputeCost) -> Compute:
    return Compute(pb.cost_nanousd, pb.prefill_cost_nanousd)
