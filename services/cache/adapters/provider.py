"""The provider service: the judge."""

import grpc
import grpc.aio

from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.cache.domain.judge import reading
from services.cache.domain.ports import JudgeUnavailable, Question, Ruling
from services.common.channels import outgoing_metadata, remaining
from services.common.chat import Chat
from services.common.chat_pb import Caller, answer_from_pb, caller_to_pb, chat_to_pb
from services.common.errors import InvalidInput


class ProviderJudge:
    """Asks a model through the provider."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._generate = provider_pb2_grpc.ProviderServiceStub(channel).Generate

    async def ask(self, question: Question, model: str, chat: Chat, timeout: float) -> Ruling:
        request = provider_pb2.GenerateRequest(
            caller=caller_to_pb(
                Caller(question.tenant, question.namespace, user=question.user, request_id=question.request_id)
            ),
            chat=chat_to_pb(chat),
            candidates=[model],
            max_attempts=1,
        )
        try:
            response = await self._generate(request, metadata=outgoing_metadata(), timeout=remaining(at_most=timeout))
        except grpc.aio.AioRpcError:
            raise JudgeUnavailable from None
        cost = response.charge.cost_nanousd + response.charge.wasted_nanousd
        try:
            same = reading(answer_from_pb(response.answer).message.text)
        except InvalidInput:
            same = None
        if same is None:
            raise JudgeUnavailable(cost)
        return Ruling(same, cost)
