"""Protobuf to domain types and back."""

import math

from llmmesh.compressor.v1 import compressor_pb2
from services.common.chat_pb import Checker, chat_from_pb, chat_to_pb
from services.compressor.domain.compress import DEFAULT_MIN_BLOCK_TOKENS, DEFAULT_RATE, LOWEST_RATE, Order, Outcome


def order_from_pb(pb: compressor_pb2.CompressRequest, max_characters: int) -> Order:
    """The request, its rate raised to the floor. Raises InvalidInput with field violations."""
    check = Checker()
    rate = pb.rate if pb.HasField("rate") else DEFAULT_RATE
    least = pb.min_block_tokens if pb.HasField("min_block_tokens") else DEFAULT_MIN_BLOCK_TOKENS
    check.need(math.isfinite(rate) and 0 < rate <= 1, "rate", "must be above 0, up to 1")
    check.need(pb.protected_messages >= 0, "protected_messages", "must not be negative")
    check.need(least >= 0, "min_block_tokens", "must not be negative")
    check.done()
    return Order(
        chat=chat_from_pb(pb.chat),
        rate=max(rate, LOWEST_RATE),
        protected_messages=pb.protected_messages,
        min_block_tokens=least,
        max_characters=max_characters,
    )


def outcome_to_pb(outcome: Outcome) -> compressor_pb2.CompressResponse:
    """The result on the wire."""
    return compressor_pb2.CompressResponse(
        chat=chat_to_pb(outcome.chat),
        original_tokens=outcome.original_tokens,
        kept_tokens=outcome.kept_tokens,
        applied=outcome.applied,
        reason=outcome.reason,
        blocks=[
            compressor_pb2.Block(
                message_index=block.message,
                part_index=block.part,
                original_tokens=block.original_tokens,
                kept_tokens=block.kept_tokens,
                method=block.method,
            )
            for block in outcome.blocks
        ],
    )
