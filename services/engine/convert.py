"""Protobuf to the engine's types and back."""

from google.protobuf.duration_pb2 import Duration

from llmmesh.engine.v1 import engine_pb2
from services.common.chat import Answer
from services.common.chat_pb import answer_to_pb, delta_to_pb, finish_reason_to_pb, usage_to_pb
from services.common.errors import MeshError, NotReady, RateLimited, StreamCut, UnknownModel
from services.engine.domain.backend import Piece
from services.engine.domain.engine import AnswerCut, Busy, Finished, ModelNotServed, NotLoaded, Started, Status
from services.engine.domain.meter import ComputeCost

_RETRY_AFTER_S = 1.0


def event_to_pb(event: Started | Piece | Finished) -> engine_pb2.StreamGenerateResponse:
    """One event of a stream."""
    match event:
        case Started(model):
            return engine_pb2.StreamGenerateResponse(started=engine_pb2.Started(model=model))
        case Piece(delta):
            return engine_pb2.StreamGenerateResponse(delta=delta_to_pb(delta))
        case Finished(finish_reason, usage, compute):
            return engine_pb2.StreamGenerateResponse(
                finished=engine_pb2.Finished(
                    finish_reason=finish_reason_to_pb(finish_reason),
                    usage=usage_to_pb(usage),
                    compute=_compute_to_pb(compute),
                )
            )


def answer_response(model: str, answer: Answer, finished: Finished) -> engine_pb2.GenerateResponse:
    """A whole answer."""
    return engine_pb2.GenerateResponse(
        answer=answer_to_pb(answer),
        usage=usage_to_pb(finished.usage),
        compute=_compute_to_pb(finished.compute),
        model=model,
    )


def status_response(status: Status) -> engine_pb2.GetStatusResponse:
    """How the engine fares."""
    return engine_pb2.GetStatusResponse(
        backend=status.backend,
        model=status.model,
        adapters=status.adapters,
        max_context_tokens=status.max_context_tokens,
        running=status.running,
        waiting=status.waiting,
        max_running=status.max_running,
        idle_time=_duration(status.idle_ns),
        busy_time=_duration(status.busy_ns),
        unbilled_time=_duration(status.unbilled_ns),
        answers=status.answers,
        input_tokens=status.input_tokens,
        cached_input_tokens=status.cached_tokens,
        output_tokens=status.output_tokens,
        output_tokens_per_second=status.output_tokens_per_second,
        prefix_hit_rate=status.prefix_hit_rate,
        kv_cache_use=status.kv_cache_use,
        library_metrics=status.library_metrics,
    )


def error_of(error: Exception) -> MeshError:
    """What the caller gets to see of an error of the domain."""
    match error:
        case Busy():
            return RateLimited(str(error), retry_after_s=_RETRY_AFTER_S)
        case NotLoaded():
            return NotReady(str(error))
        case ModelNotServed():
            return UnknownModel(str(error))
        case _:
            return StreamCut(str(error))


DOMAIN_ERRORS = (Busy, NotLoaded, ModelNotServed, AnswerCut)


def _compute_to_pb(compute: ComputeCost) -> engine_pb2.ComputeCost:
    return engine_pb2.ComputeCost(
        prefill_time=_duration(compute.prefill_ns),
        decode_time=_duration(compute.decode_ns),
        cost_nanousd=compute.cost_nanousd,
        prefill_cost_nanousd=compute.prefill_cost_nanousd,
    )


def _duration(nanoseconds: int) -> Duration:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Duration(seconds=seconds, nanos=nanos)
