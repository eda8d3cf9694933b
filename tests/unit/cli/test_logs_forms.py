"""Request logs of every form, whole and damaged."""

import gzip
import json
from pathlib import Path

import pytest

from services.cli.logs import Form, LogRecord, Malformed, form_of, read_log
from services.cli.logs.reader import MAX_LINE_BYTES
from services.common.chat import Role
from services.common.money import NANO
from services.common.yaml_file import ConfigError

OPENAI = {
    "request": {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it é?"}],
        "temperature": 0,
        "tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}],
    },
    "response": {
        "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 32}},
    },
    "created": 1_700_000_000,
}
LITELLM = {
    "request_id": "r1",
    "call_type": "acompletion",
    "spend": 0.001,
    "startTime": "2026-01-01T00:00:00Z",
    "endTime": "2026-01-01T00:00:02Z",
    "model": "openai/gpt-4o",
    "messages": [{"role": "user", "content": "q"}],
    "response": {"choices": [{"message": {"content": "a"}}]},
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "status": "success",
    "cache_hit": "False",
}
LANGFUSE = {
    "id": "o1",
    "traceId": "t1",
    "type": "GENERATION",
    "startTime": "2026-01-01T00:00:00Z",
    "endTime": "2026-01-01T00:00:01Z",
    "model": "claude-sonnet-4-5",
    "input": [{"role": "user", "content": "q"}],
    "output": {"role": "assistant", "content": "a"},
    "usageDetails": {"input": 10, "cache_read_input_tokens": 90, "output": 7, "total": 107},
    "costDetails": {"total": 0.002},
    "level": "DEFAULT",
}
CSV = (
    "model,prompt,response,prompt_tokens,completion_tokens,timestamp,cost,status\r\n"
    'gpt-4o,"two\r\nlines",c,3,4,2026-01-01T00:00:00Z,0.5,429\r\n'
    "too,short\r\n"
)


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def read(tmp_path: Path):
    def read_(data: bytes, name: str = "log") -> list[LogRecord | Malformed]:
        file = tmp_path / name
        file.write_bytes(data)
        return list(read_log(file))

    return read_


def only(items: list[LogRecord | Malformed]) -> LogRecord:
    (item,) = items
    assert isinstance(item, LogRecord)
    return item


def test_a_request_with_its_response_is_read_whole(read):
    record = only(read(lines(OPENAI)))
    assert (record.model, record.at, record.answer) == ("gpt-4o", 1_700_000_000, "Yes.")
    assert [message.role for message in record.chat.messages] == [Role.SYSTEM, Role.USER]
    assert record.chat.last_user_text == "Is it é?"
    assert (record.chat.tools[0].name, record.chat.sampling.temperature) == ("find", 0)
    assert (record.usage.input_tokens, record.usage.output_tokens, record.usage.cache_read_input_tokens) == (50, 2, 32)
    assert record.counts_cached
    assert record.cost is None


def test_a_flat_line_without_counts_is_estimated_and_says_so(read):
    record = only(read(lines({"model": "gpt-4o", "prompt": "one two three", "completion": "four", "latency_ms": 250})))
    assert record.usage.estimated
    assert record.usage.output_tokens == 1
    assert not record.counts_cached
    assert (record.at, record.latency_s) == (None, 0.25)


def test_a_spend_log_is_read_with_its_cost_and_latency(read):
    record = only(read(lines(LITELLM)))
    assert (record.model, record.cost, record.latency_s, record.status) == ("openai/gpt-4o", NANO // 1000, 2.0, 200)
    assert not record.counts_cached  # cache_hit is the gateway's own


def test_what_a_gateway_served_from_its_own_cache_cost_nothing(read):
    assert only(read(lines({**LITELLM, "spend": None, "cache_hit": "True"}))).cost == 0


def test_a_line_without_a_prompt_is_malformed_rather_than_like_every_other_such_line(read):
    found = read(lines(LITELLM, {**LITELLM, "messages": {}}))
    assert found[1] == Malformed(2, "holds no prompt")


def test_a_generation_counts_cached_input_within_its_input(read):
    record = only(read(lines({**LANGFUSE, "type": "SPAN"}, LANGFUSE)))
    assert (record.usage.input_tokens, record.usage.cache_read_input_tokens, record.usage.output_tokens) == (100, 90, 7)
    assert (record.cost, record.answer, record.latency_s) == (NANO // 500, "a", 1.0)


def test_anthropic_counts_cached_input_beside_the_rest(read):
    usage = {"input_tokens": 10, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 5, "output_tokens": 1}
    found = only(read(lines({"model": "claude-sonnet-4", "prompt": "q", "response": {"content": "a", "usage": usage}})))
    assert found.usage.input_tokens == 95
    assert (found.usage.cache_read_input_tokens, found.usage.cache_write_input_tokens) == (80, 5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_is_read_in_any_encoding_with_line_breaks_within_cells(read, encoding):
    first, second = read(CSV.encode(encoding))
    assert isinstance(first, LogRecord)
    assert first.chat.last_user_text.split() == ["two", "lines"]
    assert (first.cost, first.status, first.failed) == (NANO // 2, 429, True)
    assert second == Malformed(4, "2 fields where the header names 8")


@pytest.mark.parametrize(
    ("row", "form"), [(OPENAI, Form.OPENAI), (LITELLM, Form.LITELLM), (LANGFUSE, Form.LANGFUSE)], ids=str
)
def test_the_form_is_told_from_the_first_lines(tmp_path, row, form):
    file = tmp_path / "log"
    file.write_bytes(lines(row) + b"noise\n" * 3)
    assert form_of(file) is form


def test_a_bad_line_is_reported_and_the_next_one_is_read(read):
    found = read(b"\xef\xbb\xbf" + lines(OPENAI)[:-1] + b"\r\n{broken\r\n\xff\xfe\n\n[1]\n" + lines({"a": 1}, OPENAI))
    assert [item.line for item in found] == [1, 2, 3, 5, 6, 7]
    assert [type(item) for item in found] == [LogRecord, *[Malformed] * 4, LogRecord]
    assert all("broken" not in item.reason for item in found if isinstance(item, Malformed))


def test_a_line_beyond_the_limit_is_skipped_without_losing_the_next(read):
    found = read(lines(OPENAI) + b'{"model":"' + b"x" * MAX_LINE_BYTES + b'"}\n' + lines(OPENAI))
    assert [type(item) for item in found] == [LogRecord, Malformed, LogRecord]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read_however_it_is_broken_into_lines(read, indent):
    assert len(read(json.dumps([OPENAI] * 300, indent=indent).encode())) == 300


def test_gzip_that_was_cut_off_gives_what_is_there_and_says_that_it_ends(read):
    whole = gzip.compress(b"".join(lines({**OPENAI, "created": 1_700_000_000 + n}) for n in range(2_000)))
    assert len(read(whole, "log.gz")) == 2_000
    found = read(whole[:-200], "log.gz")
    assert isinstance(found[0], LogRecord)
    assert isinstance(found[-1], Malformed)
    assert sum(isinstance(item, Malformed) for item in found) == 1


def test_gzip_files_behind_one_another_are_one_log(read):
    assert len(read(gzip.compress(lines(OPENAI)) + gzip.compress(lines(OPENAI, OPENAI)), "log.gz")) == 3


def test_an_empty_file_has_no_requests(read, tmp_path):
    assert read(b"") == []
    assert form_of(tmp_path / "log") is Form.OPENAI


def test_a_file_that_is_no_request_log_is_refused(read):
    with pytest.raises(ConfigError, match="not a request log"):
        read(b"hello\nworld\n")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        list(read_log(tmp_path / "none"))


def test_progress_ends_at_the_files_size(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(lines(*[OPENAI] * 2_500))
    heard: list[tuple[int, int]] = []

    def hear(position: int, total: int) -> None:
        heard.append((position, total))

    assert sum(1 for _ in read_log(file, hear)) == 2_500
    assert heard == sorted(heard)
    assert heard[-1] == (file.stat().st_size, file.stat().st_size)
