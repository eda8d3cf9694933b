"""`llmmesh warm`: answers that are known already, stored before anybody asks."""

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llmmesh.cache.v1 import cache_pb2
from llmmesh.common.v1 import chat_pb2, usage_pb2, vector_pb2
from services.cli.cache.faq import MAX_TAGS, Done, FaqRow, digest_of, read
from services.cli.cache.target import CALL_TIMEOUT_S, MAX_EMBED_BYTES, Asked, Doors, Target, connect, problem
from services.cli.client import in_words, text_message
from services.cli.mesh import MeshError
from services.common.chat_pb import chat_from_pb
from services.common.errors import InvalidInput, from_rpc_error
from services.common.tokens import estimate_chat_tokens, estimate_tokens

R = TypeVar("R")

BATCH = 64
AT_ONCE = 16
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 5.0
SHOWN = 20
MODEL = "curated"
"""What receipts and the ledger name as the model of such an answer."""


@dataclass(frozen=True)
class Options:
    """What holds for all rows: a row's own system text and lifetime go first, its tags come in addition.

    `where` names the mesh between runs, which may change its ports.
    """

    asked: Asked
    where: str
    pin: bool = False
    tags: tuple[str, ...] = ()
    ttl_class: str = ""


@dataclass(slots=True)
class Report:
    """What became of a file. Wordings are counted, except `malformed`, which counts lines.

    `exact_only` of the stored ones cannot be met by a paraphrase: too long or in another script, or (`unsearchable`) because the
    vector store was away. `problems` are the first few: line number and what is wrong.
    """

    rows: int = 0
    stored: int = 0
    skipped: int = 0
    repeated: int = 0
    exact_only: int = 0
    unsearchable: int = 0
    refused: int = 0
    malformed: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)

    def note(self, line: int, what: str) -> None:
        """Keeps a problem, if there is room."""
        if len(self.problems) < SHOWN:
            self.problems.append((line, what))


@dataclass(frozen=True, slots=True)
class _Wording:
    line: int
    question: str
    row: FaqRow
    digest: str


class Warmer:
    """Stores the rows of files in a cache."""

    def __init__(self, doors: Doors, options: Options, *, patience_s: float = PATIENCE_S) -> None:
        """A service that is busy or away is asked again for `patience_s` seconds."""
        self._doors = doors
        self._options = options
        self._patience_s = patience_s
        self.report = Report()

    async def run(self, file: Path, done: Done, progress: Callable[[int], None]) -> None:
        """Stores what is not there yet; `progress` hears the position in the file. Raises MeshError when a service stays away or
        refuses whoever asks.
        """
        # Nothing is read or written by it, and a wrong namespace or address shows at once.
        await self._patiently(self._measure, self._doors.target.cache)
        seen: set[str] = set()
        batch: list[_Wording] = []
        for line in read(file):
            if line.row is None:
                self.report.malformed += 1
                self.report.note(line.number, line.problem)
                continue
            self.report.rows += 1
            for wording in self._wordings(line.number, line.row):
                asked = digest_of(wording.question, self._system(wording.row))
                if asked in seen:
                    self.report.repeated += 1
                    self.report.note(line.number, "the same question stands above; the first answer counts")
                    continue
                seen.add(asked)
                batch.append(wording)
                if len(batch) == BATCH:
                    await self._store_all(batch, done)
                    batch = []
                    progress(line.end)
        if batch:
            await self._store_all(batch, done)
        progress(file.stat().st_size)

    def _wordings(self, number: int, row: FaqRow) -> Iterator[_Wording]:
        options, target = self._options, self._doors.target
        content = (row.answer, self._tags(row), self._ttl_class(row), options.pin)
        identity = (options.where, target.tenant, target.namespace, self._system(row))
        asked = (options.asked.model, options.asked.temperature, options.asked.max_tokens)
        for question in (row.question, *row.also):
            yield _Wording(number, question, row, digest_of(question, *identity, *asked, *content))

    def _system(self, row: FaqRow) -> str:
        return self._options.asked.system if row.system is None else row.system

    def _tags(self, row: FaqRow) -> list[str]:
        return list(dict.fromkeys((*row.tags, *self._options.tags)))

    def _ttl_class(self, row: FaqRow) -> str:
        return row.ttl_class or self._options.ttl_class

    def _chat(self, wording: _Wording) -> chat_pb2.Chat:
        return self._options.asked.chat(wording.question, self._system(wording.row))

    async def _store_all(self, batch: list[_Wording], done: Done) -> None:
        noted = [wording for wording in batch if wording.digest in done]
        there = dict(zip((w.digest for w in noted), await self._each(noted, self._is_there), strict=True))
        new = [wording for wording in batch if not there.get(wording.digest)]
        self.report.skipped += len(batch) - len(new)
        vectors = await self._vectors(new)

        async def store(wording: _Wording) -> bool:
            return await self._store(wording, vectors.get(wording.digest))

        stored = await self._each(new, store)
        done.add([wording.digest for wording, whole in zip(new, stored, strict=True) if whole])

    async def _each(self, wordings: list[_Wording], work: Callable[[_Wording], Awaitable[bool]]) -> list[bool]:
        """The results of `work`, in order, a few at a time."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(wording: _Wording) -> bool:
            async with free:
                return await work(wording)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(wording)) for wording in wordings]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _is_there(self, wording: _Wording) -> bool:
        """Whether the wording has an answer now; asked without a trace in the cache's figures."""
        request = cache_pb2.ExplainRequest(
            caller=self._doors.target.caller, chat=self._chat(wording), requested_model=self._options.asked.model
        )
        found = await self._patiently(
            lambda: self._doors.cache.Explain(request, timeout=CALL_TIMEOUT_S), self._doors.target.cache
        )
        return found.outcome == cache_pb2.OUTCOME_EXACT_HIT

    async def _vectors(self, wordings: list[_Wording]) -> dict[str, vector_pb2.Vector]:
        """By digest, the vectors of those that a paraphrase may meet: what was not read whole is none of them."""
        short = [w for w in wordings if len(w.question.encode()) <= MAX_EMBED_BYTES]
        if not short:
            return {}
        read_ = await self._patiently(
            lambda: self._doors.embed([wording.question for wording in short]), self._doors.target.embedder
        )
        if len(read_.vectors) != len(short):
            raise MeshError("the embedder did not answer with one vector per text")
        cut = list(read_.truncated) or [False] * len(short)
        return {w.digest: v for w, v, lost in zip(short, read_.vectors, cut, strict=True) if not lost}

    async def _store(self, wording: _Wording, vector: vector_pb2.Vector | None) -> bool:
        """Stores one wording; whether all of it is stored."""
        tags, ttl_class, chat = self._tags(wording.row), self._ttl_class(wording.row), self._chat(wording)
        if len(tags) > MAX_TAGS:
            return self._refuse(wording, f"has {len(tags)} tags with those of --tags, at most {MAX_TAGS} are allowed")
        try:
            read_ = chat_from_pb(chat)
        except InvalidInput as error:
            return self._refuse(wording, error.message)
        usage = usage_pb2.Usage(
            # What a model would have taken, as far as that can be told: savings are counted by it.
            input_tokens=estimate_chat_tokens(read_),
            output_tokens=estimate_tokens(wording.row.answer),
            estimated=True,
        )
        request = cache_pb2.StoreRequest(
            caller=self._doors.target.caller,
            chat=chat,
            requested_model=self._options.asked.model,
            vector=vector,
            answer=chat_pb2.Answer(
                message=text_message(chat_pb2.ROLE_ASSISTANT, wording.row.answer),
                finish_reason=chat_pb2.FINISH_REASON_STOP,
            ),
            usage=usage,
            model=MODEL,
            ttl_class=cache_pb2.TtlClass.Value(f"TTL_CLASS_{ttl_class.upper() or 'UNSPECIFIED'}"),
            tags=tags,
            pinned=self._options.pin,
        )
        try:
            stored = await self._patiently(
                lambda: self._doors.cache.Store(request, timeout=CALL_TIMEOUT_S), self._doors.target.cache
            )
        except _RefusedError as error:
            return self._refuse(wording, str(error))
        if not stored.stored:
            return self._refuse(wording, f"the namespace does not keep it: {stored.reason}")
        self.report.stored += 1
        if stored.semantic_unavailable:
            self.report.unsearchable += 1
            return False
        self.report.exact_only += vector is None
        return True

    def _refuse(self, wording: _Wording, why: str) -> bool:
        self.report.refused += 1
        self.report.note(wording.line, f"not stored: {why}")
        return False

    async def _measure(self) -> cache_pb2.MeasureResponse:
        request = cache_pb2.MeasureRequest(caller=self._doors.target.caller)
        return await self._doors.cache.Measure(request, timeout=CALL_TIMEOUT_S)

    async def _patiently(self, call: Callable[[], Awaitable[R]], address: str) -> R:
        """The call's result; whoever is busy or away is asked again. Raises MeshError, or _RefusedError for a bad request."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._patience_s
        pause = 0.1
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                named = from_rpc_error(error)
                if isinstance(named, InvalidInput) and not any(v.field.startswith("caller") for v in named.violations):
                    raise _RefusedError(named.message) from None
                if not named.retryable:
                    raise MeshError(in_words(error)) from None
                wait = max(named.retry_after_s or 0.0, pause * random.uniform(0.5, 1.0))
                if loop.time() + wait > end:
                    raise MeshError(problem(error, address)) from None
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)


class _RefusedError(MeshError):
    """One row will not do; the others may."""


async def warm(target: Target, file: Path, options: Options, *, as_json: bool) -> None:
    """Stores `file` and prints what became of it. Raises MeshError when not a single row could be used."""
    console = Console(stderr=True)
    done = Done(file)
    columns = (
        TextColumn("{task.fields[stored]:,} stored, {task.fields[skipped]:,} skipped"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    try:
        async with connect(target) as doors:
            warmer = Warmer(doors, options)
            with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
                task = progress.add_task("warming", total=file.stat().st_size, stored=0, skipped=0)

                def moved(position: int) -> None:
                    found = warmer.report
                    progress.update(task, completed=position, stored=found.stored, skipped=found.skipped)

                try:
                    await warmer.run(file, done, moved)
                except MeshError as error:
                    raise MeshError(f"{error}\n{_so_far(warmer.report)}") from None
    finally:
        done.close()
    report = warmer.report
    if as_json:
        shown = {name: getattr(report, name) for name in Report.__slots__ if name != "problems"}
        problems = [{"line": number, "problem": what} for number, what in report.problems]
        sys.stdout.write(json.dumps({**shown, "tenant": target.tenant, "problems": problems}) + "\n")
    else:
        show(report, target, done.path, Console())
    if not report.stored + report.skipped:
        raise MeshError(f"{file}: no row could be used; each needs a question and an answer")


def _so_far(report: Report) -> str:
    return f"{report.stored} stored and {report.skipped} found there until then; the same command goes on from here"


def show(report: Report, target: Target, sidecar: Path, console: Console) -> None:
    """Prints what became of a file."""

    def say(text: str) -> None:
        console.print(text, highlight=False)

    say(f"{_count(report.stored, 'wording')} of {_count(report.rows, 'row')} stored for {target.tenant}.")
    if report.skipped:
        say(
            f"{report.skipped} skipped: stored before, and still there ({sidecar.name} says what; delete it to store all)."
        )
    if report.exact_only:
        say(f"{report.exact_only} are met by the very same words only: too long, or not to be read whole by the model.")
    if report.unsearchable:
        say(f"{report.unsearchable} are met by the very same words only: the vector store was away. Run it again.")
    for what, count in (("malformed", report.malformed), ("refused", report.refused), ("repeated", report.repeated)):
        if count:
            say(f"[yellow]{count} {what}[/yellow]")
    for number, why in report.problems:
        say(f"  line {number}: {escape(why)}")
    hidden = report.malformed + report.refused + report.repeated - len(report.problems)
    if hidden > 0:
        say(f"  and {hidden} more")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
