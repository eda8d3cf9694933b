"""Kept traffic in a real Redis: bounded, by tenant, exported and purged."""

import json
import stat
import subprocess

import pytest
import redis as sync_redis
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.embedded.redis_server import redis_command
from services.cli.processes import free_ports
from services.common.chat import Answer, Chat, FinishReason, Message, Role, TextPart, Tool
from services.common.errors import NotReady
from services.edge.adapters.redis import open_redis
from services.edge.adapters.traffic import PAGE, RedisTraffic
from services.edge.domain.ports import Question
from services.edge.domain.traffic import Pair, Recording

LIMITS = Recording(frozenset({"acme"}), max_pairs=1000, keep_s=3600)


class ServerClock:
    """Redis numbers entries by its own clock."""

    def __init__(self, redis: sync_redis.Redis) -> None:
        self._redis = redis
        self.ahead = 0.0

    def now(self) -> float:
        seconds, micros = self._redis.time()
        return float(seconds) + micros / 1e6 + self.ahead


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a Redis of our own."""
    (port,) = free_ports(1)
    process = subprocess.Popen(redis_command(tmp_path_factory.mktemp("redis"), port), stdout=subprocess.DEVNULL)
    with sync_redis.Redis(
        port=port, retry=sync_redis.retry.Retry(sync_redis.backoff.ConstantBackoff(0.05), 200)
    ) as client:
        client.ping()
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture
def clock(server):
    with sync_redis.Redis.from_url(server) as client:
        client.flushall()
        yield ServerClock(client)


@pytest.fixture
async def traffic(server, clock):
    client = open_redis(server)
    yield RedisTraffic(client, clock)
    await client.aclose()


def asked(number: int, tenant: str = "acme", namespace: str = "default") -> Question:
    messages = (
        Message(Role.SYSTEM, (TextPart("Be brief."),)),
        Message(Role.USER, (TextPart(f"Where is order {number}?"),)),
    )
    return Question(tenant, f"r-{number}", Chat(messages, (Tool("order"),)), namespace=namespace)


def pair(number: int, **where) -> Pair:
    answer = Answer(Message(Role.ASSISTANT, (TextPart(f"Answer {number}."),)), FinishReason.STOP)
    return Pair(asked(number, **where), answer, "gpt-4o", "complex", f"e-{number}")


async def kept(traffic: RedisTraffic, tenant: str = "acme", namespace: str = "default") -> list[str]:
    return [found.request_id async for found in traffic.pairs(tenant, namespace)]


async def test_a_pair_comes_back_as_it_was(traffic, clock):
    await traffic.keep(pair(1), LIMITS)
    (found,) = [found async for found in traffic.pairs("acme", "default")]
    assert (found.chat, found.answer) == (pair(1).question.chat, pair(1).answer)
    assert (found.request_id, found.entry_id, found.model, found.tier) == ("r-1", "e-1", "gpt-4o", "complex")
    assert abs(found.at - clock.now()) < 60


async def test_tenants_and_namespaces_are_apart(traffic):
    await traffic.keep(pair(1), LIMITS)
    await traffic.keep(pair(2, namespace="legal"), LIMITS)
    await traffic.keep(pair(3, tenant="volta"), LIMITS)
    assert await traffic.namespaces("acme") == ["default", "legal"]
    assert await kept(traffic) == ["r-1"]
    assert await kept(traffic, "volta") == ["r-3"]
    assert await traffic.namespaces("nobody") == []


async def test_there_are_never_more_than_the_policy_allows(traffic):
    few = Recording(frozenset({"acme"}), max_pairs=3, keep_s=3600)
    for number in range(5):
        await traffic.keep(pair(number), few)
    assert await kept(traffic) == ["r-4", "r-3", "r-2"]


async def test_more_than_a_page_is_read_newest_first(traffic):
    for number in range(2 * PAGE + 1):
        await traffic.keep(pair(number), LIMITS)
    assert await kept(traffic) == [f"r-{number}" for number in reversed(range(2 * PAGE + 1))]


async def test_what_is_too_old_goes_with_the_next_pair(traffic, clock):
    await traffic.keep(pair(1), LIMITS)
    clock.ahead = LIMITS.keep_s + 60  # for Redis, the next pair is as old as the first
    await traffic.keep(pair(2), LIMITS)
    assert await kept(traffic) == []


async def test_when_nothing_new_comes_everything_goes(traffic, clock, server):
    await traffic.keep(pair(1), LIMITS)
    await traffic.judged("acme", "default", "r-1", True, LIMITS)
    with sync_redis.Redis.from_url(server) as redis:
        left = [redis.ttl(f"{{acme}}:traffic:default:{kind}") for kind in ("pairs", "marks")]
    assert all(0 < seconds <= LIMITS.keep_s + 1 for seconds in left)


async def test_words_on_answers_are_put_together(traffic):
    await traffic.served(asked(7), "e-1", LIMITS)
    await traffic.served(asked(8), "e-2", LIMITS)
    for request_id, right in (("r-7", True), ("r-7", False), ("r-8", True), ("r-9", True)):
        await traffic.judged("acme", "default", request_id, right, LIMITS)
    marks = await traffic.marks("acme", "default")
    assert (marks.wrong, marks.wrong_entries) == ({"r-7"}, {"e-1"})
    assert (marks.right, marks.right_entries) == ({"r-8", "r-9"}, {"e-2"})


async def test_a_redis_that_is_gone_is_said_to_be():
    (port,) = free_ports(1)
    client = open_redis(f"redis://127.0.0.1:{port}/0")
    with pytest.raises(NotReady):
        await RedisTraffic(client, ServerClock(sync_redis.Redis())).purge("acme", "default")
    await client.aclose()


def llmmesh(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *arguments], env={"COLUMNS": "500"})
    return result.exit_code, result.output


@pytest.fixture
async def full(traffic):
    """Three answers in two namespaces, one of them wrong and one given twice."""
    await traffic.keep(pair(1), LIMITS)
    await traffic.keep(pair(1), LIMITS)
    await traffic.keep(pair(2), LIMITS)
    await traffic.keep(pair(3, namespace="legal"), LIMITS)
    await traffic.judged("acme", "default", "r-2", False, LIMITS)


def lines(path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_export_writes_each_good_answer_once(full, server, tmp_path):
    out = tmp_path / "set.jsonl"
    code, said = llmmesh("finetune", "--tenant", "acme", "--out", str(out), "--redis", server)
    assert (code, "2 of 4 kept answers" in said) == (0, True), said
    assert [entry["metadata"]["request_id"] for entry in lines(out)] == ["r-1", "r-3"]
    assert [m["role"] for m in lines(out)[0]["messages"]] == ["system", "user", "assistant"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [out]


def test_export_of_one_namespace(full, server, tmp_path):
    out = tmp_path / "set.jsonl"
    assert llmmesh("finetune", "--tenant", "acme", "--namespace", "legal", "--out", str(out), "--redis", server)[0] == 0
    assert [entry["metadata"]["namespace"] for entry in lines(out)] == ["legal"]


def test_export_of_nothing_says_what_to_do_and_leaves_no_file(full, server, tmp_path):
    out = tmp_path / "set.jsonl"
    code, said = llmmesh("finetune", "--tenant", "volta", "--out", str(out), "--redis", server)
    assert code == 1
    assert "record.tenants" in said
    assert list(tmp_path.iterdir()) == []


def test_purge_removes_what_was_kept_of_one_tenant(full, server, tmp_path):
    code, said = llmmesh("purge", "--tenant", "acme", "--yes", "--redis", server)
    assert (code, said.strip()) == (0, "4 questions and answers of acme removed.")
    with sync_redis.Redis.from_url(server) as redis:
        assert redis.keys("*acme*") == []
    assert llmmesh("finetune", "--tenant", "acme", "--out", str(tmp_path / "x"), "--redis", server)[0] == 1
