import pytest

from benchmarks.prompt_cache import workload
from benchmarks.prompt_cache.__main__ import table
from benchmarks.prompt_cache.results import Row
from services.common.money import Rates
from tests.vendors.openai_cache import CALLS_PER_KEY, STEP, PromptCache, Refused

RATES = Rates(input=2_000_000, output=8_000_000, cache_read=200_000, cache_write=2_500_000)
SYSTEM = "".join(f"Rule {n:04}. " for n in range(600))  # 1,650 tokens


class Vendor:
    """A cache with a clock."""

    def __init__(self, **options) -> None:
        self.now = 0.0
        self.cache = PromptCache(lambda: self.now, RATES, **options)

    def ask(self, question: str, model: str = "gpt-4.1", system: str = SYSTEM, **more) -> tuple[int, int, int]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        usage = self.cache.usage({"model": model, "messages": messages, **more}, 10)
        details = usage["prompt_tokens_details"]
        return usage["prompt_tokens"], details["cached_tokens"], details.get("cache_write_tokens", 0)

    def mark(self, question: str, **more) -> tuple[int, int, int]:
        block = {"type": "text", "text": SYSTEM, "prompt_cache_breakpoint": {"mode": "explicit"}}
        return self.ask(question, "gpt-5.6", [block], prompt_cache_options={"mode": "explicit"}, **more)


def test_prompts_are_kept_in_steps_on_one_machine_for_a_while():
    vendor = Vendor(machines=1)
    whole, read, _ = vendor.ask("One?")
    assert read == 0
    vendor.now = 299
    again = vendor.ask("Two?")
    assert again[0] == whole
    assert again[1] % STEP == 0
    assert whole - 2 * STEP < again[1] < whole
    vendor.now = 299 + 301
    assert vendor.ask("Three?")[1] == 0


def test_what_differs_in_front_is_not_read():
    vendor = Vendor(machines=1)
    vendor.ask("One?")
    assert vendor.ask("One?", system=f"It is 10:33. {SYSTEM}")[1] == 0
    assert vendor.ask("One?", "gpt-4o")[1] == 0


def test_short_prompts_are_not_kept():
    vendor = Vendor(machines=1)
    for _ in range(2):
        assert vendor.ask("One?", system=SYSTEM[:3000])[1] == 0


def test_a_key_finds_the_machine_and_too_many_calls_do_not():
    vendor = Vendor(machines=4)
    reads = [vendor.ask(f"{n}?", prompt_cache_key="k")[1] > 0 for n in range(CALLS_PER_KEY + 2)]
    assert reads == [False] + [True] * (CALLS_PER_KEY - 1) + [False, True]
    without = Vendor(machines=4)
    assert sum(without.ask(f"{n}?")[1] == 0 for n in range(12)) == 4


def test_breakpoints_are_exact_and_written_once():
    vendor = Vendor(machines=1)
    whole, read, written = vendor.mark("One?")
    assert (read, written > 1600) == (0, True)
    assert vendor.mark("Two?") == (whole, written, 0)
    vendor.now = 1801
    assert vendor.mark("Three?")[1:] == (0, written)


def test_without_breakpoints_the_newest_models_write_everything():
    vendor = Vendor(machines=1)
    whole, _, written = vendor.ask("One?", "gpt-5.6")
    assert written == whole
    assert vendor.ask("One?", "gpt-5.6", prompt_cache_options={"mode": "explicit"})[1:] == (0, 0)


def test_older_models_refuse_breakpoints():
    with pytest.raises(Refused):
        Vendor().ask("One?", prompt_cache_options={"mode": "explicit"})


def test_the_invoice_adds_up():
    vendor = Vendor(machines=1)
    (whole, _, written), (_, read, _) = vendor.mark("One?"), vendor.mark("Two?")
    first = (whole - written) * 2_000_000 + written * 2_500_000 + 10 * 8_000_000
    second = (whole - read) * 2_000_000 + read * 200_000 + 10 * 8_000_000
    assert vendor.cache.invoice == (first + 500_000) // 1_000_000 + (second + 500_000) // 1_000_000


def test_the_static_prefix_is_as_long_as_it_is_called():
    tools = sum(len(t.name + t.description + t.parameters_json_schema) for t in workload.tools())
    assert tools + len(workload.system_text()) == workload.STATIC_TOKENS * workload.LETTERS_A_TOKEN


def test_workloads_are_the_same_for_a_seed_and_ask_everything_once():
    for name, count in (("conversation", 20), ("support_desk", 500)):
        asked = list(workload.WORKLOADS[name](1))
        assert asked == list(workload.WORKLOADS[name](1)) != list(workload.WORKLOADS[name](2))
        assert len({one.question for one in asked}) == len(asked) == count
    assert workload.stamp(61.0) == "Current time: 2026-03-02T08:01:01+00:00"


def test_a_row_becomes_a_line():
    row: Row = {
        "case": "support_desk/openai/planner",
        "workload": "support_desk",
        "vendor": "openai",
        "model": "gpt-4.1",
        "mode": "planner",
        "concurrency": 1,
        "requests": 500,
        "static_tokens": 3200,
        "cost_nanousd": 1_272_100_000,
        "of_naive": 0.345,
        "charged_nanousd": 1_272_100_000,
        "input_tokens": 1_000,
        "read_tokens": 970,
        "written_tokens": 0,
        "hit_rate": 0.98,
        "outcomes": {"hit": 490, "first": 1, "expired": 9},
        "p50_ms": 6.8,
        "p99_ms": 9.0,
        "rps": 140.0,
        "cpu_ms_per_1k": {"total": 9420.0},
    }
    machine = {"cores": 2, "cpu": "", "python": "", "load_average": 0.0}
    made = table({"machine": machine, "seed": 1, "notes": [], "rows": [row]})
    assert [list(column.cells) for column in made.columns][3:6] == [["1.2721"], ["34.5%"], ["98%"]]
