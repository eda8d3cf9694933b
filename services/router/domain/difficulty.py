"""How hard a request is, from what can be read off it: no model, no network, well under a millisecond."""

from services.common.chat import Chat, ImagePart
from services.router.domain.tiers import Difficulty, Signal, Tier
from services.router.domain.wording import DEDUCTIVE, wording_signals

# Where a plain request with no signal at all stands.
_BASE = 0.12

# However much there is to do, only deduction makes a request one for the reasoning tier.
_NOT_DEDUCTIVE_AT_MOST = 0.74

# A conversation of this many estimated tokens needs a model that can hold it.
LONG_CONTEXT_TOKENS = 1_500


def judge(signals: list[Signal], floors: list[tuple[str, Tier]]) -> Difficulty:
    """Adds up the signals; each floor (name, tier) then lifts the score to its tier's least where it lies below."""
    found = [signal for signal in signals if signal.weight]
    score = min(max(_BASE + sum(signal.weight for signal in found), 0.0), 1.0)
    if not any(signal.name in DEDUCTIVE for signal in found):
        score = min(score, _NOT_DEDUCTIVE_AT_MOST)
    for name, tier in floors:
        if score < tier.lowest_score:
            found.append(Signal(name, tier.lowest_score - score))
            score = tier.lowest_score
    found.sort(key=lambda signal: -abs(signal.weight))
    return Difficulty(score=score, tier=Tier.of(score), signals=tuple(found))


def judge_text(text: str) -> Difficulty:
    """Judges an instruction by its wording alone."""
    return judge(wording_signals(text), [])


def assess(chat: Chat, prompt_tokens: int) -> Difficulty:
    """Judges the last user message by its wording, and the conversation by what hangs on it: images, tools, length.

    `prompt_tokens` is the estimated size of the whole chat, 0 or more.
    """
    floors: list[tuple[str, Tier]] = []
    if any(isinstance(part, ImagePart) for message in chat.messages for part in message.parts):
        floors.append(("image", Tier.COMPLEX))
    if chat.tools:
        floors.append(("tools", Tier.MEDIUM))
    if prompt_tokens >= LONG_CONTEXT_TOKENS:
        floors.append(("long context", Tier.MEDIUM))
    if chat.sampling.reasoning_effort == "high":
        floors.append(("reasoning effort asked for", Tier.REASONING))
    return judge(wording_signals(chat.last_user_text), floors)
