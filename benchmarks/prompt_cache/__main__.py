"""`python -m benchmarks.prompt_cache`: what two workloads cost at four vendors, by the vendor-like servers' own invoices."""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import cpu_ms, machine
from benchmarks.prompt_cache import workload
from benchmarks.prompt_cache.results import Results, Row
from benchmarks.prompt_cache.vendors import ENVIRONMENT, MODELS, MODES, Mode, Running, started
from benchmarks.prompt_cache.workload import STATIC_TOKENS, WORKLOADS, Asked, stamp
from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.money import usd
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.common.testing import serve
from services.provider.adapters.spans import SpanWatch
from services.provider.cache_rules import CacheRules
from services.provider.domain.breaker import Breaker
from services.provider.domain.dispatch import Dispatcher
from services.provider.domain.plan import Candidate, RetryRules
from services.provider.domain.prompt_cache import NO_CACHE
from services.provider.domain.prompt_cache.prompts import PromptCache
from services.provider.domain.slots import Slots
from services.provider.servicer import ProviderServicer

NOTES = [
    "naive and planner get the same requests: the time stands in front of the system text, and the planner may move it",
    "automatic gets requests whose author keeps the time out of the system text: it ends the question",
    "automatic at anthropic is a breakpoint at the end of the request; bedrock has no such mode and gets the same",
    "openai's requests without a key go to any of four machines, each with a cache of its own",
]


class Clock:
    """Virtual time, in seconds."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def main() -> None:
    """Measures, prints the table and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt_cache", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "prompt_cache.json")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT
    results: Results = {"machine": machine(), "seed": options.seed, "notes": NOTES, "rows": []}
    console = Console()
    for name in WORKLOADS:
        for vendor in MODELS:
            naive = 0
            for mode in MODES:
                with console.status(f"{name} at {vendor}, {mode}"):
                    row = asyncio.run(_measure(name, vendor, mode, options.seed))
                naive = naive or row["cost_nanousd"]
                row["of_naive"] = round(row["cost_nanousd"] / naive, 4)
                results["rows"].append(row)
    Console(width=max(console.width, 140)).print(table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


async def _measure(name: str, vendor: str, mode: Mode, seed: int) -> Row:
    model, _ = MODELS[vendor]
    book, clock = PriceBook.load(), Clock()
    rates = book.rates(model)
    if rates is None:
        raise SystemExit(f"the price book has no price of {model}")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmmesh-bench-")))
        running = await stack.enter_async_context(started(vendor, mode, folder, rates, clock, seed))
        dispatcher = Dispatcher(
            {model: [_candidate(running, model, mode)]},
            book.rates,
            RetryRules(1, 0.0, 0.0),
            SpanWatch(),
            prompts=PromptCache(book.rates, clock, move_volatile=True),
            monotonic=time.monotonic,
            random=lambda: 0.0,
        )
        service = Service(
            "llmmesh.provider.v1.ProviderService",
            ProviderServicer(dispatcher),
            provider_pb2_grpc.add_ProviderServiceServicer_to_server,
        )
        channel = await stack.enter_async_context(serve([service]))
        stub = provider_pb2_grpc.ProviderServiceStub(channel)
        answers: list[provider_pb2.GenerateResponse] = []
        taken: list[float] = []
        history: list[chat_pb2.Message] = []
        cpu, began = cpu_ms(os.getpid()), time.perf_counter()
        for asked in WORKLOADS[name](seed):
            clock.now_s += asked.after_s
            request = _request(asked, model, mode, history, clock.now_s)
            at = time.perf_counter()
            answer = await stub.Generate(request, timeout=60)
            taken.append((time.perf_counter() - at) * 1000)
            answers.append(answer)
            history = [*request.chat.messages[1:], answer.answer.message]
        took, cpu = time.perf_counter() - began, cpu_ms(os.getpid()) - cpu
        cost = running.invoice()
    return _row(name, vendor, model, mode, cost, answers, taken, took, cpu)


def _candidate(running: Running, model: str, mode: Mode) -> Candidate:
    cache = running.config.cache_of(model, CacheRules.load()) if mode == "planner" else NO_CACHE
    breaker = Breaker(5, 10.0, time.monotonic)
    return Candidate(
        model,
        running.config.name,
        running.config.models[model],
        running.vendor,
        breaker,
        30.0,
        30.0,
        Slots(8, 8, 5.0),
        cache=cache,
    )


def _request(
    asked: Asked, model: str, mode: Mode, history: list[chat_pb2.Message], now_s: float
) -> provider_pb2.GenerateRequest:
    system, question = workload.system_text(), asked.question
    if mode == "automatic":
        question = f"{question}\n{stamp(now_s)}"
    else:
        system = f"{stamp(now_s)}\n{system}"
    messages = [
        _message(chat_pb2.ROLE_SYSTEM, system),
        *(history if asked.continues else ()),
        _message(chat_pb2.ROLE_USER, question),
    ]
    return provider_pb2.GenerateRequest(
        caller=caller_pb2.Caller(tenant="bench", endpoint="desk"),
        chat=chat_pb2.Chat(
            messages=messages, tools=workload.tools(), sampling=chat_pb2.Sampling(max_output_tokens=500)
        ),
        candidates=[model],
    )


def _message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


def _row(
    name: str,
    vendor: str,
    model: str,
    mode: Mode,
    cost: int,
    answers: list[provider_pb2.GenerateResponse],
    taken: list[float],
    took_s: float,
    cpu: float,
) -> Row:
    charged = sum(answer.charge.cost_nanousd for answer in answers)
    if charged != cost:
        raise SystemExit(
            f"{name} at {vendor}, {mode}: the invoice is {cost} nano-USD, and the provider charged {charged}"
        )
    usages = [answer.usage for answer in answers]
    outcomes = Counter(
        provider_pb2.PromptCacheOutcome.Name(answer.prompt_cache.outcome).removeprefix("PROMPT_CACHE_OUTCOME_").lower()
        for answer in answers
    )
    cpu_per_1k = round(cpu / len(answers) * 1000, 1)
    return {
        "case": f"{name}/{vendor}/{mode}",
        "workload": name,
        "vendor": vendor,
        "model": model,
        "mode": mode,
        "concurrency": 1,
        "requests": len(answers),
        "static_tokens": STATIC_TOKENS,
        "cost_nanousd": cost,
        "of_naive": 1.0,
        "charged_nanousd": charged,
        "input_tokens": sum(usage.input_tokens for usage in usages),
        "read_tokens": sum(usage.cache_read_input_tokens for usage in usages),
        "written_tokens": sum(usage.cache_write_input_tokens for usage in usages),
        "hit_rate": round(sum(usage.cache_read_input_tokens > 0 for usage in usages) / len(usages), 4),
        "outcomes": dict(sorted(outcomes.items())),
        "p50_ms": round(float(np.percentile(taken, 50)), 2),
        "p99_ms": round(float(np.percentile(taken, 99)), 2),
        "rps": round(len(answers) / took_s, 1),
        "cpu_ms_per_1k": {"client, provider and vendor": cpu_per_1k, "total": cpu_per_1k},
    }


def table(results: Results) -> Table:
    """For people."""
    made = Table(title="Prompt caches: cost by the vendors' own invoices")
    for column in ("workload", "vendor", "mode"):
        made.add_column(column)
    for column in ("cost $", "of naive", "hits", "read", "written tokens", "p50 ms", "CPU ms/1k"):
        made.add_column(column, justify="right")
    for row in results["rows"]:
        made.add_row(
            row["workload"],
            row["vendor"],
            row["mode"],
            usd(row["cost_nanousd"]).replace("$", ""),
            f"{row['of_naive']:.1%}",
            f"{row['hit_rate']:.0%}",
            f"{row['read_tokens'] / row['input_tokens']:.0%}",
            f"{row['written_tokens']:,}",
            f"{row['p50_ms']:.1f}",
            f"{row['cpu_ms_per_1k']['total']:,.0f}",
            end_section=row["mode"] == MODES[-1],
        )
    return made


if __name__ == "__main__":
    main()
