"""`llmmesh warm`, `cache explain`, `cache purge` and `cache measure` against a real cache service over stores in memory."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, vector_pb2
from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from services.cache.app import SERVICE
from services.cache.convert import rules_of
from services.cache.servicer import CacheServicer
from services.cli.cache import explain, record
from services.cli.cache.faq import Done
from services.cli.cache.target import Asked, Doors, Target
from services.cli.cache.warm import Options, Warmer, show
from services.cli.mesh import MeshError
from services.common.errors import NotReady, RateLimited
from services.common.policy import SHIPPED, Policy
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.common.testing import serve
from tests.cache_memory import VERIFIED_MODEL, ScriptedVerifier, World

SYSTEM = "You help."
FAQ = [
    {"question": "How do I return a jacket?", "answer": "With the label.", "also": ["Can I send a jacket back?"]},
    {"question": "Where is my order?", "answer": "Open Orders.", "tags": ["orders"], "ttl_class": "static"},
    {"question": "How do I cancel?", "answer": "Settings, Plan, Cancel."},
]


class Reader(embedder_pb2_grpc.EmbedderServiceServicer):
    """All texts lie close together; raises what `failures` holds first. A text with "…" is cut."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.batches: list[int] = []

    async def Embed(self, request, context):
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(len(request.texts))
        return embedder_pb2.EmbedResponse(
            vectors=[vector(len(text) / 1000) for text in request.texts],
            truncated=["…" in text for text in request.texts],
        )


def vector(angle: float) -> vector_pb2.Vector:
    values = np.zeros(8, dtype="<f4")
    values[0], values[1] = np.cos(angle), np.sin(angle)
    return vector_pb2.Vector(values=values.tobytes(), model_id=VERIFIED_MODEL, dimensions=8)


class Tools:
    """The commands over a cache and an embedder, and the edge's way to the cache."""

    def __init__(self, channel, world: World, reader: Reader, file) -> None:
        target = Target("cache:1", "embedder:1", "acme", "default")
        self.cache = cache_pb2_grpc.CacheServiceStub(channel)
        self.doors = Doors(target, self.cache, embedder_pb2_grpc.EmbedderServiceStub(channel))
        self.world, self.reader, self.file = world, reader, file

    def write(self, *rows) -> None:
        self.file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))

    async def warm(self, *, patience_s: float = 20.0, **options):
        warmer = Warmer(
            self.doors, Options(**{"asked": Asked(SYSTEM), "where": "here", **options}), patience_s=patience_s
        )
        done = Done(self.file)
        try:
            await warmer.run(self.file, done, lambda _: None)
        finally:
            done.close()
        return warmer.report

    async def lookup(self, text: str, *, system: str = SYSTEM, semantic: bool = False, **more):
        """As the edge asks."""
        messages = [message(system, chat_pb2.ROLE_SYSTEM)] if system else []
        request = cache_pb2.LookupRequest(
            caller=caller_pb2.Caller(tenant="acme", namespace="default", request_id=more.pop("request_id", "r1")),
            chat=chat_pb2.Chat(messages=[*messages, message(text)], **more),
            requested_model="auto",
            vector=vector(0.02) if semantic else None,
        )
        return await self.cache.Lookup(request)

    async def answer(self, text: str, **more) -> str | None:
        found = await self.lookup(text, **more)
        return found.entry.answer.message.parts[0].text if found.HasField("entry") else None


def message(text: str, role=chat_pb2.ROLE_USER) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


@pytest.fixture
async def tools(tmp_path):
    world, reader = World(verifier=ScriptedVerifier()), Reader()
    rules = rules_of(Policy.load(SHIPPED, PriceBook.load()))
    cache = CacheServicer(world.cache, world.learning, world.reviews, rules, {})
    services = [
        Service(SERVICE, cache, cache_pb2_grpc.add_CacheServiceServicer_to_server),
        Service("llmmesh.embedder.v1.EmbedderService", reader, embedder_pb2_grpc.add_EmbedderServiceServicer_to_server),
    ]
    async with serve(services) as channel:
        yield Tools(channel, world, reader, tmp_path / "faq.jsonl")


def counts(report) -> dict[str, int]:
    names = ("rows", "stored", "skipped", "repeated", "exact_only", "unsearchable", "refused", "malformed")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


# Warm.


async def test_what_was_warmed_is_an_exact_hit_for_the_edge(tools):
    tools.write(*FAQ)
    assert counts(await tools.warm()) == {"rows": 3, "stored": 4}
    assert await tools.answer("How do I return a jacket?") == "With the label."
    assert await tools.answer("Can I send a jacket back?") == "With the label."
    assert await tools.answer("Where is my order?") == "Open Orders."
    assert await tools.answer("Where is my order?", system="Another.") is None
    assert await tools.answer("Where is my order?", sampling=chat_pb2.Sampling(temperature=0)) is None


async def test_what_was_warmed_is_a_semantic_hit_in_other_words(tools):
    tools.write(*FAQ)
    await tools.warm()
    tools.world.verifier.chances["How do I return a jacket?"] = 0.999
    found = await tools.lookup("How can I return a jacket?", semantic=True)
    assert found.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
    assert found.entry.model == "curated"
    assert found.entry.usage.estimated
    assert found.entry.usage.output_tokens > 0


async def test_callers_with_sampling_are_met_when_it_is_named(tools):
    tools.write(FAQ[1])
    await tools.warm(asked=Asked(SYSTEM, temperature=0.0, max_tokens=256))
    sampling = chat_pb2.Sampling(temperature=0, max_output_tokens=256)
    assert await tools.answer("Where is my order?", sampling=sampling) == "Open Orders."
    assert await tools.answer("Where is my order?") is None


async def test_a_row_has_its_own_system_text_even_none(tools):
    tools.write({**FAQ[1], "system": "Else."}, {**FAQ[2], "system": ""})
    await tools.warm()
    assert await tools.answer("Where is my order?", system="Else.") == "Open Orders."
    assert await tools.answer("How do I cancel?", system="") == "Settings, Plan, Cancel."
    assert await tools.answer("How do I cancel?") is None


async def test_lifetimes_tags_and_pins_are_stored(tools):
    tools.write(*FAQ)
    await tools.warm(tags=("faq",), ttl_class="archive")
    lives = {}
    for question in ("Where is my order?", "How do I cancel?"):
        entry = (await tools.lookup(question)).entry
        lives[question] = entry.expires_at.seconds - entry.created_at.seconds
    assert lives == {"Where is my order?": 86_400, "How do I cancel?": 14 * 86_400}
    pinned = await tools.warm(tags=("faq",), pin=True)
    assert pinned.stored == 4
    assert (await tools.lookup("How do I cancel?")).entry.pinned
    assert not (await tools.lookup("How do I cancel?")).entry.HasField("expires_at")
    removed = await tools.cache.Invalidate(
        cache_pb2.InvalidateRequest(caller=caller_pb2.Caller(tenant="acme"), tag="orders")
    )
    assert removed.removed == 1


async def test_a_second_run_skips_what_is_there_without_a_trace(tools):
    tools.write(*FAQ)
    await tools.warm()
    embedded = list(tools.reader.batches)
    assert counts(await tools.warm()) == {"rows": 3, "skipped": 4}
    assert tools.reader.batches == embedded
    measured = await tools.cache.Measure(cache_pb2.MeasureRequest(caller=tools.doors.target.caller))
    assert (measured.exact_hits, measured.lookups) == (0, 0)


async def test_what_is_gone_meanwhile_is_stored_again(tools):
    tools.write(*FAQ)
    await tools.warm()
    entry = (await tools.lookup("Where is my order?")).entry.entry_id
    caller = tools.doors.target.caller
    await tools.cache.Invalidate(cache_pb2.InvalidateRequest(caller=caller, entry_id=entry))
    assert counts(await tools.warm()) == {"rows": 3, "stored": 1, "skipped": 3}
    tools.world.clock.time += 2 * 3600
    assert counts(await tools.warm()) == {"rows": 3, "stored": 3, "skipped": 1}


async def test_an_answer_that_changed_replaces_the_old_one(tools):
    tools.write(*FAQ)
    await tools.warm()
    tools.write(FAQ[0], {**FAQ[1], "answer": "Ask us."}, FAQ[2])
    assert counts(await tools.warm()) == {"rows": 3, "stored": 1, "skipped": 3}
    assert await tools.answer("Where is my order?") == "Ask us."


async def test_another_mesh_or_tenant_gets_all_of_it(tools):
    tools.write(*FAQ)
    await tools.warm()
    assert (await tools.warm(where="there")).stored == 4


async def test_a_run_that_broke_off_goes_on_where_it_was(tools, monkeypatch):
    monkeypatch.setattr("services.cli.cache.warm.BATCH", 2)
    tools.write(*({"question": f"Question number {n}, what?", "answer": f"{n}"} for n in range(7)))
    original = tools.world.bodies.put
    puts = 0

    async def failing(*args):
        nonlocal puts
        puts += 1
        tools.world.bodies.down = puts > 4
        await original(*args)

    tools.world.bodies.put = failing
    with pytest.raises(MeshError, match="store cannot be reached"):
        await tools.warm(patience_s=0.2)
    tools.world.bodies.put, tools.world.bodies.down = original, False
    assert counts(await tools.warm()) == {"rows": 7, "stored": 3, "skipped": 4}


@pytest.mark.parametrize("error", [RateLimited("busy", retry_after_s=0.01), NotReady("loading", retry_after_s=0.01)])
async def test_a_service_that_is_busy_or_away_is_asked_again(tools, error):
    tools.write(*FAQ)
    tools.reader.failures = [error, error]
    assert (await tools.warm()).stored == 4


async def test_a_service_that_stays_away_ends_the_run(tools):
    tools.write(*FAQ)
    tools.reader.failures = [NotReady("the model loads") for _ in range(500)]
    with pytest.raises(MeshError, match="NOT_READY: the model loads"):
        await tools.warm(patience_s=0.3)


async def test_malformed_repeated_and_refused_rows_are_named_and_the_rest_is_stored(tools):
    many = {**FAQ[2], "question": "Too many tags?", "tags": [f"t{n}" for n in range(16)]}
    tools.write(FAQ[0], "nonsense", FAQ[0] | {"also": [], "answer": "Something else."}, many, FAQ[1])
    report = await tools.warm(tags=("one-more",))
    assert counts(report) == {"rows": 4, "stored": 3, "repeated": 1, "refused": 1, "malformed": 1}
    assert [line for line, _ in report.problems] == [2, 3, 4]
    assert await tools.answer("How do I return a jacket?") == "With the label."
    out = io.StringIO()
    show(report, tools.doors.target, tools.file, Console(file=out, width=100))
    assert "line 2: not JSON" in out.getvalue()
    assert "line 4: not stored: has 17 tags" in out.getvalue()


async def test_a_namespace_that_does_not_exist_ends_the_run_at_once(tools):
    tools.write(*FAQ)
    tools.doors = Doors(Target("cache:1", "embedder:1", "acme", "nowhere"), tools.cache, tools.doors.embedder)
    with pytest.raises(MeshError, match="no such namespace"):
        await tools.warm()


async def test_what_the_model_does_not_read_whole_is_met_by_its_own_words_only(tools):
    cut, long = "A long … question?", "word " * 20_000
    tools.write({"question": cut, "answer": "1"}, {"question": long, "answer": "2"})
    assert counts(await tools.warm()) == {"rows": 2, "stored": 2, "exact_only": 2}
    assert await tools.answer(cut) == "1"
    assert await tools.answer(long) == "2"
    assert tools.world.vectors.points == {}


async def test_vectors_that_could_not_be_stored_are_stored_by_the_next_run(tools):
    tools.write(*FAQ)
    tools.world.vectors.down = True
    assert counts(await tools.warm()) == {"rows": 3, "stored": 4, "unsearchable": 4}
    tools.world.vectors.down = False
    assert counts(await tools.warm()) == {"rows": 3, "stored": 4}
    assert len(tools.world.vectors.points) == 4


async def test_texts_are_embedded_in_batches(tools):
    tools.write(*({"question": f"Question number {n}, what?", "answer": "x"} for n in range(150)))
    await tools.warm()
    assert tools.reader.batches == [64, 64, 22]


# Explain.


async def explained(tools, question: str) -> tuple[cache_pb2.ExplainResponse, str, str]:
    response, note = await explain.ask(tools.doors, Asked(SYSTEM), question)
    out = io.StringIO()
    explain.show(response, note, Console(file=out, width=100))
    assert max(map(len, out.getvalue().splitlines())) <= 100
    return response, note, out.getvalue()


async def test_candidates_are_shown_with_what_was_thought_of_them(tools):
    tools.write(*FAQ, {"question": "Can I return it within 30 days [bold]?", "answer": "Yes."})
    await tools.warm()
    tools.world.verifier.chances["How do I return a jacket?"] = 0.999
    _, _, text = await explained(tools, "Can I return a jacket within 60 days?")
    for part in ("served", "0.9990", "veto_numbers", "30 days [bold]", "semantic hit", "a probability of 0.998"):
        assert part in text
    measured = await tools.cache.Measure(cache_pb2.MeasureRequest(caller=tools.doors.target.caller))
    assert measured.lookups == 0


async def test_the_same_words_are_an_exact_hit(tools):
    tools.write(*FAQ)
    await tools.warm()
    assert "exact hit: this very request" in (await explained(tools, "Where is my order?"))[2]


async def test_where_nothing_is_stored_it_says_so(tools):
    assert "nothing that resembles it" in (await explained(tools, "Where is my order?"))[2]


async def test_a_question_that_is_not_read_whole_is_not_compared(tools):
    tools.write(*FAQ)
    await tools.warm()
    for question in ("A long … question?", "word " * 20_000):
        response, note, text = await explained(tools, question)
        assert not response.verdict.candidates
        assert "only the same words hit" in note
        assert note.split(",")[0] in text


# Purge and measure run against their own channels: here only what they print.


def test_the_record_fits_a_terminal():
    found = cache_pb2.MeasureResponse(
        lookups=1_234_567, exact_hits=9_999_999, semantic_hits=345_678, checked=3456, wrong=12, state="cautious"
    )
    out = io.StringIO()
    record.show(found, Target("c", "e", "acme", "default"), Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "28.0% of them" in out.getvalue()
